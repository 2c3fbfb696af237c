"""Bilinear volume sampling against the original, single projections, and points drawn into features."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rigs import tall_camera
from rounding import rounding

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import Bilinear, FeatureShape

ORIGINAL = Path(__file__).parent / "fixtures" / "bilinear.pt"
"""Inputs and outputs of ``Segnet.forward`` of github.com/aharley/simple_bev at
be46f0ef71960c233341852f3d9bc3677558ab6d, its encoder replaced by one that delivers the stored features and its decoder
by one that keeps what it is given."""

GRID = BEVGrid((-3.0, 3.0), (-2.5, 2.5), 1.0)  # 6×5
SOURCE = FeatureShape(3, 4, 6, 6, stride=8, offset_px=3.5)


def original() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return tensors, and the state of the network."""
    stored = torch.load(ORIGINAL, weights_only=True)
    state = {name.removeprefix("state/"): stored.pop(name) for name in list(stored) if name.startswith("state/")}
    return stored, state


def like_original(**options) -> Bilinear:
    return Bilinear(FeatureShape(4, 5, 7, 3, stride=8, offset_px=3.5), GRID, heights=3, **options)


@pytest.mark.parametrize("whole_network", [True, False])
def test_output_equals_the_original(whole_network: bool) -> None:
    stored, state = original()
    if not whole_network:
        state = {"0.weight": state["bev_compressor.0.weight"]}
    reshaper = like_original().load_original(state)
    located = reshaper.locate_original(stored["positions"], stored["valid"])
    bev = reshaper.gather(stored["features"], located).flip(2)
    torch.testing.assert_close(bev, stored["bev"], atol=1e-4, rtol=0)


def test_summed_heights_equal_the_originals_volume() -> None:
    stored, _ = original()
    reshaper = like_original(compress=False)
    located = reshaper.locate_original(stored["positions"], stored["valid"])
    bev = reshaper.gather(stored["features"], located).flip(2)
    volume = stored["volume"].double()  # b c Z Y X
    atol = rounding(128, volume)  # positions, up to 7 features wide, their weights, 4 taps, 3 cameras and 3 heights
    torch.testing.assert_close(bev.double(), volume.sum(3), atol=atol, rtol=0)
    assert (bev == 0).any()  # cells that no camera sees at any height


def pixel(cameras: Cameras, n: int, point: list[float]) -> tuple[float, float, float]:
    """Return pixel (u, v) and depth of a point of the ego frame, in float64."""
    x, y, depth, _ = np.linalg.inv(cameras.ego_from_cam[0, n].double().numpy()) @ [*point, 1.0]
    u, v, _ = cameras.intrinsics[0, n].double().numpy() @ [x / depth, y / depth, 1.0]
    return u, v, depth


def bilinear(feature: np.ndarray, j: float, i: float) -> np.ndarray:
    """Return the value at column j and row i of (c, h, w), with the border repeated outside."""
    j, i = np.clip(j, 0, feature.shape[2] - 1), np.clip(i, 0, feature.shape[1] - 1)
    j0, i0 = min(int(j), feature.shape[2] - 2), min(int(i), feature.shape[1] - 2)
    a, b = j - j0, i - i0
    taps = feature[:, i0 : i0 + 2, j0 : j0 + 2]
    return (1 - b) * ((1 - a) * taps[:, 0, 0] + a * taps[:, 0, 1]) + b * ((1 - a) * taps[:, 1, 0] + a * taps[:, 1, 1])


def volume(x: np.ndarray, cameras: Cameras, grid: BEVGrid, heights_m: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return (k, c, R, C), voxel by voxel and camera by camera, and the number of cameras that see each."""
    out, counts = np.zeros((len(heights_m), x.shape[1], *grid.shape)), np.zeros((len(heights_m), *grid.shape), int)
    for level, z in enumerate(heights_m):
        for row in range(grid.rows):
            for col in range(grid.cols):
                ahead = grid.forward_m[1] - (row + 0.5) * grid.cell_m
                left = grid.left_m[1] - (col + 0.5) * grid.cell_m
                seen = []
                for n in range(len(x)):
                    u, v, depth = pixel(cameras, n, [ahead, left, z])
                    if depth > 0 and -0.5 <= u < 47.5 and -0.5 <= v < 31.5 and cameras.full_mask[0, n]:
                        seen.append(bilinear(x[n], (u - 3.5) / 8, (v - 3.5) / 8))
                counts[level, row, col] = len(seen)
                if seen:
                    out[level, :, row, col] = np.mean(seen, axis=0)
    return out, counts


def compressed(folded: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Apply a 3×3 convolution, instance norm and GELU to (c, R, C)."""
    rows, cols = folded.shape[1:]
    padded = np.pad(folded, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), rows, cols))
    for i in range(3):
        for j in range(3):
            out += np.einsum("dc,crs->drs", weight[:, :, i, j], padded[:, i : i + rows, j : j + cols])
    out = (out - out.mean((1, 2), keepdims=True)) / np.sqrt(out.var((1, 2), keepdims=True) + 1e-5)
    return out * (1 + np.vectorize(math.erf)(out / math.sqrt(2))) / 2


