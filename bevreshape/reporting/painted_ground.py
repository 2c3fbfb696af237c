"""Paint a bird's-eye view onto the ground that an image shows."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bevreshape.geometry import BEVGrid, ground_at
from bevreshape.reporting.class_colors import RGBImage, topmost

STRIP_PIXELS = 500_000
"""Pixels that are painted at a time."""


def paint_ground(
    image: RGBImage,
    bev: Float[Tensor, "k rows cols"] | Bool[Tensor, "k rows cols"],
    rays: Callable[[Tensor], Tensor],
    ego_from_cam: Float[Tensor, "4 4"],
    grid: BEVGrid,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    opacity: float = 0.5,
) -> RGBImage:
    """Paint a bird's-eye view onto the ground in one image, some rows at a time, so that memory is bounded.

    Args:
        image: as stored.
        bev: probabilities or labels.
        rays: maps pixels (p, 2) to rays (p, 3) in the camera frame, NaN where there is none.
        ego_from_cam: of the camera.
        grid: of the bird's-eye view.
        classes: names of the k channels.
        threshold: a class is painted where its probability is at least this.
        opacity: of the paint.
    """
    layer, covered = topmost(bev >= threshold, classes)
    painted = image.copy()
    for rows in _strips(image.shape[0], image.shape[1]):
        cells = _cells_of_rows(rows, image.shape[1], rays, ego_from_cam, grid)
        _mix(painted[rows.start : rows.stop], layer, covered, cells, opacity)
    return painted


def ground_cells(
    size: tuple[int, int], rays: Callable[[Tensor], Tensor], ego_from_cam: Float[Tensor, "4 4"], grid: BEVGrid
) -> Int[Tensor, "height width"]:
    """Return the cell, row · cols + col, whose ground every pixel of an image shows; -1 where there is none.

    Args:
        size: (height, width) of the image.
        rays: maps pixels (p, 2) to rays (p, 3) in the camera frame, NaN where there is none.
        ego_from_cam: of the camera.
        grid: of the cells.
    """
    return torch.cat([_cells_of_rows(rows, size[1], rays, ego_from_cam, grid) for rows in _strips(*size)])


def paint_cells(
    image: RGBImage, bev: Bool[Tensor, "k rows cols"], cells: Int[Tensor, "height width"], classes: Sequence[str]
) -> RGBImage:
    """Paint a bird's-eye view into an image whose pixels show the ``cells`` of :func:`ground_cells`."""
    painted = image.copy()
    _mix(painted, *topmost(bev, classes), cells, opacity=0.5)
    return painted


def _strips(height: int, width: int) -> list[range]:
    step = max(1, STRIP_PIXELS // width)
    return [range(top, min(top + step, height)) for top in range(0, height, step)]


def _cells_of_rows(
    rows: range, width: int, rays: Callable[[Tensor], Tensor], ego_from_cam: Tensor, grid: BEVGrid
) -> Int[Tensor, "height width"]:
    v, u = torch.meshgrid(torch.arange(rows.start, rows.stop), torch.arange(width), indexing="ij")
    pixels = torch.stack([u, v], dim=-1).flatten(0, 1).double()
    ground, meets = ground_at(rays(pixels), ego_from_cam.double().cpu())
    # the nearest cell, so that single cells are visible
    cells = (grid.metric_to_cell(ground).nan_to_num(-1.0) + 0.5).clamp(-1, max(grid.shape) + 1).floor().long()
    col, row = cells.unbind(1)
    inside = meets & (col >= 0) & (col < grid.cols) & (row >= 0) & (row < grid.rows)
    return torch.where(inside, row * grid.cols + col, -1).int().reshape(len(rows), width)


def _mix(image: RGBImage, layer: Tensor, covered: Tensor, cells: Int[Tensor, "height width"], opacity: float) -> None:
    """Mix the colors of :func:`topmost` into the pixels of an image, in place."""
    colors, drawn, flat = layer.cpu().flatten(0, 1), covered.cpu().flatten(), cells.flatten()
    at = (flat >= 0).nonzero().squeeze(1)
    at = at[drawn[flat[at]]]
    pixels = image.reshape(-1, 3)
    mixed = (1 - opacity) * torch.from_numpy(pixels[at.numpy()]) + opacity * colors[flat[at]]
    pixels[at.numpy()] = mixed.round().byte().numpy()
