"""Inverse perspective mapping against OpenCV and against loops over single cells and pixels."""

import cv2
import numpy as np
import pytest
import torch
from oracle import intrinsics, meets_ground, pose, project, rig

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, bev_to_image, ground_pixels, image_to_bev, labels_to_bev

GRID = BEVGrid((-4.0, 16.0), (-10.0, 10.0), 0.5)
SIZE = (96, 160)
FRONT = (intrinsics(90, 92, 78, 44, skew=0.3), pose(4, 14, [1.2, 0.1, 1.6], 2))
LEFT = (intrinsics(80, 80, 80, 48), pose(70, 18, [0.9, 0.5, 1.7]))


def smooth_image(channels=3, size=SIZE, seed=0):
    """Return a random image without edges within a pixel."""
    noise = np.random.default_rng(seed).random((size[0], size[1], channels)).astype(np.float32)
    return np.atleast_3d(cv2.GaussianBlur(noise, (0, 0), 2.0))


def tensor(image, dtype=torch.float64):
    return torch.from_numpy(np.moveaxis(image, -1, 0)[None, None]).to(dtype)


def read_bilinear(image, u, v):
    """Interpolate between four pixels, with the border repeated; integers are pixel centres."""
    height, width = image.shape[:2]
    u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
    left, top = int(min(np.floor(u), width - 2)), int(min(np.floor(v), height - 2))
    a, b = u - left, v - top
    upper = (1 - a) * image[top, left] + a * image[top, left + 1]
    lower = (1 - a) * image[top + 1, left] + a * image[top + 1, left + 1]
    return (1 - b) * upper + b * lower


def cells():
    for row in range(GRID.rows):
        for col in range(GRID.cols):
            x, y = 16 - (row + 0.5) * 0.5, 10 - (col + 0.5) * 0.5
            yield row, col, np.array([x, y, 0.0])


def test_image_to_bev_cell_by_cell():
    image = smooth_image()
    bev, seen = image_to_bev(tensor(image), rig(FRONT, image_size=SIZE), GRID)
    for row, col, point in cells():
        u, v, depth = project(point, *FRONT)
        inside = depth > 1e-3 and -0.5 <= u < SIZE[1] - 0.5 and -0.5 <= v < SIZE[0] - 0.5
        assert seen[0, 0, row, col].item() == inside
        expected = read_bilinear(image, u, v) if inside else np.zeros(3)
        assert bev[0, 0, :, row, col].numpy() == pytest.approx(expected, abs=1e-6)
    assert 100 < seen.sum() < seen.numel() / 2


def test_bev_to_image_pixel_by_pixel():
    bev = smooth_image(2, GRID.shape)
    images, valid = bev_to_image(tensor(bev)[:, 0], rig(FRONT, image_size=SIZE), GRID)
    for v in range(0, SIZE[0], 3):
        for u in range(0, SIZE[1], 3):
            x, y, t = meets_ground(u, v, *FRONT)
            row, col = (16 - x) / 0.5 - 0.5, (10 - y) / 0.5 - 0.5
            inside = t > 0 and -4 < x <= 16 and -10 < y <= 10
            assert valid[0, 0, v, u].item() == inside
            expected = read_bilinear(bev, col, row) if inside else np.zeros(2)
            assert images[0, 0, :, v, u].numpy() == pytest.approx(expected, abs=1e-6)


