"""Geometry agreement, against projections in numpy, one point at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bevreshape.analysis.costs import ring
from bevreshape.analysis.effective_weights import cell_raster, jacobian_norm
from bevreshape.analysis.geometric_alignment import centroid, geometry_agreement, peak, projections
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import IPM, MLP, FeatureShape

IMAGE_SIZE = (64, 96)
GRID = BEVGrid((-12.0, 14.0), (-12.0, 12.0), 1.0)  # 26×24


def source(count: int) -> FeatureShape:
    return FeatureShape(3, 8, 12, count, stride=8, offset_px=3.5)


def rig(count: int, batch: int = 1) -> Cameras:
    cameras = ring(count, IMAGE_SIZE, batch, torch.device("cpu"))
    return replace(cameras, intrinsics=cameras.intrinsics.double(), ego_from_cam=cameras.ego_from_cam.double())


def project(cameras: Cameras, sample: int, n: int, cell: tuple[int, int], grid: BEVGrid) -> tuple[float, float, bool]:
    """Return (column, row) in features of stride 8 and offset 3.5, and whether the point is seen."""
    ahead = grid.forward_m[1] - (cell[0] + 0.5) * grid.cell_m
    left = grid.left_m[1] - (cell[1] + 0.5) * grid.cell_m
    x, y, depth, _ = np.linalg.inv(cameras.ego_from_cam[sample, n].numpy()) @ [ahead, left, 0.0, 1.0]
    u, v, _ = cameras.intrinsics[sample, n].numpy() @ [x / depth, y / depth, 1.0]
    height, width = cameras.image_size
    seen = depth > 0 and -0.5 <= u < width - 0.5 and -0.5 <= v < height - 0.5
    return (u - 3.5) / 8, (v - 3.5) / 8, seen and (cameras.camera_mask is None or bool(cameras.camera_mask[sample, n]))


def doubles(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def measured(count: int, cameras: Cameras) -> Tensor:
    return jacobian_norm(IPM(source(count), GRID).double(), doubles(1, count, 3, 8, 12), cameras)


@pytest.mark.parametrize("count", [1, 6])
def test_ipm_agrees_exactly(count: int) -> None:
    cameras = rig(count)
    found = geometry_agreement(measured(count, cameras), cameras, GRID, source(count))
    seen = [[project(cameras, 0, n, cell, GRID)[2] for n in range(count)] for cell in np.ndindex(*GRID.shape)]
    assert found.whole.pairs == np.sum(seen)
    assert found.unseen == len(seen) - np.any(seen, axis=1).sum()
    assert 0 < found.unseen < len(seen) * (0.9 if count == 1 else 0.2)
    assert (np.sum(seen, axis=1) > 1).any() == (count == 6)
    assert found.whole.centroid.p90 < 1e-6
    assert max(band.centroid.p90 for band in found.bands) < 1e-6
    assert found.whole.peak.p90 < 0.5**0.5 + 1e-6  # the nearest feature
    assert found.whole.uniform.median > 2
    assert found.silent == 0
    assert found.share == 1.0


def test_half_a_cell_of_offset_is_measured() -> None:
    """A camera points straight down from 8 m, at 8 pixels a metre: cells of 2 m are two features apart."""
    pose = np.array([[0.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 8.0], [0.0, 0.0, 0.0, 1.0]])
    intrinsics = np.array([[64.0, 0.0, 47.5], [0.0, 64.0, 31.5], [0.0, 0.0, 1.0]])
    cameras = Cameras(torch.from_numpy(intrinsics)[None, None], torch.from_numpy(pose)[None, None], IMAGE_SIZE)
    grid = BEVGrid((-4.0, 4.0), (-6.0, 6.0), 2.0)  # 4×6, all of the image
    positions, seen = projections(cameras, grid, source(1))
    assert seen.all()
    expected = np.array([[2 * col + 0.5, 2 * row + 0.5] for row in range(4) for col in range(6)])
    np.testing.assert_allclose(positions[0, :, 0].numpy(), expected, atol=1e-9)
    weights = jacobian_norm(IPM(source(1), grid).double(), doubles(1, 1, 3, 8, 12), cameras)
    np.testing.assert_allclose(centroid(weights)[0, :, 0].numpy(), expected, atol=1e-9)
    assert geometry_agreement(weights, cameras, grid, source(1)).whole.centroid.p90 < 1e-9
    overlooked = replace(source(1), offset_px=0.0)  # 3.5 pixels of 8, on both axes; at the edge less counts
    found = geometry_agreement(weights, cameras, grid, overlooked)
    assert found.whole.centroid.median == pytest.approx(2**0.5 * 3.5 / 8, abs=1e-9)


@pytest.mark.parametrize("mask", [None, [True, False, True, True, False, True]])
def test_distances_equal_loops_over_pairs(mask: list[bool] | None) -> None:
    """Random weights; every expected value is computed in loops."""
    cameras = rig(6, 2)
    cameras = replace(cameras, camera_mask=None if mask is None else torch.tensor([mask, mask]))
    cells = cell_raster(GRID.shape, 7)
    weights = doubles(2, len(cells), 6, 8, 12) ** 4
    weights[:, 3] = 0
    if mask is not None:
        weights[:, :, ~torch.tensor(mask)] = 0
    found = geometry_agreement(weights, cameras, GRID, source(6), cells=cells, band_m=4.0)
    by_band: dict[int, list[list[float]]] = {}
    shares, uniform_shares, unseen, silent = [], [], 0, 0
    for sample in range(2):
        for number, cell in enumerate(cells):
            w = weights[sample, number].numpy()
            away = np.hypot(14.0 - (cell[0] + 0.5), 12.0 - (cell[1] + 0.5))
            sees = []
            for n in range(6):
                col, row, seen = project(cameras, sample, n, cell, GRID)
                if not seen:
                    continue
                sees.append(n)
                if w[n].sum() == 0:
                    silent += 1
                    continue
                target = np.array([np.clip(col, 0, 11), np.clip(row, 0, 7)])
                mean = [(w[n] * np.arange(12)).sum(), (w[n] * np.arange(8)[:, None]).sum()] / w[n].sum()
                most = np.unravel_index(w[n].argmax(), (8, 12))[::-1]
                places = (mean, np.array(most), np.array([5.5, 3.5]))
                by_band.setdefault(int(away // 4), []).append([np.linalg.norm(p - target) for p in places])
            unseen += not sees
            if sees and w.sum() > 0:
                shares.append(w[sees].sum() / w.sum())
                uniform_shares.append(len(sees) / (6 if mask is None else 4))
    assert (found.unseen, found.silent) == (unseen, silent)
    assert silent > 0
    assert found.share == pytest.approx(np.mean(shares), rel=1e-9)
    assert found.uniform_share == pytest.approx(np.mean(uniform_shares), rel=1e-6)
    assert [band.near_m for band in found.bands] == [4.0 * number for number in sorted(by_band)]
    everything = np.concatenate([by_band[number] for number in sorted(by_band)])
    expected = [everything, *(np.array(by_band[number]) for number in sorted(by_band))]
    for band, distances in zip((found.whole, *found.bands), expected, strict=True):
        assert band.pairs == len(distances)
        for distance, values in zip((band.centroid, band.peak, band.uniform), distances.T, strict=True):
            assert distance.median == pytest.approx(np.median(values), rel=1e-6)
            assert distance.p90 == pytest.approx(np.quantile(values, 0.9), rel=1e-6)
    assert (found.whole.near_m, found.whole.far_m) == (0.0, found.bands[-1].near_m + 4.0)


def test_calibration_error_is_measured() -> None:
    """IPM by one calibration is compared with another whose image is shifted by a feature and a half."""
    cameras = rig(1)
    shift = torch.tensor([[0.0, 0.0, 12.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = geometry_agreement(
        measured(1, cameras), replace(cameras, intrinsics=cameras.intrinsics + shift), GRID, source(1)
    )
    assert found.whole.centroid.median == pytest.approx(1.5, abs=1e-6)


def test_untrained_mlp_is_no_better_than_uniform_weights() -> None:
    torch.manual_seed(0)
    cameras, cells = rig(6), cell_raster(GRID.shape, 8)
    mlp = MLP(source(6), GRID, activation="none").double()
    found = geometry_agreement(
        jacobian_norm(mlp, doubles(1, 6, 3, 8, 12), cells=cells), cameras, GRID, source(6), cells=cells
    )
    assert found.whole.centroid.median == pytest.approx(found.whole.uniform.median, rel=0.1)
    assert found.whole.peak.median > 2
    assert found.share == pytest.approx(found.uniform_share, abs=0.02)


def test_one_calibration_for_all_samples_and_mixed_precision() -> None:
    cameras = rig(6)
    weights = doubles(3, 9, 6, 8, 12)
    cells = cell_raster(GRID.shape, 3)
    one = geometry_agreement(weights, cameras, GRID, source(6), cells=cells)
    assert one == geometry_agreement(weights, rig(6, 3), GRID, source(6), cells=cells)
    single = geometry_agreement(weights.float(), cameras, GRID, source(6), cells=cells)
    assert single.whole.centroid.median == pytest.approx(one.whole.centroid.median, abs=1e-5)
    narrow = replace(cameras, intrinsics=cameras.intrinsics.float(), ego_from_cam=cameras.ego_from_cam.float())
    mixed = geometry_agreement(weights, narrow, GRID, source(6), cells=cells)
    assert mixed.whole.peak.median == pytest.approx(one.whole.peak.median, abs=1e-5)


def test_convention_positions_are_column_and_row() -> None:
    weights = torch.zeros(2, 3, 5)
    weights[0, 2, 4] = 7.0
    weights[1, 0, 1], weights[1, 2, 2] = 1.0, 3.0
    torch.testing.assert_close(centroid(weights), torch.tensor([[4.0, 2.0], [1.75, 1.5]]))
    torch.testing.assert_close(peak(weights), torch.tensor([[4.0, 2.0], [2.0, 2.0]]))
    assert centroid(torch.zeros(3, 5)).isnan().all()
    torch.testing.assert_close(peak(torch.ones(3, 5)), torch.tensor([2.0, 1.0]))


def test_bad_input_is_refused() -> None:
    cameras, cells = rig(6), [(0, 0), (25, 23)]
    weights = doubles(2, 2, 6, 8, 12)

    def ask(w: Tensor = weights, c: Cameras = cameras, s: FeatureShape | None = None, **options):
        return geometry_agreement(w, c, GRID, s or source(6), **{"cells": cells, **options})

    with pytest.raises(InputError, match="weights of 2 cells × 6 cameras × 8×12 tokens, but 624 cells, 6 calibrated"):
        ask(cells=None)
    with pytest.raises(InputError, match="5 calibrated cameras"):
        ask(c=rig(5))
    with pytest.raises(InputError, match="weights are of 2 samples but the calibration is of 3"):
        ask(c=rig(6, 3))
    with pytest.raises(InputError, match="8×12 at stride 4 do not cover images of 64×96"):
        ask(s=replace(source(6), stride=4))
    for wrong in (-1.0, torch.nan, torch.inf):
        with pytest.raises(InputError, match="negative or not finite"):
            ask(weights.index_fill(1, torch.tensor([0]), wrong))
    with pytest.raises(InputError, match="band_m=0"):
        ask(band_m=0)
    with pytest.raises(InputError, match="no camera sees any"):
        ask(c=replace(cameras, camera_mask=torch.zeros(1, 6, dtype=torch.bool)))
    with pytest.raises(InputError, match="weights are 0 in cameras"):
        ask(torch.zeros_like(weights))
    with pytest.raises(InputError, match="outside the map of 26×24"):
        ask(cells=[(0, 0), (26, 0)])
