"""Describe the 3D boxes of a folder by category, with doubts about them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from torch import Tensor

from bevreshape.data.sources.folder.boxes import Boxes
from bevreshape.data.sources.folder.dataset import CameraFolderDataset
from bevreshape.geometry import (
    BEVGrid,
)
from bevreshape.geometry.rasterize import rasterize_boxes
from folder_check.summaries import median_of, spread_of, value_range

FLOATING_M, FLAT_M = 0.8, 30.0
"""Median height at which bottoms of boxes are doubted, and the largest distance of these boxes, because of hills."""
SUNKEN_M, FEWEST = 0.1, 5
"""Median height at which a category's bottoms are doubted if it is systematic, and the least number of boxes."""


@dataclass(frozen=True)
class Category:
    """Hold all boxes of a category.

    Attributes:
        centers: (k, 3) metres.
        sizes: (k, 3) length, width, height, metres.
        covered: mean share of the grid that they cover in a frame.
        narrow: number with a side shorter than a cell.
        lost: number with the middle in the grid but no centre of a cell.
    """

    centers: Tensor
    sizes: Tensor
    covered: float
    narrow: int
    lost: int

    @property
    def bottoms(self) -> Tensor:
        """Return heights of the bottoms, (k,), metres above the ground."""
        return self.centers[:, 2] - self.sizes[:, 2] / 2

    @property
    def distances(self) -> Tensor:
        """Return distances from the ego origin, (k,), metres."""
        return self.centers[:, :2].norm(dim=1)


def categories(found: Mapping[str, Boxes], grid: BEVGrid) -> dict[str, Category]:
    """Return the boxes of all frames by their category."""
    result = {}
    (back, front), (right, left) = grid.forward_m, grid.left_m
    for category in sorted({category for boxes in found.values() for category in boxes.categories}):
        chosen = {name: boxes.among([category]) for name, boxes in found.items()}
        centers, sizes = (
            torch.cat([getattr(boxes, key)[chosen[name]] for name, boxes in found.items()])
            for key in ("centers", "sizes")
        )
        cells = [rasterize_boxes(boxes.from_above[chosen[name]], grid) for name, boxes in found.items()]
        empty = torch.cat([~each.flatten(1).any(1) for each in cells])
        x, y = centers[:, 0], centers[:, 1]
        inside = (x >= back) & (x <= front) & (y >= right) & (y <= left)
        result[category] = Category(
            centers,
            sizes,
            sum(each.any(0).double().mean().item() for each in cells) / len(cells),
            int((sizes[:, :2].amin(1) < grid.cell_m).sum()),
            int((empty & inside).sum()),
        )
    return result


def describe_boxes(found: Mapping[str, Category], grid: BEVGrid) -> Table:
    """Tabulate number, size, distance and covered share of the grid of every category's boxes."""
    columns = ("boxes", "size", "bottom", "distance", "covers", "< cell", "no cell")
    table = Table("category", *(Column(name, justify="right", no_wrap=True) for name in columns), box=SIMPLE_HEAD)
    for name, category in found.items():
        table.add_row(
            name,
            str(len(category.centers)),
            "×".join(f"{side.median():.1f}" for side in category.sizes.unbind(1)) + "m",
            f"{median_of(category.bottoms):z.2f}±{spread_of(category.bottoms):.2f}m",
            f"{value_range(category.distances)}m",
            f"{category.covered:.2%}",
            str(category.narrow),
            str(category.lost),
        )
    table.caption = (
        f"size: length×width×height. bottom: above the ground, median ± spread. covers: of forward {grid.forward_m}, "
        f"left {grid.left_m} m. < cell: a side below {grid.cell_m:g} m. no cell: in there, but over no cell's centre."
    )
    return table


def box_doubts(frames: CameraFolderDataset, grid: BEVGrid, found: Mapping[str, Category]) -> list[str]:
    """Return sentences on boxes off the ground, or without a cell."""
    return [*_bottom_doubts(frames, found), *_size_doubts(grid, found)]


def _bottom_doubts(frames: CameraFolderDataset, found: Mapping[str, Category]) -> Iterator[str]:
    near = {name: category.bottoms[category.distances < FLAT_M] for name, category in found.items()}
    bottoms = torch.cat([*near.values(), torch.zeros(0)])
    if len(bottoms) and abs(median_of(bottoms)) > FLOATING_M:
        yield (
            f"boxes: the bottoms of those within {FLAT_M:g} m are {median_of(bottoms):.1f} m above the ground "
            "(median); center_m must be the middle of the box in the ego frame, not in a sensor's"
        )
        return
    height_m = frames.calibration.rigs[0].ego_from_cam[0, 2, 3].item()
    for name, values in near.items():
        if len(values) < FEWEST:
            continue
        middle, spread = median_of(values), spread_of(values)
        uncertain = 1.25 * spread / math.sqrt(len(values))  # standard error of a median
        if abs(middle) < max(SUNKEN_M, 3 * uncertain) or abs(middle) > FLOATING_M:
            continue  # high objects, such as signs, may be off the ground
        moved = FLAT_M * middle / (height_m - middle)
        effect = (
            f"; from {height_m:.2f} m they are projected {abs(moved):.1f} m too {'far' if moved > 0 else 'near'} if "
            f"they are {FLAT_M:g} m ahead"
            if height_m > middle
            else ""
        )
        yield (
            f"boxes: the bottoms of {name} within {FLAT_M:g} m are {abs(middle):.2f} ± {spread:.2f} m "
            f"{'above' if middle > 0 else 'below'} the ground (median and spread of {len(values)}){effect}; z = 0 of "
            "the ego frame must be the ground below them"
        )


def _size_doubts(grid: BEVGrid, found: Mapping[str, Category]) -> Iterator[str]:
    for name, category in found.items():
        if category.lost:
            yield (
                f"boxes: {category.narrow} of {len(category.centers)} {name} have a side shorter than a cell of "
                f"{grid.cell_m:g} m, and {category.lost} of them in the grid cover no cell's centre, so no target "
                "shows them; choose smaller cells with data.grid.cell_m, or leave the class out"
            )