@pytest.mark.parametrize("mask", [None, [True, False, False, True, True, True]])
def test_voxels_average_the_cameras_that_see_them(mask, rig) -> None:
    cameras = rig(1, 6)
    if mask is not None:
        cameras = replace(cameras, camera_mask=torch.tensor([mask]))
    x = torch.randn(1, 6, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"heights": 3, "height_m": (-0.6, 3.0)}
    voxels, counts = volume(x[0].numpy(), cameras, GRID, [0.0, 1.2, 2.4])
    assert {0, 1, 2} <= set(counts.ravel())  # the rig covers all three cases
    summed = Bilinear(SOURCE, GRID, compress=False, **options)(x, cameras)
    np.testing.assert_allclose(summed[0].numpy(), voxels.sum(0), atol=1e-4)
    assert (summed[0].numpy()[:, counts.sum(0) == 0] == 0).all()
    assert (counts.sum(0) == 0).any() == (mask is not None)
    torch.manual_seed(0)
    reshaper = Bilinear(SOURCE, GRID, channels=5, **options).double()
    expected = compressed(voxels.reshape(9, *GRID.shape), reshaper.compressor[0].weight.detach().numpy())
    np.testing.assert_allclose(reshaper(x, cameras)[0].detach().numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("offset_px", [0.0, 3.5])
@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (7, 0), (7, 5), (3, 2)])
def test_a_point_drawn_at_a_voxels_projection_appears_in_its_cell(offset_px: float, cell: tuple[int, int]) -> None:
    cameras, grid = tall_camera(), BEVGrid((2.0, 10.0), (-3.0, 3.0), 1.0)  # 8×6
    u, v, _ = pixel(cameras, 0, [10.0 - (cell[0] + 0.5), 3.0 - (cell[1] + 0.5), 1.25])
    feature_v, feature_u = np.mgrid[:24, :32] * 8 + offset_px
    spot = np.exp(-((feature_u - u) ** 2 + (feature_v - v) ** 2) / (2 * 6.0**2))  # 6 pixels, a third of a cell
    source = FeatureShape(1, 24, 32, 1, 8, offset_px)
    level = Bilinear(source, grid, heights=1, height_m=(1.0, 1.5), compress=False)
    bev = level(torch.from_numpy(spot).float()[None, None], cameras)[0, 0]
    assert np.unravel_index(bev.argmax().item(), grid.shape) == cell
    assert bev[cell] > 0.65  # without the offset of 3.5 pixels it would be 0.55
    assert (bev > 0.3).sum() == 1


@pytest.mark.parametrize("offset_px", [0.0, 3.5])
def test_features_are_sampled_at_their_centres(offset_px: float) -> None:
    """A ramp of pixel coordinates is read back exactly at every height, each in channels of its own."""
    cameras, grid = tall_camera(), BEVGrid((2.0, 10.0), (-3.0, 3.0), 1.0)
    v, u = torch.meshgrid(torch.arange(24) * 8 + offset_px, torch.arange(32) * 8 + offset_px, indexing="ij")
    reshaper = Bilinear(FeatureShape(2, 24, 32, 1, 8, offset_px), grid, heights=2, height_m=(0.0, 2.0), channels=4)
    identity = torch.zeros(4, 4, 3, 3)
    identity[range(4), range(4), 1, 1] = 1.0
    reshaper.compressor = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)
    reshaper.compressor.load_state_dict({"weight": identity})
    bev = reshaper(torch.stack([u, v])[None].float(), cameras)[0].detach()
    for level in range(2):
        for row in range(8):
            for col in range(6):
                expected = pixel(cameras, 0, [10.0 - (row + 0.5), 3.0 - (col + 0.5), 0.5 + level])[:2]
                np.testing.assert_allclose(bev[2 * level : 2 * level + 2, row, col].numpy(), expected, atol=0.01)


def test_a_dropped_camera_may_deliver_nan(rig) -> None:
    cameras = replace(rig(1, 6), camera_mask=torch.tensor([[True, True, False, True, True, True]]))
    x = torch.randn(1, 6, 3, 4, 6)
    x[:, 2] = torch.nan
    assert Bilinear(SOURCE, GRID)(x, cameras).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height_m": (3.0, -1.0)}, r"height_m=\[3.0, -1.0\] must ascend"),
        ({"height_m": (-1.0, 0.0, 3.0)}, "must be a list of 2 numbers"),
        ({"channels": 16, "compress": False}, "channels=16 with compress=false"),
    ],
)
def test_invalid_options_are_refused(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Bilinear(SOURCE, GRID, **options)


def test_other_weights_are_refused() -> None:
    _, state = original()
    with pytest.raises(
        InputError, match=r"compressor\.0\.weight is missing there; compressor\.0\.bias is unknown here"
    ):
        like_original().load_original({"bev_compressor.0.bias": torch.zeros(4)})
    with pytest.raises(InputError, match=r"do not fit: compressor\.rest is unknown here;"):
        like_original().load_original({**state, "rest": torch.zeros(1)})
    with pytest.raises(InputError, match=r"\(4, 12, 3, 3\) there and \(5, 12, 3, 3\) here"):
        like_original(channels=5).load_original(state)
    with pytest.raises(InputError, match="compress=false has no weights"):
        like_original(compress=False).load_original(state)