def warped(image, source_from_target, shape):
    """Warp by OpenCV, which samples the source at multiples of 1/32 pixel."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(
        image, source_from_target, (shape[1], shape[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def slope(image):
    """Return the largest change between neighbouring pixels: 1/64 pixel on both axes causes 1/32 of it."""
    return max(np.abs(np.diff(image, axis=0)).max(), np.abs(np.diff(image, axis=1)).max())


@pytest.mark.parametrize("camera", [FRONT, LEFT], ids=["front", "left"])
def test_image_to_bev_as_opencv_warps(camera):
    image = smooth_image()
    k, p = camera
    pixel_from_ground = k @ np.linalg.inv(p)[:3, [0, 1, 3]]
    ground_from_cell = np.array([[0, -0.5, 15.75], [-0.5, 0, 9.75], [0, 0, 1]])
    expected = warped(image, pixel_from_ground @ ground_from_cell, GRID.shape)
    bev, seen = image_to_bev(tensor(image, torch.float32), rig(camera, image_size=SIZE, dtype=torch.float32), GRID)
    seen = seen[0, 0].numpy()
    assert seen.sum() > 100
    difference = np.abs(np.moveaxis(bev[0, 0].numpy(), 0, -1) - expected)[seen]
    assert difference.max() < slope(image) / 32 + 1e-5


def test_bev_to_image_as_opencv_warps():
    bev = smooth_image(3, GRID.shape)
    k, p = FRONT
    pixel_from_ground = k @ np.linalg.inv(p)[:3, [0, 1, 3]]
    ground_from_cell = np.array([[0, -0.5, 15.75], [-0.5, 0, 9.75], [0, 0, 1]])
    expected = warped(bev, np.linalg.inv(ground_from_cell) @ np.linalg.inv(pixel_from_ground), SIZE)
    images, valid = bev_to_image(
        tensor(bev, torch.float32)[:, 0], rig(FRONT, image_size=SIZE, dtype=torch.float32), GRID
    )
    valid = valid[0, 0].numpy()
    assert valid.sum() > 1000
    difference = np.abs(np.moveaxis(images[0, 0].numpy(), 0, -1) - expected)[valid]
    assert difference.max() < slope(bev) / 32 + 1e-5


def test_ground_behind_the_camera_is_not_visible():
    """The ground behind a camera pitched up projects into its image but is not visible."""
    upward = (intrinsics(90, 90, 80, 48), pose(0, -15, [0, 0, 1.6]))
    bev, seen = image_to_bev(torch.ones(1, 1, 1, *SIZE).double(), rig(upward, image_size=SIZE), GRID)
    wrapped = 0
    for row, col, point in cells():
        u, v, depth = project(point, *upward)
        if depth < 0 and -0.5 <= u < SIZE[1] - 0.5 and -0.5 <= v < SIZE[0] - 0.5:
            wrapped += 1
            assert not seen[0, 0, row, col]
            assert bev[0, 0, 0, row, col] == 0
    assert wrapped > 50


def test_pixels_above_the_horizon_show_no_ground():
    camera = (intrinsics(90, 90, 80, 48), pose(0, 0, [0, 0, 1.6]))
    big = BEVGrid((-100.0, 100.0), (-100.0, 100.0), 1.0)
    _, valid = bev_to_image(torch.ones(1, 1, 200, 200).double(), rig(camera, image_size=SIZE), big)
    assert not valid[0, 0, :49].any()  # the horizon is row 48
    assert valid[0, 0, 52:].all()


def test_bev_to_image_and_back_is_the_identity():
    """A view projected into an image and back is the same where the image resolves the cells."""
    bev = smooth_image(1, GRID.shape)
    cameras = rig((intrinsics(900, 920, 780, 440), FRONT[1]), image_size=(960, 1600))
    images, valid = bev_to_image(tensor(bev)[:, 0], cameras, GRID)
    again, seen = image_to_bev(images, cameras, GRID)
    whole, _ = image_to_bev(valid[:, :, None].double(), cameras, GRID)  # cells whose four pixels are all valid
    near = torch.norm(GRID.centers(), dim=-1) < 8
    inner = seen[0, 0] & (whole[0, 0, 0] > 0.999) & near
    assert inner.sum() > 50
    assert (again[0, 0, 0] - tensor(bev)[0, 0, 0])[inner].abs().max() < 0.01


def test_a_dropped_camera_shows_nothing_and_others_are_untouched():
    image = torch.cat([tensor(smooth_image()), tensor(smooth_image(seed=1))], dim=1)
    both, seen_both = image_to_bev(image, rig(FRONT, LEFT, image_size=SIZE), GRID)
    one, seen_one = image_to_bev(image, rig(FRONT, LEFT, image_size=SIZE, mask=[False, True]), GRID)
    assert seen_both[0, 0].any()
    assert not seen_one[0, 0].any()
    assert (one[0, 0] == 0).all()
    assert torch.equal(one[0, 1], both[0, 1])


def test_every_sample_has_its_own_calibration():
    image = smooth_image()
    a, b = rig(FRONT, image_size=SIZE), rig(LEFT, image_size=SIZE)
    both = Cameras(torch.cat([a.intrinsics, b.intrinsics]), torch.cat([a.ego_from_cam, b.ego_from_cam]), SIZE)
    together, _ = image_to_bev(tensor(image).expand(2, -1, -1, -1, -1), both, GRID)
    assert torch.equal(together[0], image_to_bev(tensor(image), a, GRID)[0][0])
    assert torch.equal(together[1], image_to_bev(tensor(image), b, GRID)[0][0])


def test_gradients_with_respect_to_images_and_calibration():
    grid = BEVGrid((4.0, 8.0), (-2.0, 2.0), 2.0)
    size = (12, 16)
    cameras = rig((intrinsics(9.1, 9.3, 7.7, 4.4), pose(3, 14, [0, 0.1, 1.6])), image_size=size)
    k, p = cameras.intrinsics.requires_grad_(), cameras.ego_from_cam.requires_grad_()
    image = tensor(smooth_image(2, size)).requires_grad_()
    bev = torch.rand(1, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert ground_pixels(cameras, grid)[1].sum() >= 3
    assert torch.autograd.gradcheck(lambda x, k, p: image_to_bev(x, Cameras(k, p, size), grid)[0], (image, k, p))
    assert torch.autograd.gradcheck(lambda x, k, p: bev_to_image(x, Cameras(k, p, size), grid)[0], (bev, k, p))


def test_autocast_samples_in_full_precision():
    cameras = rig(FRONT, image_size=SIZE, dtype=torch.float32)
    image = tensor(smooth_image(), torch.float32)
    expected, _ = image_to_bev(image, cameras, GRID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = image_to_bev(image, cameras, GRID)
        back, _ = bev_to_image(got[:, 0], cameras, GRID)
    assert got.dtype == back.dtype == torch.float32
    assert torch.equal(got, expected)


def test_labels_to_bev_cell_by_cell():
    """Two overlapping cameras, one dropped camera, overlapping classes, and unlabelled pixels."""
    random = np.random.default_rng(2)
    blocks = random.choice([0, 1, 2, 3, 255], (3, SIZE[0] // 8, SIZE[1] // 8), p=[0.2, 0.2, 0.2, 0.2, 0.2])
    labels = blocks.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    rear = (intrinsics(80, 80, 80, 48), pose(180, 18, [-0.5, 0, 1.6]))
    views = [FRONT, (LEFT[0], pose(30, 18, [0.9, 0.5, 1.7])), rear]
    classes = [(1,), (1, 2), (3,)]
    target, known = labels_to_bev(
        torch.from_numpy(labels)[None], rig(*views, image_size=SIZE, mask=[True, True, False]), GRID, classes
    )
    twice = unknown = 0
    for row, col, point in cells():
        ids = []
        for number in (0, 1):
            u, v, depth = project(point, *views[number])
            if depth > 1e-3 and -0.5 <= u < SIZE[1] - 0.5 and -0.5 <= v < SIZE[0] - 0.5:
                ids.append(labels[number, int(np.floor(v + 0.5)), int(np.floor(u + 0.5))])
        named = [label for label in ids if label != 255]
        twice += len(set(named)) == 2
        unknown += bool(ids) and not named
        assert known[0, row, col].item() == bool(named)
        assert target[0, :, row, col].tolist() == [any(label in members for label in named) for members in classes]
    assert twice > 20
    assert unknown > 20


def test_sizes_are_compared():
    cameras = rig(FRONT, image_size=SIZE)
    with pytest.raises(InputError, match=r"image_to_bev: images are \(48, 80\).*calibrated for \(96, 160\)"):
        image_to_bev(torch.zeros(1, 1, 3, 48, 80), cameras, GRID)
    with pytest.raises(InputError, match=r"labels_to_bev: images are \(48, 80\)"):
        labels_to_bev(torch.zeros(1, 1, 48, 80, dtype=torch.uint8), cameras, GRID, [(1,)])
    with pytest.raises(InputError, match=r"bev is \(20, 40\) cells but the grid has \(40, 40\)"):
        bev_to_image(torch.zeros(1, 1, 20, 40), cameras, GRID)
