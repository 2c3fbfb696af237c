"""The column MLP against the published module, and against loops over columns, cells and cameras."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from polar_oracle import Depths, depths_by_scale, read_maps
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import ColumnMLP, FeatureShape
from bevreshape.reshapers.column_mlp import ColumnGeometry

FIXTURE = Path(__file__).parent / "fixtures" / "column_mlp.pt"


def scales(cameras: int) -> tuple[FeatureShape, FeatureShape]:
    fine = FeatureShape(channels=3, height=4, width=6, cameras=cameras, stride=8, offset_px=3.5)
    return fine, replace(fine, height=2, width=3, stride=16, offset_px=2.0)


def published() -> tuple[ColumnMLP, dict[str, Tensor]]:
    """A ``TransformerPyramid`` of tom-roddick/mono-semantic-maps at commit f6b0f52, as it ran: weights, features, the
    windows' rows, the positions it gave ``grid_sample``, and its output."""
    saved = torch.load(FIXTURE, weights_only=True)
    sources = [
        FeatureShape(4, *saved[f"features.{i}"].shape[-2:], stride=8 * 2**i, offset_px=(8 * 2**i - 1) / 2)
        for i in range(5)
    ]
    reshaper = ColumnMLP(
        sources,
        BEVGrid((0.5, 12.0), (-2.0, 2.0), 0.5),
        dim=16,
        depth_m=(0.5, 1.0, 2.5, 5.0, 10.0, 12.0),
        rows=(3, 3, 3, 4, 4),
    )
    reshaper.load_original({k.removeprefix("state."): v for k, v in saved.items() if k.startswith("state.")})
    return reshaper, saved


def test_published_weights_and_positions_give_the_published_output() -> None:
    reshaper, saved = published()
    columns, bins, scale = [], [], []
    for i in reversed(range(5)):  # the nearest band first, as its output is laid out
        x, z = saved[f"grid.{i}"].flatten(1, 2).unbind(-1)  # -1..1 between a map's borders
        columns.append(((x + 1) * reshaper.sources[i].width - 1) / 2)
        bins.append(((z + 1) * reshaper.maps.bands[i].bins - 1) / 2)
        scale.append(torch.full_like(x, i, dtype=torch.long))
    column, bin_, number = (torch.cat(values, dim=1)[:, None] for values in (columns, bins, scale))  # b n p
    positions = reshaper.maps.corners(column, bin_, number, torch.ones_like(column))
    tops = torch.stack([saved[f"top.{i}"] for i in range(5)], dim=-1)[:, None]  # b n scales
    features = tuple(saved[f"features.{i}"][:, None] for i in range(5))
    torch.testing.assert_close(
        reshaper.gather(features, ColumnGeometry(positions, reshaper.windows(tops), None)),
        saved["output"],
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_one_published_scale_is_a_convolution_along_the_columns(groups: int) -> None:
    """The weights of a ``DenseTransformer``, on all rows, by the layers that it is made of."""
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 16, 1), torch.nn.GroupNorm(16, 16)
    fc = torch.nn.Conv1d(16 * 4, 16 * 5, 1, groups=groups)
    layers = {"conv": conv, "bn": norm, "fc": fc}
    state = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    source = FeatureShape(channels=3, height=4, width=6, stride=8)
    reshaper = ColumnMLP(source, BEVGrid((0, 8), (-4, 4), 1.0), dim=16, groups=groups, depth_m=(1, 6)).load_original(
        state
    )
    x = torch.randn(2, 3, 4, 6)
    expected = fc(norm(conv(x)).relu().flatten(1, 2)).unflatten(1, (16, 5))  # b d bins w
    polar = reshaper.scales[0](x[:, None], (), None)[:, 0]  # b w bins d
    torch.testing.assert_close(polar.permute(0, 3, 2, 1), expected, atol=1e-5, rtol=1e-5)


def test_the_published_configuration_is_derived() -> None:
    strides = [8, 16, 32, 64, 128]
    sources = [FeatureShape(2, math.ceil(600 / s), math.ceil(800 / s), stride=s) for s in strides]
    reshaper = ColumnMLP(sources, BEVGrid((1, 50), (-25, 25), 0.5), dim=2, focal_px=630)
    assert [band.near_m for band in reshaper.maps.bands] == [39.0, 19.5, 9.5, 4.5, 1.0]
    assert [band.bins for band in reshaper.maps.bands[1:]] == [39, 20, 10, 7]
    assert reshaper.rows == [13, 13, 13, None, None]  # 14 of 10 rows and 30 of 5 there


MIDDLE_M = -1.0
"""Of the heights that W sees by default, −4 m to 2 m from the camera."""


