"""The world of the study against numpy, point by point."""

import math

import numpy as np
import oracle
import pytest
import torch

from bevreshape.experiments.world import Stream, World, best_fixed_map, stack
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape

SOURCE = FeatureShape(3, 6, 10, 1, 16, offset_px=7.5)
GRID = BEVGrid((0.0, 16.0), (-8.0, 8.0), 2.0)


def bilinear(field: np.ndarray, col: float, row: float) -> np.ndarray:
    """A (c, h, w) field at a fractional place, its border value outside."""
    height, width = field.shape[1:]
    col, row = min(max(col, 0.0), width - 1.0), min(max(row, 0.0), height - 1.0)
    left, top = min(int(col), width - 2), min(int(row), height - 2)
    right, below = col - left, row - top
    above = (1 - right) * field[:, top, left] + right * field[:, top, left + 1]
    return (1 - below) * above + below * ((1 - right) * field[:, top + 1, left] + right * field[:, top + 1, left + 1])


def test_targets_are_the_inverse_perspective_mapping_of_numpy() -> None:
    world = World(SOURCE, GRID)
    angles = torch.tensor([[0.0, 0.0, 0.0], [0.05, -0.02, 0.03]])
    fields = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    batch = world.make(fields, angles)
    focal = 160 / 2 / math.tan(math.radians(40))
    pixel_from_cam = oracle.intrinsics(focal, focal, (160 - 1) / 2, (96 - 1) / 2)
    for b, (yaw, pitch, roll) in enumerate(angles.double().rad2deg().tolist()):
        nominal = oracle.pose(0.0, 5.0, (0.5, 0.0, 1.5))
        # turned in its own frame, one after the other: left, down, about the optical axis
        turns = (
            oracle.pose(yaw, 0.0, (0, 0, 0)),
            oracle.pose(0.0, pitch, (0, 0, 0)),
            oracle.pose(0.0, 0.0, (0, 0, 0), roll),
        )
        axes = oracle.pose(0.0, 0.0, (0, 0, 0))  # of an untilted camera: ego_from_cam
        moved = nominal @ np.linalg.multi_dot([np.linalg.inv(axes) @ turn for turn in turns])
        for q, (x, y) in enumerate(world.cells.tolist()):
            u, v, depth = oracle.project((x, y, 0.0), pixel_from_cam, moved)
            inside = depth > 0 and -0.5 <= u < 159.5 and -0.5 <= v < 95.5
            assert batch.visible[0, b, q] == inside
            if inside:
                expected = bilinear(fields[b].numpy(), (u - 7.5) / 16, (v - 7.5) / 16)
                np.testing.assert_allclose(batch.target[0, b, q], expected, atol=2e-4)


def test_the_cells_are_those_that_the_nominal_camera_sees() -> None:
    world = World(SOURCE, GRID)
    assert 0 < len(world.cells) < GRID.rows * GRID.cols
    assert bool(world.make(torch.zeros(1, 3, 6, 10), torch.zeros(1, 3)).visible.all())


def test_sampling_matrix_times_x_is_the_target() -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0)
    generator = torch.Generator().manual_seed(0)
    fields, given = torch.randn(5, 3, 6, 10, generator=generator), torch.randn(5, 3, generator=generator) * 0.05
    made = world.make(fields, given)
    matrices = world.sampling(world.posed(given))
    torch.testing.assert_close(matrices @ made.x[0], made.target[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matrices.sum(-1), made.visible[0].float())


@pytest.mark.parametrize("pose", ["unknown", "visible", "given"])
def test_pose_inputs_of_a_method(pose: str) -> None:
    world = World(SOURCE, GRID, sigma_deg=8.0, pose=pose)  # type: ignore[arg-type]
    batch = Stream(world, (0,)).next(4)
    assert batch.x.shape == (1, 4, 60, 3 + 4 * (pose == "visible"))
    assert bool(batch.pose.any()) == (pose == "given")
    differs = (batch.directions - batch.directions[:, :1]).abs().amax() > 0.01
    assert bool(differs) == (pose == "given")
    shown = (batch.x[..., 3:] - batch.x[:, :1, :, 3:]).abs().amax() if pose == "visible" else torch.tensor(0.0)
    assert bool(shown > 0.01) == (pose == "visible")


def test_directions_are_those_of_numpy() -> None:
    world = World(SOURCE, GRID)
    focal = 160 / 2 / math.tan(math.radians(40))
    pixel_from_cam = oracle.intrinsics(focal, focal, (160 - 1) / 2, (96 - 1) / 2)
    rotation = oracle.pose(0.0, 5.0, (0.5, 0.0, 1.5))[:3, :3]
    found = world.directions(world.rig)[0].view(6, 10, 2)
    for row, col in [(0, 0), (3, 7), (5, 9)]:
        x, y, z = rotation @ np.linalg.inv(pixel_from_cam) @ [16 * col + 7.5, 16 * row + 7.5, 1.0]
        expected = math.atan2(y, x), math.atan2(z, math.hypot(x, y))
        np.testing.assert_allclose(found[row, col], expected, atol=1e-5)


def test_a_stream_of_a_fixed_number_of_samples_repeats_them() -> None:
    stream = Stream(World(SOURCE, GRID, sigma_deg=1.0), (0,), samples=3)
    drawn = torch.cat([stream.next(8).x[0] for _ in range(4)])
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 3


def test_seeds_side_by_side_are_each_seeds_own() -> None:
    world = World(SOURCE, GRID, sigma_deg=1.0)
    both = stack([Stream(world, (seed,)).next(4) for seed in (0, 1)])
    assert torch.equal(both.target[1:], Stream(world, (1,)).next(4).target)
    assert not torch.equal(both.x[0], both.x[1])


def test_the_best_fixed_map_is_that_of_least_squares() -> None:
    world = World(FeatureShape(1, 4, 6, 1, 16, offset_px=7.5), GRID, correlation_length=0.7, sigma_deg=6.0)
    poses = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([6.0, 3.0, 3.0]).deg2rad()
    fixed, remaining = best_fixed_map(world, poses)
    batch = Stream(world, (3,)).next(40000)
    x, y, seen = batch.x[0, ..., 0].double(), batch.target[0, ..., 0].double(), batch.visible[0]
    missed, total = 0.0, 0.0
    for q in range(y.shape[1]):
        rows = seen[:, q]
        solved = torch.linalg.lstsq(x[rows], y[rows, q]).solution
        assert (solved - fixed[q]).abs().max() < 0.05
        missed += float((y[rows, q] - x[rows] @ fixed[q].double()).square().sum())
        total += float(y[rows, q].square().sum())
    assert missed / total == pytest.approx(remaining, rel=0.03)
    assert best_fixed_map(World(SOURCE, GRID), torch.zeros(2, 3))[1] < 1e-10
