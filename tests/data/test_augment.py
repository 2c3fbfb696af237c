"""Test that augmentation keeps images, calibration and targets consistent, by projecting points in numpy."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import batch_of
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bevreshape.config.construct import construct
from bevreshape.data.augment import Augment, mirrored_cameras
from bevreshape.data.batch import BEVBatch
from bevreshape.data.targets import ObjectCenters, Target
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, check_calibration, image_to_bev

CONF = Path(__file__).resolve().parents[2] / "conf"
GRID = BEVGrid((-10.0, 10.0), (-10.0, 10.0), 0.5)
NAMES = ("front_left", "front", "front_right", "back")
H, W = 48, 64


def pose(yaw_deg, pitch_deg, position):
    """Return ego_from_cam of a camera with yaw (left positive) and pitch downwards, in plain numpy."""
    yaw, pitch = np.deg2rad([yaw_deg, pitch_deg])
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, down, forward], axis=1)
    matrix[:3, 3] = position
    return matrix


def rig():
    """Return four different cameras, so that a wrong order shows."""
    intrinsics = np.array([[[40 + 3 * i, 0.5 * i, 30 + i], [0, 42 + i, 20 + i], [0, 0, 1]] for i in range(4)])
    poses = np.stack(
        [
            pose(55, 20, [1.5, 0.6, 1.6]),
            pose(3, 15, [1.7, 0.1, 1.5]),
            pose(-50, 25, [1.4, -0.5, 1.7]),
            pose(178, 18, [-1.0, 0.2, 1.4]),
        ]
    )
    return intrinsics, poses


def make_batch(b=3, dtype=torch.float32, indices=None):
    intrinsics, poses = rig()
    indices = list(range(b)) if indices is None else indices
    random = torch.Generator().manual_seed(0)
    everything = {
        "image": torch.rand(b, 4, 3, H, W, generator=random, dtype=torch.float64),
        "target": torch.rand(b, 2, *GRID.shape, generator=random) < 0.3,
        "valid": torch.rand(b, 2, *GRID.shape, generator=random) < 0.8,
    }
    cameras = Cameras(
        torch.from_numpy(intrinsics).to(dtype).expand(b, 4, 3, 3).clone(),
        torch.from_numpy(poses).to(dtype).expand(b, 4, 4, 4).clone(),
        (H, W),
        torch.tensor([True, True, False, True]).expand(b, 4).clone(),
    )
    return batch_of(everything["image"].to(dtype), cameras, everything["target"], everything["valid"], indices)


def value(batch):
    return batch.targets["segmentation"].value


def valid(batch):
    return batch.targets["segmentation"].valid


def tensors(batch):
    """Return all tensors of a batch, by name."""
    cameras = batch.cameras
    return {
        "images": batch.images, "intrinsics": cameras.intrinsics, "ego_from_cam": cameras.ego_from_cam,
        "camera_mask": cameras.camera_mask, "value": value(batch), "valid": valid(batch),
    }  # fmt: skip


def project(points, intrinsics, ego_from_cam):
    """Return pixels and depths of (p, 3) points, one by one."""
    result = []
    for point in points:
        in_camera = np.linalg.inv(ego_from_cam) @ [*point, 1.0]
        u, v, depth = intrinsics @ in_camera[:3]
        result.append([u / depth, v / depth, depth])
    return np.array(result)


def ground_points(count=40):
    random = np.random.default_rng(7)
    return np.stack(
        [random.uniform(-10, 10, count), random.uniform(-10, 10, count), random.uniform(0, 1, count)], axis=1
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
def test_flip_mirrors_the_world_the_rig_and_the_images(dtype, tolerance):
    flipped = Augment(grid=GRID, camera_names=NAMES, flip_p=1)(make_batch(1, dtype), 0, 0)
    intrinsics, poses = rig()
    points = ground_points()
    mirrored = points * [1, -1, 1]
    compared = 0
    for new, old in enumerate([2, 1, 0, 3]):
        before = project(points, intrinsics[old], poses[old])
        after = project(
            mirrored,
            flipped.cameras.intrinsics[0, new].double().numpy(),
            flipped.cameras.ego_from_cam[0, new].double().numpy(),
        )
        near = (before[:, 2] > 0.5) & (np.abs(before[:, 0]) < 2 * W) & (np.abs(before[:, 1]) < 2 * H)
        assert np.abs(after[near, 0] - (W - 1 - before[near, 0])).max() < tolerance
        assert np.abs(after[near, 1] - before[near, 1]).max() < tolerance
        assert np.abs(after[:, 2] - before[:, 2]).max() < 1e-4
        compared += near.sum()
    assert compared > 40


def test_flip_permutes_images_and_masks_and_mirrors_targets():
    batch = make_batch()
    heat = torch.rand_like(value(batch)[:, :1].float())
    offset = torch.randn(len(heat), 1, 2, *heat.shape[2:])
    centers = ObjectCenters(torch.cat([heat[:, :, None], offset], 2), valid(batch)[:, :1], value(batch)[:, :1])
    batch = replace(batch, targets={**batch.targets, "centers": centers})
    flipped = Augment(grid=GRID, camera_names=NAMES, flip_p=1)(batch, 0, 0)
    assert torch.equal(flipped.images[:, 0], batch.images[:, 2].flip(-1))
    assert torch.equal(flipped.images[:, 1], batch.images[:, 1].flip(-1))
    assert flipped.cameras.camera_mask[0].tolist() == [False, True, True, True]
    assert torch.equal(value(flipped), value(batch).flip(-1))
    assert torch.equal(valid(flipped), valid(batch).flip(-1))
    found = flipped.targets["centers"]
    ahead, left = offset.flip(-1).unbind(2)
    assert torch.equal(found.value, torch.stack([heat.flip(-1), ahead, -left], dim=2))
    assert torch.equal(found.valid, valid(flipped)[:, :1])
    assert torch.equal(found.inside, value(flipped)[:, :1])
    for number in range(4):
        rotation = flipped.cameras.ego_from_cam[0, number, :3, :3]
        assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)
    check_calibration(flipped.cameras.intrinsics[0], flipped.cameras.ego_from_cam[0], (H, W), "flipped")


def test_ipm_of_flipped_images_is_the_flipped_ipm():
    batch = make_batch(1)
    flipped = Augment(grid=GRID, camera_names=NAMES, flip_p=1)(batch, 0, 0)
    before, seen_before = image_to_bev(batch.images, batch.cameras, GRID)
    after, seen_after = image_to_bev(flipped.images, flipped.cameras, GRID)
    partner = [2, 1, 0, 3]
    # only a cell on the border of an image may be visible in one and not in the other
    assert (seen_after != seen_before[:, partner].flip(-1)).sum() <= 2
    both = seen_after & seen_before[:, partner].flip(-1)
    assert both.sum() > 200
    assert (after - before[:, partner].flip(-1))[both[:, :, None].expand_as(after)].abs().max() < 1e-3


def test_flipping_twice_is_the_identity():
    batch = make_batch()
    flip = Augment(grid=GRID, camera_names=NAMES, flip_p=1)
    twice = flip(flip(batch, 0, 0), 0, 1)
    for again, before in zip(tensors(twice).values(), tensors(batch).values(), strict=True):
        assert torch.allclose(again.double(), before.double(), atol=1e-5)


def test_flip_probability():
    batch = replace(make_batch(400, indices=range(400)), images=torch.rand(400, 4, 3, 1, 1))
    flipped = Augment(grid=GRID, camera_names=NAMES, flip_p=0.25)(batch, 0, 0)
    share = (flipped.cameras.camera_mask[:, 0] != batch.cameras.camera_mask[:, 0]).double().mean().item()
    assert share == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    ("names", "partners"),
    [
        (("front_left", "front", "front_right", "back_left", "back", "back_right"), [2, 1, 0, 5, 4, 3]),
        (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), [2, 1, 0]),
        (("Left", "front", "Right"), [2, 1, 0]),
        (("front", "left"), [0, 1]),
        (("bright", "dark"), [0, 1]),
        ((), []),
    ],
)
def test_partners_by_name(names, partners):
    assert mirrored_cameras(names) == partners


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_zoom_moves_intrinsics_by_one_scale_and_a_shift_about_pixel_corners(dtype, tolerance):
    batch = make_batch(4, dtype)
    zoomed = Augment(grid=GRID, camera_names=NAMES, zoom=(1.5, 2.0))(batch, 3, 1)
    intrinsics, poses = rig()
    points = ground_points(10)
    scales = set()
    for b in range(4):
        scale = (zoomed.cameras.intrinsics[b, 0, 0, 0] / intrinsics[0, 0, 0]).item()
        # the centre of projection gives the window's position: cx' + ½ = s (cx + ½) − left
        left = (scale * (intrinsics[0, 0, 2] + 0.5) - 0.5 - zoomed.cameras.intrinsics[b, 0, 0, 2]).item()
        top = (scale * (intrinsics[0, 1, 2] + 0.5) - 0.5 - zoomed.cameras.intrinsics[b, 0, 1, 2]).item()
        assert 1.5 <= scale <= 2.0
        assert 0 <= left <= (scale - 1) * W
        assert 0 <= top <= (scale - 1) * H
        scales.add(round(scale, 4))
        for camera in range(4):
            before = project(points, intrinsics[camera], poses[camera])
            after = project(points, zoomed.cameras.intrinsics[b, camera].double().numpy(), poses[camera])
            near = (before[:, 2] > 0.5) & (np.abs(before[:, :2]) < 200).all(1)
            expected = scale * (before[near, :2] + 0.5) - 0.5 - [left, top]
            assert np.abs(after[near, :2] - expected).max(initial=0) < tolerance
    assert len(scales) == 4
    assert torch.equal(zoomed.cameras.ego_from_cam, batch.cameras.ego_from_cam)
    assert torch.equal(value(zoomed), value(batch))


def test_zoom_moves_the_image_with_the_intrinsics():
    """A soft dot at the projection of a ground point is, after the zoom, at its new projection."""
    batch = make_batch(6)
    intrinsics, poses = rig()
    point = np.array([[6.0, -0.5, 0.0]])
    u, v, _ = project(point, intrinsics[1], poses[1])[0]
    vv, uu = np.mgrid[0:H, 0:W]
    dot = np.exp(-((uu - u) ** 2 + (vv - v) ** 2) / (2 * 2.0**2))
    batch = replace(batch, images=torch.from_numpy(dot).float().expand(6, 4, 3, H, W).clone())
    zoomed = Augment(grid=GRID, camera_names=NAMES, zoom=(1.0, 1.4))(batch, 0, 0)
    checked = 0
    for b in range(6):
        expected_u, expected_v, _ = project(point, zoomed.cameras.intrinsics[b, 1].double().numpy(), poses[1])[0]
        if not (10 < expected_u < W - 10 and 10 < expected_v < H - 10):
            continue  # cut off by the window, which moves its centroid
        weight = zoomed.images[b, 1, 0].double().numpy() ** 2
        centroid = (weight * uu).sum() / weight.sum(), (weight * vv).sum() / weight.sum()
        assert centroid == pytest.approx((expected_u, expected_v), abs=0.05)
        checked += 1
    assert checked >= 3


def test_zoom_invalidates_cells_that_left_every_image():
    """Cells that no camera observed before do not change."""
    batch = make_batch(2)
    zoomed = Augment(grid=GRID, camera_names=NAMES, zoom=(1.8, 2.0))(batch, 0, 0)
    centers = GRID.centers().double().numpy().reshape(-1, 2)
    for b in range(2):
        seen = {when: np.zeros(len(centers), bool) for when in ("before", "after")}
        margin = np.zeros(len(centers), bool)  # within a thousandth of a pixel of a border, float32 decides
        for camera, (when, given) in product((0, 1, 3), (("before", batch), ("after", zoomed))):
            pixels = project(
                np.concatenate([centers, np.zeros((len(centers), 1))], axis=1),
                given.cameras.intrinsics[b, camera].double().numpy(),
                batch.cameras.ego_from_cam[b, camera].double().numpy(),
            )
            inner, outer = (
                (pixels[:, 2] > 0)
                & (pixels[:, 0] > -0.5 + e)
                & (pixels[:, 0] < W - 0.5 - e)
                & (pixels[:, 1] > -0.5 + e)
                & (pixels[:, 1] < H - 0.5 - e)
                for e in (1e-3, -1e-3)
            )
            seen[when] |= inner
            margin |= inner != outer
        expected = valid(batch)[b].numpy().reshape(2, -1) & (seen["after"] | ~seen["before"])
        got = valid(zoomed)[b].numpy().reshape(2, -1)
        assert (got == expected)[:, ~margin].all()
        assert got.sum() < valid(batch)[b].sum()


FULL = {
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "noise": 0.05,
    "flip_p": 0.5,
    "zoom": (1.0, 1.5),
}


def test_a_sample_is_changed_alike_in_any_batch():
    augment = Augment(grid=GRID, camera_names=NAMES, **FULL)
    together = augment(make_batch(4, indices=[3, 8, 11, 20]), 5, 2)
    whole = make_batch(4, indices=[3, 8, 11, 20])
    part = whole[[2, 0]]
    torch.manual_seed(123)
    apart = augment(part, 5, 2)
    for one, other in zip(tensors(apart).values(), tensors(together[[2, 0]]).values(), strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-6)


@pytest.mark.parametrize(("seed", "epoch", "indices"), [(6, 2, [3]), (5, 3, [3]), (5, 2, [4])])
def test_seed_epoch_and_index_each_change_it(seed, epoch, indices):
    augment = Augment(brightness=0.3, noise=0.1)
    reference = augment(make_batch(1, indices=[3]), 5, 2).images
    other = augment(make_batch(1, indices=indices), seed, epoch).images
    assert (other - reference).abs().mean() > 1e-3


def test_the_global_random_state_is_not_used():
    before = torch.get_rng_state()
    Augment(grid=GRID, camera_names=NAMES, **FULL)(make_batch(), 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_input_is_not_changed():
    batch, same = make_batch(), make_batch()
    Augment(grid=GRID, camera_names=NAMES, **FULL)(batch, 0, 0)
    for one, other in zip(tensors(batch).values(), tensors(same).values(), strict=True):
        assert torch.equal(one, other)


def test_brightness_contrast_and_saturation_of_every_sample():
    """Each one follows its definition; factors differ between samples, not between the cameras of one."""
    image = make_batch(3).images * 0.2 + 0.4  # so that nothing is clipped
    grey = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * image).sum(2, keepdim=True)
    middles = {"brightness": torch.zeros(()), "contrast": grey.mean((-2, -1), keepdim=True), "saturation": grey}
    for key, middle in middles.items():
        changed = Augment(**{key: 0.3})(replace(make_batch(3), images=image), 1, 0).images
        factors = ((changed - middle) * (image - middle)).sum((1, 2, 3, 4)) / (image - middle).square().sum(
            (1, 2, 3, 4)
        )
        assert ((factors > 0.7) & (factors < 1.3)).all()
        assert factors.std() > 0.01
        assert torch.allclose(changed, middle + factors.reshape(3, 1, 1, 1, 1) * (image - middle), atol=1e-4)


def test_hue_rotates_colors_and_keeps_greys():
    image = make_batch(2).images
    image[:, 0] = image[:, 0, :1]  # the first camera sees grey
    changed = Augment(hue=0.3)(replace(make_batch(2), images=image), 0, 0).images
    assert torch.allclose(changed[:, 0], image[:, 0], atol=1e-5)
    assert torch.allclose(changed.amax(2), image.amax(2), atol=1e-5)
    assert (changed[:, 1] - image[:, 1]).abs().mean() > 0.05


def test_noise_has_at_most_the_wanted_deviation_and_images_stay_in_range():
    flat = replace(make_batch(8), images=torch.full((8, 4, 3, H, W), 0.5))
    deviation = (Augment(noise=0.1)(flat, 0, 0).images - 0.5).std(dim=(1, 2, 3, 4))
    assert (deviation < 0.102).all()
    assert deviation.max() > 0.05
    assert deviation.min() < 0.05
    wild = Augment(brightness=1, contrast=1, noise=1)(make_batch(8), 0, 0).images
    assert wild.min() >= 0
    assert wild.max() <= 1


def test_default_augmentation_is_the_identity():
    batch = make_batch()
    assert torch.equal(Augment()(batch, 0, 0).images, batch.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hue": 0.7}, "hue=0.7 must be a number from 0 to 0.5"),
        ({"zoom": (0.8, 1.2), "grid": GRID}, "must be a list of 2 numbers from 1 to 10"),
        ({"zoom": (1.2, 1.1), "grid": GRID}, r"must be \[lowest, highest\]"),
        ({"flip_p": 0.5, "zoom": (1, 2)}, "flip_p and zoom move the ground; pass grid="),
        ({"flip_p": 0.5, "grid": BEVGrid((0.0, 8.0), (-4.0, 6.0), 1.0)}, "not symmetric"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Augment(**options)


def test_the_names_must_be_those_of_the_rig():
    with pytest.raises(InputError, match="4 cameras in the batch but 2 camera_names"):
        Augment(grid=GRID, camera_names=("left", "right"), flip_p=1)(make_batch(), 0, 0)


@pytest.mark.parametrize("path", sorted((CONF / "augment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_an_augmentation(path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+augment={path.stem}"]).augment
    augment = construct("augment", OmegaConf.to_container(config), grid=GRID, camera_names=NAMES)
    changed = augment(make_batch(), 0, 0)
    assert torch.equal(changed.images, make_batch().images) == (path.stem == "none")


@dataclass(frozen=True, eq=False)
class Depth(Target):
    """Hold a third party's target: depth along the optical axis of every pixel, metres, (b, n, H, W)."""

    def flip(self, cameras):
        return self.map(lambda pixels: pixels[:, cameras].flip(-1))

    def select_cameras(self, cameras):
        return self.map(lambda pixels: pixels[:, cameras])

    def hide(self, cells):
        return self