def norm_relu(x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(d, k, w), normalised in groups of channels."""
    parts = np.split(x, groups)
    x = np.concatenate([(part - part.mean()) / np.sqrt(part.var() + 1e-5) for part in parts])
    return np.maximum(x * weight[:, None, None] + bias[:, None, None], 0)


def polar_map(
    reshaper: ColumnMLP, s: int, depths: Depths, rows: int | None, x: np.ndarray, k: np.ndarray, pose: np.ndarray
) -> np.ndarray:
    """The (d, bins, w) map of one image, (c, h, w), by loops over columns and bins; ``rows`` ``None`` for all."""
    weights = {name: value.numpy() for name, value in reshaper.scales[s].state_dict().items()}
    source = reshaper.sources[s]
    h, w, d = source.height, source.width, reshaper.out_channels
    if rows is None:
        window = x
    else:
        ahead = np.array([pose[0, 2], pose[1, 2], 0]) / np.hypot(pose[0, 2], pose[1, 2])
        point = pose[:3, :3].T @ (ahead * depths.near_m + [0, 0, MIDDLE_M])
        top = ((k @ point / point[2])[1] - source.offset_px) / source.stride - (rows - 1) / 2
        window = np.zeros((source.channels, rows, w))
        for i in range(rows):
            for row in range(h):  # linear between rows, zeros beyond the first and the last
                window[:, i] += max(0, 1 - abs(top + i - row)) * x[:, row]
    y = np.einsum("dc,ckw->dkw", weights["project.weight"], window) + weights["project.bias"][:, None, None]
    y = norm_relu(y, math.gcd(16, d), weights["norm.weight"], weights["norm.bias"])
    out = np.zeros((d, depths.bins, w))
    per_group = d // reshaper.groups
    for column in range(w):
        for channel in range(d):
            group, within = divmod(channel, per_group)
            seen = y[group * per_group : (group + 1) * per_group, :, column].ravel()
            for z in range(depths.bins):
                at = z * per_group + within
                out[channel, z, column] = weights["weight"][group, at] @ seen + weights["bias"][group, 0, at]
    return out


@pytest.mark.parametrize(("groups", "rows"), [(1, None), (2, (3, 5))])
@pytest.mark.parametrize("mask", [None, [True, True, False, True, True, True]])
def test_columns_cells_and_cameras_one_by_one(groups, rows, mask, rig) -> None:
    grid = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 0.5)
    cameras = rig(1, 6)
    if mask is not None:
        cameras = replace(cameras, camera_mask=torch.tensor([mask]))
    torch.manual_seed(0)
    reshaper = ColumnMLP(scales(6), grid, dim=4, groups=groups, depth_m=(0.6, 2.0, 4.1), bin_m=0.4, rows=rows).double()
    for parameter in reshaper.parameters():
        torch.nn.init.normal_(parameter)
    reshaper.requires_grad_(False)
    x = [torch.randn(1, 6, 3, *shape, dtype=torch.float64) for shape in ((4, 6), (2, 3))]
    bev = reshaper(x, cameras)[0].numpy()
    poses, intrinsics = cameras.ego_from_cam[0].double().numpy(), cameras.intrinsics[0].double().numpy()
    depths = depths_by_scale((8, 16), (0.6, 2.0, 4.1), 0.4)
    seen = rows or (None, None)  # 6 m of height fill more than the image at the near end of both bands
    maps = [
        [polar_map(reshaper, s, depths[s], seen[s], x[s][0, n].numpy(), intrinsics[n], poses[n]) for n in range(6)]
        for s in range(2)
    ]
    expected, counts, used = read_maps(reshaper, depths, maps, cameras)
    np.testing.assert_allclose(bev, expected, atol=2e-4)
    assert {0, 1, 2} <= set(counts.ravel())  # the rig covers all cases
    assert used == {0, 1}


@pytest.mark.parametrize(("stride", "offset_px"), [(2, 0.0), (2, 0.5), (2, 1.0), (4, 1.5)])
@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (7, 0), (7, 5), (3, 2)])
def test_a_point_drawn_at_a_cells_projection_appears_in_its_cell(stride, offset_px, cell) -> None:
    grid = BEVGrid((4.0, 12.0), (-3.0, 3.0), 1.0)
    yaw, at, focal, centre_u, centre_v, size = 0.12, np.array([0.3, -0.4, 6.0]), 300.0, 231.0, 60.0, (560, 460)
    pose = np.eye(4)
    pose[:3, :3] = np.array(
        [[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]]
    )  # columns: right, down, ahead
    pose[:3, 3] = at
    intrinsics = np.array([[focal, 0, centre_u], [0, focal, centre_v], [0, 0, 1]])
    cameras = Cameras(torch.tensor(intrinsics)[None, None].float(), torch.tensor(pose)[None, None].float(), size)
    h, w = size[0] // stride, size[1] // stride
    reshaper = ColumnMLP(FeatureShape(1, h, w, 1, stride, offset_px), grid, dim=1, depth_m=(2.0, 13.0), bin_m=0.25)
    with torch.no_grad():  # W lays every row below the horizon where it shows the floor
        v = np.maximum(np.arange(h) * stride + offset_px, centre_v + 1)
        bins = (focal * 6.0 / (v - centre_v) - 2.0) / 0.25 - 0.5
        reshaper.scales[0].weight.copy_(torch.tensor(np.maximum(0, 1 - np.abs(bins - np.arange(44)[:, None]))))
        reshaper.scales[0].bias.zero_()
        reshaper.scales[0].project.weight.fill_(1.0)
    x, y = 12.0 - (cell[0] + 0.5), 3.0 - (cell[1] + 0.5)
    point = pose[:3, :3].T @ (np.array([x, y, 0.0]) - at)
    u, v, _ = intrinsics @ point / point[2]
    pixel_v, pixel_u = np.mgrid[:h, :w] * stride + offset_px
    spot = np.exp(-((pixel_u - u) ** 2 + (pixel_v - v) ** 2) / (2 * 4.0**2))
    bev = reshaper(torch.from_numpy(spot).float()[None, None], cameras)[0, 0].detach()
    assert np.unravel_index(bev.argmax().item(), grid.shape) == cell
    assert (bev > 0.5 * bev.max()).sum() == 1


def test_cells_outside_every_field_of_view_are_zero(rig) -> None:
    reshaper = ColumnMLP(scales(1)[0], BEVGrid((-4.0, 4.0), (-3.0, 3.0), 1.0), dim=4)
    bev = reshaper(torch.randn(1, 1, 3, 4, 6), rig(1, 1))
    assert (bev[:, :, 4:] == 0).all()  # behind the camera
    assert (bev[:, :, 3, [0, 5]] == 0).all()  # to the sides
    assert (bev[:, :, 0, 2:4].abs().sum(1) > 0).all()


def test_nan_of_a_camera_affects_its_own_cells_only(rig) -> None:
    reshaper = ColumnMLP(scales(6)[0], BEVGrid((-4.0, 4.0), (-3.0, 3.0), 1.0), dim=4)
    x = torch.randn(1, 6, 3, 4, 6)
    x[:, 0] = torch.nan
    bev = reshaper(x, rig(1, 6))[0]
    assert bev[:, 0, 2:4].isnan().all()
    assert bev[:, 5:].isfinite().all()


def test_a_nan_horizon_does_not_crash() -> None:
    """A NaN as an index would end the process."""
    reshaper = ColumnMLP(scales(1)[0], BEVGrid((0, 8), (-4, 4), 1.0), rows=[3])
    rows = reshaper.windows(torch.tensor([[[torch.nan], [torch.inf], [-torch.inf]]])).rows
    assert rows.min() >= 0
    assert rows.max() < scales(1)[0].height


def test_a_window_follows_the_horizon(rig) -> None:
    """Images shifted down by a row and a half, with their calibration, give the same result."""
    source = FeatureShape(2, 12, 6, 1, 4, 1.5)
    reshaper = ColumnMLP(source, BEVGrid((0.0, 4.0), (-3.0, 3.0), 1.0), dim=32, rows=[3], height_m=(-1.5, 0.5))
    cameras = rig(1, 1, (48, 24))
    lower = Cameras(cameras.intrinsics.clone(), cameras.ego_from_cam, cameras.image_size)
    lower.intrinsics[..., 1, 2] += 6.0
    v = torch.arange(12.0)[:, None] + torch.zeros(6)
    ramp = torch.stack([v, 3 - v / 2])[None, None]  # linear, for it is read between rows; 32 channels have norms of two
    moved = torch.stack([v - 1.5, 3 - (v - 1.5) / 2])[None, None]
    torch.testing.assert_close(reshaper(moved, lower), reshaper(ramp, cameras), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(reshaper(moved, cameras), reshaper(ramp, cameras), atol=1e-2)


def test_nan_of_a_dropped_camera_does_not_spread(rig) -> None:
    cameras = replace(rig(1, 6), camera_mask=torch.arange(6)[None] != 2)
    x = torch.randn(1, 6, 3, 4, 6)
    x[:, 2] = torch.nan
    cameras.ego_from_cam[:, 2] = torch.nan
    for rows in (None, [2]):
        reshaper = ColumnMLP(scales(6)[0], BEVGrid((-4.0, 4.0), (-3.0, 3.0), 1.0), dim=4, rows=rows)
        bev = reshaper(x, cameras)
        bev.sum().backward()
        assert bev.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in reshaper.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "dim=64 cannot be divided into groups=3"),
        ({"depth_m": (1, 5)}, r"2 borders but 2 scales need 3"),
        ({"depth_m": (1, 5, 3)}, "must ascend"),
        ({"rows": [3]}, r"rows=\[3\] must be 2 numbers"),
        ({"height_m": (2, -4)}, "must ascend"),
    ],
)
def test_invalid_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        ColumnMLP(scales(1), BEVGrid((0, 8), (-4, 4), 1.0), **options)


def test_weights_that_do_not_fit_are_refused() -> None:
    reshaper, saved = published()
    state = {k.removeprefix("state."): v for k, v in saved.items() if k.startswith("state.")}
    with pytest.raises(InputError, match=r"scales\.4\.bias is missing there; scales\.4\.extra is unknown here"):
        reshaper.load_original({k.replace("4.fc.bias", "4.extra"): v for k, v in state.items()})
    other = ColumnMLP(reshaper.sources, reshaper.grid, dim=16, depth_m=reshaper.maps.edges, rows=(3, 3, 3, 4, 5))
    with pytest.raises(InputError, match=r"scales\.4\.weight is \(1, 16, 64\) there and \(1, 16, 80\) here"):
        other.load_original(state)
