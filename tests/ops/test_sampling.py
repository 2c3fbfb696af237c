"""Sampling of visible points against sampling of all points; its gradient against differences and ``grid_sample``."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.ops.sampling import project_points, sample_features, taps_at
from bevreshape.reshapers import FeatureShape

SOURCE = FeatureShape(3, 4, 6, 2, stride=8, offset_px=3.5)


def points(batch: int, source: FeatureShape, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions inside and up to two features around the map, and which are seen."""
    generator = torch.Generator().manual_seed(4)
    spread = torch.tensor([source.width + 3.0, source.height + 3.0])
    positions = torch.rand(batch, source.cameras, count, 2, generator=generator) * spread - 2
    return positions, torch.rand(batch, source.cameras, count, generator=generator) < 0.4


def by_grid_sample(x: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor, padding: str) -> torch.Tensor:
    """Return the samples, (b, p, c)."""
    b, n, _, h, w = x.shape
    places = positions.to(x.dtype) / torch.tensor([w - 1, h - 1]).to(x.dtype) * 2 - 1
    views = F.grid_sample(x.flatten(0, 1), places.flatten(0, 1)[:, None], padding_mode=padding, align_corners=True)
    views = views[:, :, 0].unflatten(0, (b, n)) * seen[:, :, None]  # b n c p
    return (views.sum(1) / seen.sum(1).clamp(min=1)[:, None]).mT


def features(batch: int, source: FeatureShape = SOURCE) -> torch.Tensor:
    shape = (batch, source.cameras, source.channels, source.height, source.width)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("together", [1, 4])
def test_values_and_gradients_equal_grid_sample(padding: str, together: int) -> None:
    x, (positions, seen) = features(2), points(2, SOURCE)
    expected = by_grid_sample(x, positions, seen, padding).unflatten(1, (-1, together)).sum(2)
    found = sample_features(x, taps_at(positions, seen, SOURCE, padding), together)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(6))
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 6), (4, 1), (1, 1)])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_maps_of_one_row_or_column(height: int, width: int, padding: str) -> None:
    source = replace(SOURCE, height=height, width=width)
    x, (positions, seen) = features(1, source), points(1, source)
    mode = "constant" if padding == "zeros" else "replicate"
    wide = F.pad(x.flatten(0, 1), (0, int(width == 1), 0, int(height == 1)), mode=mode).unflatten(0, (1, -1))
    found = sample_features(x, taps_at(positions, seen, source, padding))
    torch.testing.assert_close(found, by_grid_sample(wide, positions, seen, padding), atol=1e-5, rtol=0)
    assert torch.autograd.gradcheck(
        lambda y: sample_features(y, taps_at(positions, seen, source, padding)), (x,), fast_mode=True
    )


def test_one_rig_is_shared_by_all_samples() -> None:
    x, (positions, seen) = features(3), points(1, SOURCE)
    found = sample_features(x, taps_at(positions, seen, SOURCE))
    again = sample_features(x, taps_at(positions.expand(3, -1, -1, -1), seen.expand(3, -1, -1), SOURCE))
    assert torch.equal(found, again)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (found, again)]
    assert torch.equal(*gradients)


def test_points_that_no_camera_sees_are_zero() -> None:
    x, (positions, seen) = features(2), points(2, SOURCE)
    found = sample_features(x, taps_at(positions, torch.zeros_like(seen), SOURCE))
    found.sum().backward()
    assert (found == 0).all()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_columns_in_view_contain_every_visible_point(seed: int) -> None:
    """Cameras at random positions and rotations, also upside down, against every point of every camera."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(2, 3, 1, 1)
    poses[..., :3, :3] = torch.linalg.qr(torch.randn(2, 3, 3, 3, generator=generator))[0]
    poses[..., :3, :3] *= torch.linalg.det(poses[..., :3, :3])[..., None, None]
    poses[..., :3, 3] = torch.randn(2, 3, 3, generator=generator) * 2
    intrinsics = torch.tensor([[30.0, 0.5, 22], [0, 28, 17], [0, 0, 1]]).repeat(2, 3, 1, 1)
    cameras = Cameras(intrinsics, poses, (32, 48), torch.rand(2, 3, generator=generator) < 0.8)
    source, grid, heights = replace(SOURCE, cameras=3), BEVGrid((-4.0, 6.0), (-5.0, 5.0), 0.5), (-1.5, 0.0, 2.5)
    centers = grid.centers().flatten(0, 1)
    ego = torch.cat([centers.repeat_interleave(3, 0), torch.tensor(heights).repeat(len(centers))[:, None]], dim=1)
    pixels, depth = cameras.project(ego.expand(2, -1, -1))
    seen = cameras.sees(pixels, depth)
    assert seen.any()
    expected = taps_at((pixels - 3.5) / 8, seen, source)
    for found, wanted in zip(project_points(cameras, grid, heights, source), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_an_unknown_padding_is_refused() -> None:
    with pytest.raises(InputError, match="padding=zeroes; did you mean zeros"):
        taps_at(*points(1, SOURCE), SOURCE, "zeroes")
