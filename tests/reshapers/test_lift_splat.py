"""Lift-splat against the published module, against loops over points, and against single points."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import rounding
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import FeatureShape, FixedRig, LiftSplat

GRID = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 0.5)
SOURCE = FeatureShape(5, 4, 6, 6, stride=8, offset_px=3.5)


def lift_splat(source: FeatureShape = SOURCE, grid: BEVGrid = GRID, **options) -> LiftSplat:
    torch.manual_seed(0)
    return LiftSplat(source, grid, **{"depths_m": (0.5, 6.0, 0.5), "height_m": (-0.5, 1.0), "channels": 3} | options)


def features(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 5, 4, 6, generator=torch.Generator().manual_seed(1))


def double(cameras: Cameras) -> Cameras:
    return replace(cameras, intrinsics=cameras.intrinsics.double(), ego_from_cam=cameras.ego_from_cam.double())


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """What src/models.py of github.com/nv-tlabs/lift-splat-shoot, commit d74598c, gave for random images.

    Its trunk was left out, so that ``features`` are what its depthnet reads.
    """
    return torch.load(Path(__file__).parent / "fixtures" / "lift_splat.pt", weights_only=True)


@pytest.fixture
def same_as_published(published) -> LiftSplat:
    # its pixels, a linspace from the first to the last, happen to be whole steps of 21 here
    source = FeatureShape(7, 4, 6, 3, stride=21)
    reshaper = LiftSplat(source, BEVGrid((-6, 6), (-4, 4), 0.5), depths_m=[1, 9, 0.75], height_m=[-1, 3], channels=5)
    prefix = "state_dict."
    return reshaper.load_original({k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)})


def test_output_equals_the_published_module_on_its_points(published, same_as_published) -> None:
    expected = published["bev"].flip(-2, -1)  # X ahead and Y to the left become rows and columns
    located = same_as_published.place(published["points"], truncate=True)
    bev = same_as_published.gather(published["features"], located)
    torch.testing.assert_close(bev, expected, atol=1e-4, rtol=0)


def test_points_outside_the_grid_are_left_out_where_the_published_module_keeps_them(
    published, same_as_published
) -> None:
    points = published["points"]
    truncated, bev = (
        same_as_published.gather(published["features"], same_as_published.place(points, truncate=truncate))
        for truncate in (True, False)
    )
    x, y, z = points.unbind(-1)
    inside = (x >= -6) & (x < 6) & (y >= -4) & (y < 4) & (z >= -1) & (z < 3)
    assert torch.equal(same_as_published.place(points).counts, inside)
    moved = points.clone()
    moved[~inside] = 100.0
    expected = same_as_published.gather(published["features"], same_as_published.place(moved, truncate=True))
    torch.testing.assert_close(bev, expected)
    assert (truncated - bev).abs().max() > 0.05
    only_high = points.clone()
    only_high[z < -1] = 100.0  # what is left differs in the last row and column, those next to the lower edges
    border = same_as_published.gather(published["features"], same_as_published.place(only_high, truncate=True)) - bev
    assert border[..., -1, :].abs().max() > 0.01
    assert border[..., -1].abs().max() > 0.01
    torch.testing.assert_close(
        border[..., :-1, :-1], torch.zeros_like(border[..., :-1, :-1]), atol=rounding(64, bev), rtol=0
    )


def test_points_are_the_published_ones_where_pixels_agree(published, same_as_published) -> None:
    cameras = Cameras(published["intrinsics"], published["ego_from_cam"], (64, 106))
    torch.testing.assert_close(same_as_published.points(cameras), published["points"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("names", [{"depthnet.weight", "depthnet.bias"}, {"camencode.depthnet.weight", "rest"}])
def test_incomplete_original_weights_are_refused(names) -> None:
    given = {name: torch.ones(14, 5, 1, 1) if "weight" in name else torch.ones(14) for name in names}
    if "rest" not in names:
        assert (lift_splat().load_original(given).depthnet.bias == 1).all()
        with pytest.raises(InputError, match=r"\(14, 5, 1, 1\) there and \(13, 5, 1, 1\) here"):
            lift_splat(channels=2).load_original(given)
        return
    with pytest.raises(InputError, match=r"depthnet\.bias is missing there; rest is unknown here"):
        lift_splat().load_original(given)
    with pytest.raises(InputError, match="rest is unknown here"):
        lift_splat().load_original(given | {"camencode.depthnet.bias": torch.ones(14)})


def looped(reshaper: LiftSplat, x: np.ndarray, cameras: Cameras, mask: np.ndarray) -> np.ndarray:
    """One sample (n, c, h, w), point by point in float64."""
    weight, bias = reshaper.depthnet.weight[:, :, 0, 0].detach().numpy(), reshaper.depthnet.bias.detach().numpy()
    bev = np.zeros((3, *GRID.shape))
    for n in range(6):
        for i in range(4):
            for j in range(6):
                lifted = weight @ x[n, :, i, j] + bias
                chances = np.exp(lifted[:11]) / np.exp(lifted[:11]).sum()
                in_camera = np.linalg.inv(cameras.intrinsics[0, n].numpy()) @ [8 * j + 3.5, 8 * i + 3.5, 1.0]
                for k in range(11):
                    point = (cameras.ego_from_cam[0, n].numpy() @ [*(in_camera * (0.5 + 0.5 * k)), 1.0])[:3]
                    row, col = int(np.floor((4 - point[0]) / 0.5)), int(np.floor((3 - point[1]) / 0.5))
                    if mask[n] and 0 <= row < 16 and 0 <= col < 12 and -0.5 <= point[2] < 1.0:
                        bev[:, row, col] += chances[k] * lifted[11:]
    return bev


@pytest.mark.parametrize("mask", [None, [True, True, False, True, False, True]])
def test_every_point_one_by_one(mask, rig) -> None:
    reshaper, x = lift_splat().double(), features().double()
    cameras = double(rig(2, 6))
    if mask is not None:
        cameras = replace(cameras, camera_mask=torch.tensor([mask, mask]))
    bev = reshaper(x, cameras).detach()
    for sample in range(2):
        one = Cameras(cameras.intrinsics[sample:], cameras.ego_from_cam[sample:], cameras.image_size)
        expected = looped(reshaper, x[sample].numpy(), one, np.ones(6, dtype=bool) if mask is None else np.array(mask))
        np.testing.assert_allclose(bev[sample].numpy(), expected, atol=1e-10)
    assert 50 < (bev[0].abs().sum(0) > 0).sum() < GRID.rows * GRID.cols  # some cells have points, some none


@pytest.mark.parametrize(("stride", "offset_px"), [(8, 0.0), (8, 3.5), (8, 7.0), (4, 1.5)])
def test_points_lie_on_the_rays_of_feature_centres(stride, offset_px, rig) -> None:
    source = FeatureShape(5, 32 // stride, 48 // stride, 6, stride, offset_px)
    reshaper, cameras = lift_splat(source, depths_m=[2, 5, 0.75]), rig(2, 6)
    points = reshaper.points(cameras)
    for n in range(6):
        seen, depth = cameras.project(points[:, n].flatten(1, 3))
        seen, depth = (value[:, n].unflatten(1, (4, source.height, source.width)) for value in (seen, depth))
        for k, true_depth in enumerate([2.0, 2.75, 3.5, 4.25]):
            torch.testing.assert_close(depth[:, k], torch.full_like(depth[:, k], true_depth), atol=1e-4, rtol=0)
            for i, j in ((0, 0), (source.height - 1, source.width - 1), (1, 2)):
                torch.testing.assert_close(
                    seen[:, k, i, j],
                    torch.tensor([[stride * j + offset_px, stride * i + offset_px]]).expand(2, 2),
                    atol=1e-3,
                    rtol=0,
                )


def camera_above() -> Cameras:
    """Return a camera 12 m above (3, 0), pointing straight down: 10 pixels are a metre of the ground."""
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    pose[:3, 3] = torch.tensor([3.0, 0.0, 12.0])
    intrinsics = torch.tensor([[120.0, 0, 39.5], [0, 120.0, 49.5], [0, 0, 1]])
    return Cameras(intrinsics[None, None], pose[None, None], (100, 80))


@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (7, 0), (7, 5), (3, 2)])
def test_a_feature_drawn_at_a_cells_projection_appears_in_its_cell(cell) -> None:
    grid, cameras = BEVGrid((-1.0, 7.0), (-3.0, 3.0), 1.0), camera_above()
    reshaper = LiftSplat(FeatureShape(1, 50, 40, 1, 2, 2.5), grid, depths_m=[11, 13, 1], height_m=[-0.5, 0.5])
    chances = torch.tensor([0.0, 1.0])[:, None, None].expand(1, 1, 2, 50, 40)  # all of it 12 m away, on the ground
    x, y = 7.0 - (cell[0] + 0.5), 3.0 - (cell[1] + 0.5)
    for ahead, left, expected in ((0.0, 0.0, 1), (0.44, 0.44, 1), (-0.44, -0.44, 1), (0.56, 0.0, 0), (0.0, -0.56, 0)):
        u, v = 39.5 - 10 * (y + left), 49.5 - 10 * (x + ahead - 3.0)
        context = torch.zeros(1, 1, 1, 50, 40)
        context[..., round((v - 2.5) / 2), round((u - 2.5) / 2)] = 1.0
        bev = reshaper.splat(chances, context, reshaper.locate(cameras))
        assert bev[0, 0][cell] == expected
        assert bev.sum() <= 1


def test_a_cell_that_no_camera_sees_is_zero(rig) -> None:
    reshaper = lift_splat(replace(SOURCE, cameras=1))
    bev = reshaper(features()[:, :1], rig(2, 1))  # facing ahead
    assert (bev[:, :, GRID.rows // 2 :] == 0).all()
    assert (bev[:, :, : GRID.rows // 2] != 0).any()


def test_a_dropped_camera_may_hold_nan(rig) -> None:
    cameras = replace(rig(2, 6), camera_mask=torch.tensor([[True, False, True, True, True, True]]).expand(2, 6))
    reshaper, x = lift_splat(), features()
    expected = reshaper(x, cameras)
    x[:, 1] = torch.nan
    bev = reshaper(x.requires_grad_(), cameras)
    assert torch.equal(bev, expected)
    bev.square().sum().backward()
    assert x.grad is not None
    assert (x.grad[:, 1] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in reshaper.parameters())
    broken = replace(cameras, intrinsics=torch.where(cameras.full_mask[..., None, None], cameras.intrinsics, 0.0))
    assert torch.equal(reshaper(x, broken), expected)


@pytest.mark.parametrize("fixed", [False, True])
def test_exported_sum_equals_embedding_bags(fixed, rig, monkeypatch) -> None:
    reshaper, x = lift_splat(), features()
    given = (x,) if fixed else (x, rig(2, 6))
    if fixed:
        reshaper = FixedRig(reshaper.eval(), rig(1, 6))
    expected = reshaper(*given)
    with monkeypatch.context() as patch:
        patch.setattr("bevreshape.reshapers.lift_splat.is_exporting", lambda: True)
        patch.setattr(torch.nn.functional, "embedding_bag", None)
        bev = reshaper(*given)
    torch.testing.assert_close(bev, expected, atol=1e-6, rtol=1e-5)


def test_result_is_channels_last(rig) -> None:
    bev = lift_splat()(features(), rig(2, 6))
    assert bev.is_contiguous(memory_format=torch.channels_last)


def test_depth_is_the_distribution_that_is_splatted(rig) -> None:
    reshaper, x, cameras = lift_splat(), features(), rig(2, 6)
    logits, context = reshaper.lift(x)
    assert torch.equal(reshaper.depth(x), logits)
    assert logits.shape == (2, 6, 11, 4, 6)
    torch.testing.assert_close(
        reshaper.splat(logits.softmax(2), context, reshaper.locate(cameras)), reshaper(x, cameras)
    )


def test_depth_loss_is_the_cross_entropy_of_the_pixels_whose_depth_is_known() -> None:
    reshaper = lift_splat()  # 0.5, 1.0, ... 5.5 m
    logits = torch.randn(2, 6, 11, 4, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    depth_m = torch.rand(2, 6, 4, 6, generator=torch.Generator().manual_seed(3)) * 8
    depth_m[0, 0, 0, 0] = torch.nan
    depth_m[0, 0, 0, 1] = torch.inf
    valid = torch.rand(2, 6, 4, 6, generator=torch.Generator().manual_seed(4)) < 0.7
    for mask in (None, valid):
        losses = []
        for at in np.ndindex(2, 6, 4, 6):
            if 0.25 <= depth_m[at] < 5.75 and (mask is None or mask[at]):
                k = np.abs(np.arange(0.5, 6.0, 0.5) - depth_m[at].item()).argmin()
                values = logits.detach()[at[0], at[1], :, at[2], at[3]].double().numpy()
                losses.append(np.log(np.exp(values).sum()) - values[k])
        assert 50 < len(losses) < 288
        assert reshaper.depth_loss(logits, depth_m, mask).item() == pytest.approx(np.mean(losses), rel=1e-5)
    nothing = reshaper.depth_loss(logits, depth_m, torch.zeros_like(valid))
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths_m": [4, 45]}, "must be a list of 3 numbers"),
        ({"depths_m": [45, 4, 1]}, r"depths_m=\[45.0, 4.0, 1.0\].*first < end"),
        ({"depths_m": [1, 40, 0]}, "must be a list of 3 numbers from 0.001"),
        ({"height_m": [3, -1]}, r"height_m=\[3.0, -1.0\].*ascend"),
    ],
)
def test_invalid_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        lift_splat(**options)