def ground_depth(intrinsics, ego_from_cam):
    """Return the depth of the ground at every pixel by numpy, NaN above the horizon."""
    v, u = np.mgrid[0:H, 0:W].astype(float)
    rays = np.einsum("ij,vuj->vui", np.linalg.inv(intrinsics), np.stack([u, v, np.ones_like(u)], -1))
    down = np.einsum("j,vuj->vu", ego_from_cam[2, :3], rays)
    return np.where(down < -1e-6, -ego_from_cam[2, 3] / np.minimum(down, -1e-6), np.nan)


def depths(batch):
    cameras = batch.cameras
    found = [
        [ground_depth(k.double().numpy(), pose.double().numpy()) for k, pose in zip(*rig, strict=True)]
        for rig in zip(cameras.intrinsics, cameras.ego_from_cam, strict=True)
    ]
    return torch.from_numpy(np.array(found))


def test_a_third_partys_depth_is_flipped_with_its_cameras():
    """The ground is its own mirror image, so its depth by the flipped calibration equals the flipped target."""
    batch = make_batch(2, torch.float64)
    value = depths(batch)
    batch = replace(batch, targets={"depth": Depth(value, ~value.isnan())})
    flipped = Augment(grid=GRID, camera_names=NAMES, flip_p=1)(batch, 0, 0)
    expected, found = depths(flipped), flipped.targets["depth"]
    assert torch.equal(found.valid, ~expected.isnan())
    torch.testing.assert_close(found.value[found.valid], expected[found.valid])
    assert not torch.equal(found.valid, batch.targets["depth"].valid)
    unchanged = Augment(grid=GRID, camera_names=NAMES, flip_p=1e-9)(batch, 0, 0)
    assert torch.equal(unchanged.targets["depth"].value.nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"flip_p": 1},
            r"target 'own' is a Mine, which does not define flip; define Mine.flip, or set "
            r"augment.flip_p=0",
        ),
        ({"zoom": (1.0, 1.5)}, r"does not define zoom; define Mine.zoom, or set augment.zoom=\[1,1\]"),
    ],
)
def test_a_target_without_transformations_is_refused(options, message):
    @dataclass(frozen=True, eq=False)
    class Mine(Target):
        """Define no transformation."""

    batch = make_batch()
    batch = replace(batch, targets={**batch.targets, "own": Mine(value(batch), valid(batch))})
    assert Augment(brightness=0.2)(batch, 0, 0).targets["own"] is batch.targets["own"]
    with pytest.raises(InputError, match=message):
        Augment(grid=GRID, camera_names=NAMES, **options)(batch, 0, 0)


def test_a_bare_tensor_is_refused_as_target(no_shape_checks):
    batch = make_batch()
    with pytest.raises(InputError, match="target 'depth' is a Tensor, which does not define how it is augmented"):
        replace(batch, targets={"depth": torch.ones(3)})


def test_a_batch_selects_samples_and_cameras():
    batch = make_batch()
    some = batch[[2, 0]]
    assert (len(some), some.names) == (2, ["sample 2", "sample 0"])
    for one, whole in zip(tensors(some).values(), tensors(batch).values(), strict=True):
        assert torch.equal(one, whole[[2, 0]])
    turned = batch.select_cameras([3, 1])
    assert torch.equal(turned.images, batch.images[:, [3, 1]])
    assert torch.equal(turned.cameras.ego_from_cam, batch.cameras.ego_from_cam[:, [3, 1]])
    assert turned.cameras.camera_mask[0].tolist() == [True, True]
    assert torch.equal(value(turned), value(batch))
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors(moved).values()} == {"meta"}
    assert isinstance(batch, BEVBatch)
