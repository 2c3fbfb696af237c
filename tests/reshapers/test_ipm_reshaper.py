"""IPM of features against single projections."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rigs import tall_camera

from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import IPM, FeatureShape

GRID = BEVGrid((2.0, 10.0), (-3.0, 3.0), 1.0)  # 8×6
IMAGE_SIZE = (192, 256)


def pixel(cameras: Cameras, n: int, x: float, y: float) -> tuple[float, float, float]:
    """Return pixel (u, v) and depth of the ground point (x, y), in float64."""
    cam_from_ego = np.linalg.inv(cameras.ego_from_cam[0, n].double().numpy())
    point = cam_from_ego @ [x, y, 0.0, 1.0]
    u, v, _ = cameras.intrinsics[0, n].double().numpy() @ point[:3] / point[2]
    return u, v, point[2]


def centre(row: int, col: int) -> tuple[float, float]:
    return 10.0 - (row + 0.5), 3.0 - (col + 0.5)


@pytest.mark.parametrize(("stride", "offset_px"), [(8, 0.0), (8, 3.5), (8, 7.0), (4, 1.5)])
@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (7, 0), (7, 5), (3, 2)])
def test_a_point_drawn_at_a_cells_projection_appears_in_its_cell(stride, offset_px, cell) -> None:
    cameras = tall_camera()
    h, w = IMAGE_SIZE[0] // stride, IMAGE_SIZE[1] // stride
    u, v, _ = pixel(cameras, 0, *centre(*cell))
    feature_v, feature_u = np.mgrid[:h, :w] * stride + offset_px
    spot = np.exp(-((feature_u - u) ** 2 + (feature_v - v) ** 2) / (2 * 6.0**2))  # 6 pixels, a third of a cell
    bev = IPM(FeatureShape(1, h, w, 1, stride, offset_px), GRID)(torch.from_numpy(spot).float()[None, None], cameras)
    assert np.unravel_index(bev[0, 0].argmax().item(), GRID.shape) == cell
    assert bev[0, 0][cell] > 0.65  # without the offset of 3.5 pixels it would be 0.55
    assert (bev[0, 0] > 0.3).sum() == 1


@pytest.mark.parametrize("offset_px", [0.0, 3.5])
def test_features_are_sampled_at_their_centres(offset_px: float) -> None:
    """A ramp of pixel coordinates is sampled exactly; an error of a hundredth of a feature would fail."""
    cameras = tall_camera()
    h, w = 24, 32
    v, u = torch.meshgrid(torch.arange(h) * 8 + offset_px, torch.arange(w) * 8 + offset_px, indexing="ij")
    bev = IPM(FeatureShape(2, h, w, 1, 8, offset_px), GRID)(torch.stack([u, v])[None].float(), cameras)
    for row in range(8):
        for col in range(6):
            expected_u, expected_v, _ = pixel(cameras, 0, *centre(row, col))
            assert bev[0, 0, row, col].item() == pytest.approx(expected_u, abs=0.01)
            assert bev[0, 1, row, col].item() == pytest.approx(expected_v, abs=0.01)


def bilinear(feature: np.ndarray, j: float, i: float) -> np.ndarray:
    """Return the value at column j and row i of (c, h, w), with the border repeated outside."""
    j, i = np.clip(j, 0, feature.shape[2] - 1), np.clip(i, 0, feature.shape[1] - 1)
    j0, i0 = min(int(j), feature.shape[2] - 2), min(int(i), feature.shape[1] - 2)
    a, b = j - j0, i - i0
    rows = feature[:, i0 : i0 + 2, j0 : j0 + 2]
    return (1 - b) * ((1 - a) * rows[:, 0, 0] + a * rows[:, 0, 1]) + b * ((1 - a) * rows[:, 1, 0] + a * rows[:, 1, 1])


@pytest.mark.parametrize("mask", [None, [True, True, False, True, True, True]])
def test_cells_average_the_cameras_that_see_them(mask, rig) -> None:
    grid = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 0.5)
    cameras = rig(1, 6)
    if mask is not None:
        cameras = replace(cameras, camera_mask=torch.tensor([mask]))
    x = torch.randn(1, 6, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    bev = IPM(FeatureShape(3, 4, 6, 6, 8, 3.5), grid)(x, cameras)[0].numpy()
    counts = np.zeros(grid.shape, dtype=int)
    for row in range(grid.rows):
        for col in range(grid.cols):
            seen = []
            for n in range(6):
                u, v, depth = pixel(cameras, n, 4.0 - (row + 0.5) * 0.5, 3.0 - (col + 0.5) * 0.5)
                if depth > 0 and -0.5 <= u < 47.5 and -0.5 <= v < 31.5 and (mask is None or mask[n]):
                    seen.append(bilinear(x[0, n].numpy(), (u - 3.5) / 8, (v - 3.5) / 8))
            counts[row, col] = len(seen)
            expected = np.mean(seen, axis=0) if seen else np.zeros(3)
            np.testing.assert_allclose(bev[:, row, col], expected, atol=1e-4)
    assert {0, 1, 2} <= set(counts.ravel())  # the rig covers all three cases
