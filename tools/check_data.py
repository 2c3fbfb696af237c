"""Check a camera folder, print what is in it, and draw its images with the ground, and the ground from the images.

In the overlay the lines on the ground are straight and a round number of metres apart. The calibration is right where the
left column's lines lie on the road, and where, in the right column, lane lines are straight, parallel and as wide near as
far. What is labelled is drawn into both, 3D boxes with a stroke from their middle to their front. Several cameras are laid
onto one ground as well, where their images must fit together. Images are shown undistorted, as they are read.

What can be read but is probably not meant, such as an inverse, boxes that stand below the ground or vanish between the
centres of cells, or an image that is in two splits, is printed as a doubt. What cannot be used is a fault: the last lines
name every one, and the exit code is 1.

    python tools/check_data.py data/duckietown_fixed --out overlay.png
"""

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from bevreshape.config import cli
from bevreshape.config.arguments import Parser
from bevreshape.data.batch import SPLITS
from bevreshape.data.image_io import ImageMode, read_image, read_image_size, undistort
from bevreshape.data.sources.folder.boxes import Boxes, read_boxes
from bevreshape.data.sources.folder.calibration import Calibration, Rig, read_calibration
from bevreshape.data.sources.folder.dataset import Frames, check_size
from bevreshape.data.sources.folder.labels import BEVLabels, ImageLabels
from bevreshape.data.sources.folder.source import read_split
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import (
    BEVGrid,
    Cameras,
    bev_to_image,
    ground_pixels,
    image_to_bev,
    pinhole_intrinsics,
)
from bevreshape.geometry.calibration_checks import (
    diagnose_pose,
    intrinsics_mistakes,
    magnification_mistake,
    tangential_mistake,
)
from bevreshape.geometry.distortion import source_pixels
from bevreshape.geometry.rasterize import rasterize_boxes
from bevreshape.reporting.progress import track
from bevreshape.reporting.tables import print_table
from bevreshape.storage.files import visible, write_atomic

COLOURS = ("#ff3b30", "#34c7ff", "#ffd60a", "#30d158", "#bf5af2", "#ff9f0a", "#64d2ff", "#ff7bd5")
FLOATING_M, FLAT_M = 0.8, 30.0
"""Median height from which the bottoms of boxes are doubted, and how far away they are asked; farther there are hills."""
SUNKEN_M, FEWEST = 0.1, 5
"""Median height of a category's bottoms from which they are doubted if it is systematic, and of how many boxes at least."""
TRAINING_CELL_M = 0.5
"""Length of a cell of data=folder, where none is given."""
NEAREST_M = 0.2
"""Depth from which a box is drawn into an image."""


def camera_of(calibration: Calibration, frame: str, number: int) -> Cameras:
    """One camera of a frame, for its stored image."""
    camera = calibration.of(frame).camera(number)
    return Cameras(camera.intrinsics.float(), camera.ego_from_cam.float(), camera.image_size)


def default_grid(calibration: Calibration) -> BEVGrid:
    """The truth's own grid, or 40 m ahead of one camera and 30 m around several."""
    if calibration.bev_grid is not None:
        return calibration.bev_grid
    if len(calibration.cameras) == 1:
        return BEVGrid((0.0, 40.0), (-20.0, 20.0), 0.1)
    return BEVGrid((-30.0, 30.0), (-30.0, 30.0), 0.15)


def describe_cameras(frames: Frames, grid: BEVGrid) -> Table:
    """What every camera is and sees; a range where the frames differ."""
    columns = ("frames", "size", "height", "left°", "down°", "horizon", "view°", "sees")
    table = Table("camera", *(Column(name, no_wrap=True) for name in columns), box=SIMPLE_HEAD)
    for number, camera in enumerate(frames.calibration.cameras):
        facts = torch.tensor(
            [
                _facts(camera_of(frames.calibration, name, number), grid)
                for name in track(frames.names, f"reading {camera}")
            ]
        )
        images = sum(frames.image_path(index, number) is not None for index in range(len(frames)))
        sizes = sorted({frames.calibration.of(name).sizes[number] for name in frames.names})
        height, left, down, horizon, across, upright, coverage = facts.unbind(1)
        table.add_row(
            camera,
            f"{images}/{len(frames)}",
            "\n".join(f"{high}×{wide}" for high, wide in sizes),
            f"{_range(height, 2)}m",
            _range(left),
            _range(down, 1),
            _range(horizon),
            f"{_range(across)}×{_range(upright)}",
            f"{_range(coverage)}%",
        )
    table.caption = (
        "left, down: where it looks. horizon: its row at half width. "
        f"sees: of forward {grid.forward_m}, left {grid.left_m} m."
    )
    return table


def describe_lenses(frames: Frames) -> list[str]:
    """A line for every camera with distortion: what its lens does, and what is left of the image."""
    lines = []
    for number, camera in enumerate(frames.calibration.cameras):
        for lens in dict.fromkeys(frames.calibration.of(name).lenses[number] for name in frames.names):
            if lens is None:
                continue
            shown = pinhole_intrinsics(lens)
            straight = replace(lens, model="opencv", coefficients=(0.0,) * 4)
            distorted, plain = (source_pixels(each, shown, lens.image_size) for each in (lens, straight))
            moved = (distorted - plain).norm(dim=-1).max().item()
            fx, fy, cx, cy = (shown[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
            lines.append(
                f"{camera}: {lens.model} [{', '.join(f'{value:g}' for value in lens.coefficients)}] moves pixels by up to "
                f"{moved:.0f}; undistorted to fx {fx:.0f}, fy {fy:.0f}, cx {cx:.0f}, cy {cy:.0f}"
            )
    return lines


def _facts(camera: Cameras, grid: BEVGrid) -> list[float]:
    """Height, yaw and pitch, row of the horizon, field of view across and upright, percentage of the grid seen."""
    height, width = camera.image_size
    pose, k = camera.ego_from_cam[0, 0], camera.intrinsics[0, 0]
    ahead = pose[:3, 2]
    # A pixel's third coordinate on the ground is linear in (u, v) and zero on the horizon.
    a, b, c = camera.ground_from_pixel[0, 0, 2].tolist()
    return [
        pose[2, 3].item(),
        math.degrees(math.atan2(ahead[1], ahead[0])),
        math.degrees(math.asin(-ahead[2])),
        -(a * (width - 1) / 2 + c) / b if b else math.nan,
        math.degrees(2 * math.atan(width / 2 / k[0, 0])),
        math.degrees(2 * math.atan(height / 2 / k[1, 1])),
        100 * ground_pixels(camera, grid)[1].float().mean().item(),
    ]


def _range(values: Tensor, digits: int = 0) -> str:
    low, high = (f"{value.item():z.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low}…{high}"


def check_frames(
    frames: Frames, images: ImageLabels | None, truth: BEVLabels | None, boxes: Path | None
) -> tuple[Table, dict[str, Boxes], list[str]]:
    """Decode every image, label and list of boxes once.

    Returns:
        How often every label occurs, the boxes of every frame, and what is wrong with files.
    """
    pixels, cells, faults = torch.zeros(256), torch.zeros(256), []
    found: dict[str, Boxes] = {}
    cameras = range(len(frames.calibration.cameras))
    for index, name in enumerate(track(frames.names, "checking frames")):
        present = torch.tensor([frames.image_path(index, number) is not None for number in cameras])
        parts: list[Callable[[], object]] = [lambda index=index: frames[index]]  # type: ignore[misc]
        if images is not None:
            parts.append(lambda name=name, present=present: pixels.add_(_count(images.read(name, present))))  # type: ignore[misc]
        if truth is not None:
            parts.append(lambda name=name: cells.add_(_count(truth.read(name))))  # type: ignore[misc]
        if boxes is not None:
            parts.append(lambda index=index, name=name: found.update({name: boxes_of(frames, index, boxes)}))  # type: ignore[misc]
        for part in parts:
            try:
                part()
            except InputError as error:
                faults.append(str(error))
    table = Table("labels", "name", "values", "share", box=SIMPLE_HEAD)
    codes = frames.calibration
    for what, counts, meaning in (("pixels", pixels, codes.labels), ("cells", cells, codes.bev)):
        if meaning is None or not counts.any():
            continue
        for name, values in [*meaning.members.items(), ("(void)", meaning.void)]:
            members = values.nonzero().flatten().tolist()
            share = (counts[values].sum() / counts.sum()).item()
            written = ", ".join(map(str, members[:5])) + (" …" if len(members) > 5 else "")
            table.add_row(what, name, written, f"{share:.2%}")
    return table, found, faults


def boxes_of(frames: Frames, index: int, folder: Path) -> Boxes:
    """The 3D boxes of a frame."""
    return read_boxes(folder / f"{frames.names[index]}.json", frames.calibration.boxes or ())


@dataclass(frozen=True)
class Category:
    """All boxes of a category.

    Attributes:
        centers: (k, 3) metres.
        sizes: (k, 3) length, width, height, metres.
        covered: mean share of the grid that they cover in a frame.
        narrow: how many have a side shorter than a cell.
        lost: how many whose middle lies in the grid cover the centre of no cell.
    """

    centers: Tensor
    sizes: Tensor
    covered: float
    narrow: int
    lost: int

    @property
    def bottoms(self) -> Tensor:
        """(k,) metres above the ground."""
        return self.centers[:, 2] - self.sizes[:, 2] / 2

    @property
    def distances(self) -> Tensor:
        """(k,) metres from the ego origin."""
        return self.centers[:, :2].norm(dim=1)


def categories(found: Mapping[str, Boxes], grid: BEVGrid) -> dict[str, Category]:
    """The boxes of all frames by their category."""
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
    """How many boxes of every category there are, how large, how far, and how much of the grid they cover."""
    columns = ("boxes", "size", "bottom", "distance", "covers", "< cell", "no cell")
    table = Table("category", *(Column(name, justify="right", no_wrap=True) for name in columns), box=SIMPLE_HEAD)
    for name, category in found.items():
        table.add_row(
            name,
            str(len(category.centers)),
            "×".join(f"{side.median():.1f}" for side in category.sizes.unbind(1)) + "m",
            f"{_middle(category.bottoms):z.2f}±{_spread(category.bottoms):.2f}m",
            f"{_range(category.distances)}m",
            f"{category.covered:.2%}",
            str(category.narrow),
            str(category.lost),
        )
    table.caption = (
        f"size: length×width×height. bottom: above the ground, median ± spread. covers: of forward {grid.forward_m}, left "
        f"{grid.left_m} m. < cell: a side below {grid.cell_m:g} m. no cell: in there, but over no cell's centre."
    )
    return table


def _middle(values: Tensor) -> float:
    return values.double().quantile(0.5).item()


def _spread(values: Tensor) -> float:
    """Half the range of the middle 68 %: the standard deviation of what is spread normally."""
    low, high = values.double().quantile(torch.tensor([0.16, 0.84], dtype=torch.float64)).tolist()
    return (high - low) / 2


def doubts(frames: Frames, grid: BEVGrid, boxes: Mapping[str, Boxes]) -> list[str]:
    """Sentences on what can be read but is probably not what was meant."""
    sentences = []
    for number, name in enumerate(frames.calibration.cameras):
        for frame in frames.names:
            mistakes = camera_mistakes(frames.calibration.of(frame), number, grid)
            if mistakes:
                sentences += [f"camera {name!r}, frame {frame!r}: {mistake}" for mistake in mistakes]
                break
    sentences += twins(frames.calibration)
    unknown = sorted(set(frames.calibration.frames) - set(frames.names))
    if unknown:
        sentences.append(
            f"calibration.json calibrates {len(unknown)} frames that have no image, first {unknown[0]!r}; is it the frames' names?"
        )
    yaws = torch.cat([each.yaws.rad2deg() for each in boxes.values()]) if boxes else torch.zeros(0)
    if len(yaws) >= 5 and yaws.abs().max() <= math.pi and yaws.abs().max() > 0:
        sentences.append(f"boxes: no yaw_deg of {len(yaws)} is above {yaws.abs().max():.2f}; are they radians?")
    return sentences


def camera_mistakes(rig: Rig, number: int, grid: BEVGrid) -> list[str]:
    """Clauses on what is probably wrong with one camera of a rig."""
    lens = rig.lenses[number]
    found = [diagnose_pose(rig.camera(number), grid)]
    found += [] if lens is None else [tangential_mistake(lens), magnification_mistake(lens)]
    known = [clause for clause in found if clause is not None]
    return known + intrinsics_mistakes(rig.stored_intrinsics(number), rig.sizes[number])


def twins(calibration: Calibration) -> list[str]:
    """Sentences on cameras that have pose and intrinsics in common, as a copied entry has."""
    rig = calibration.rigs[0]
    return [
        f"cameras {calibration.cameras[a]!r} and {calibration.cameras[b]!r} have the same pose and intrinsics; was one copied?"
        for a, b in combinations(range(len(calibration.cameras)), 2)
        if torch.equal(rig.ego_from_cam[a], rig.ego_from_cam[b]) and torch.equal(rig.intrinsics[a], rig.intrinsics[b])
    ]


def box_doubts(frames: Frames, grid: BEVGrid, found: Mapping[str, Category]) -> list[str]:
    """Sentences on boxes that stand beside the ground, or that no cell shows."""
    return [*_bottom_doubts(frames, found), *_size_doubts(grid, found)]


def _bottom_doubts(frames: Frames, found: Mapping[str, Category]) -> Iterator[str]:
    near = {name: category.bottoms[category.distances < FLAT_M] for name, category in found.items()}
    bottoms = torch.cat([*near.values(), torch.zeros(0)])
    if len(bottoms) and abs(_middle(bottoms)) > FLOATING_M:
        yield (
            f"boxes: the bottoms of those within {FLAT_M:g} m stand {_middle(bottoms):.1f} m above the ground (median); center_m must "
            "be the middle of the box in the ego frame, not in a sensor's"
        )
        return
    height_m = frames.calibration.rigs[0].ego_from_cam[0, 2, 3].item()
    for name, values in near.items():
        if len(values) < FEWEST:
            continue
        middle, spread = _middle(values), _spread(values)
        uncertain = 1.25 * spread / math.sqrt(len(values))  # standard error of a median
        if abs(middle) < max(SUNKEN_M, 3 * uncertain) or abs(middle) > FLOATING_M:
            continue  # what hangs high, such as a sign, may well do so
        moved = FLAT_M * middle / (height_m - middle)
        effect = (
            f"; seen from {height_m:.2f} m they are laid {abs(moved):.1f} m too {'far' if moved > 0 else 'near'} where they are {FLAT_M:g} "
            "m ahead"
            if height_m > middle
            else ""
        )
        yield (
            f"boxes: the bottoms of {name} within {FLAT_M:g} m lie {abs(middle):.2f} ± {spread:.2f} m {'above' if middle > 0 else 'below'} "
            f"the ground (median and spread of {len(values)}){effect}; z = 0 of the ego frame must be the ground that they stand on"
        )


def _size_doubts(grid: BEVGrid, found: Mapping[str, Category]) -> Iterator[str]:
    for name, category in found.items():
        if category.lost:
            yield (
                f"boxes: {category.narrow} of {len(category.centers)} {name} have a side shorter than a cell of {grid.cell_m:g} m, and "
                f"{category.lost} of them in the grid cover no cell's centre, so no target shows them; choose smaller cells with "
                "data.grid.cell_m, or leave the class out"
            )


def _count(values: Tensor) -> Tensor:
    return torch.bincount(values.flatten(), minlength=256).float()


def check_splits(root: Path, frames: Frames) -> tuple[Table, list[str], list[str]]:
    """The lists under ``splits/``, what is wrong with them, and what is doubtful."""
    table, faults, remarkable = Table("split", "frames", "remark", box=SIMPLE_HEAD), [], []
    seen: dict[str, str] = {}
    paths = visible(root / "splits", "*.txt") if (root / "splits").exists() else []
    for path in paths:
        try:
            names = read_split(path)
        except InputError as error:
            faults.append(str(error))
            table.add_row(path.stem, "", "cannot be used")
            continue
        unknown = sorted(set(names) - set(frames.names))
        shared = sorted(name for name in names if name in seen)
        found = [f"{_listed(unknown)} without an image"] if unknown else []
        found += [f"{_listed(shared)} also in {seen[shared[0]]}: results would be too good"] if shared else []
        faults += [f"{path}: {remark}" for remark in found]
        seen |= dict.fromkeys(names, path.stem)
        table.add_row(path.stem, str(len(names)), "; ".join(found))
    unused = [name for name in frames.names if name not in seen]
    if paths and unused:
        table.caption = f"in no split: {_listed(unused)}"
    given = {path.stem for path in paths}
    if "train" in given and set(SPLITS) - given:
        missing = ", ".join(f"{name}.txt" for name in SPLITS if name not in given)
        remarkable.append(f"splits: there is no {missing}; training asks for it, or for data.splits")
    for one, other in _copies(frames, seen):
        remarkable.append(
            f"splits: {one!r} of {seen[one]} and {other!r} of {seen[other]} have the same image: results would be too good"
        )
    return table, faults, remarkable


def _copies(frames: Frames, splits: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Frames of different splits whose first images are the same file, byte for byte."""
    paths: dict[str, Path] = {}
    for index, name in enumerate(frames.names):
        found = (frames.image_path(index, number) for number in range(len(frames.calibration.cameras)))
        path = next((path for path in found if path is not None), None)
        if name in splits and path is not None:
            paths[name] = path
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, path in paths.items():
        by_size[path.stat().st_size].append(name)
    for names in by_size.values():
        first: dict[bytes, str] = {}
        for name in names if len({splits[name] for name in names}) > 1 else ():
            original = first.setdefault(hashlib.blake2b(paths[name].read_bytes()).digest(), name)
            if splits[original] != splits[name]:
                yield original, name


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


@rc_context({"text.parse_math": False})  # names may hold a dollar
def overlay(
    frames: Frames,
    index: int,
    grid: BEVGrid,
    images: ImageLabels | None,
    truth: BEVLabels | None,
    boxes: Boxes | None = None,
) -> Figure:
    """A frame's cameras, one a row: the image with the ground's lines, and the ground from the image. Of several cameras,
    the ground from all of them comes first."""
    name, count = frames.names[index], len(frames.calibration.cameras)
    together = 2.5 if count > 1 else 0.0  # rows
    figure = Figure(figsize=(15, 5.2 * (count + together)), layout="constrained")
    rest: FigureBase = figure
    if count > 1:
        above, rest = figure.subfigures(2, 1, squeeze=False, height_ratios=(together, count))[:, 0]
        axes = above.subplots()
        _draw_bev(axes, *mosaic(frames, index, grid), grid, _true_planes(truth, name), boxes)
        axes.set(title=f"the ground, from all cameras · {name}")
    mask = torch.tensor([frames.image_path(index, number) is not None for number in range(count)])
    ids = None if images is None else images.read(name, mask)
    for row, axes in enumerate(rest.subplots(count, 2, squeeze=False, width_ratios=(1.5, 1))):
        path = frames.image_path(index, row)
        if path is None:
            continue
        camera, image = camera_of(frames.calibration, name, row), read_straight(frames, index, row)
        bev, seen = image_to_bev(image[None, None], camera, grid)
        planes: dict[str, Tensor] = {}
        if images is not None and ids is not None:
            height, width = camera.image_size
            laid = images.lay(ids[None, [row], :height, :width], camera, grid)
            planes = {f"{key} (IPM)": plane[0].float() for key, (plane, _) in laid.items() if plane.any()}
        planes |= _true_planes(truth, name)
        _draw_image(axes[0], image, camera, grid, planes, f"{frames.calibration.cameras[row]} · {name}")
        if boxes is not None:
            _draw_wireframes(axes[0], camera, boxes)
        _draw_bev(axes[1], bev[0, 0], seen[0, 0], grid, planes, boxes)
    return figure


def _true_planes(truth: BEVLabels | None, name: str) -> dict[str, Tensor]:
    laid = {} if truth is None else truth.lay(truth.read(name)[None])
    return {f"{key} (truth)": plane[0].float() for key, (plane, _) in laid.items() if plane.any()}


def read_straight(frames: Frames, index: int, camera: int) -> Tensor:
    """A frame's image as large as it is stored, undistorted, in 0..1; black where it is missing."""
    rig, path = frames.calibration.of(frames.names[index]), frames.image_path(index, camera)
    if path is None:
        return torch.zeros(3, *rig.sizes[camera])
    check_size(path, read_image_size(path), rig.sizes[camera], frames.calibration.path)
    image, lens = read_image(path, image_mode=frames.image_mode), rig.lenses[camera]
    return (image if lens is None else undistort(image, lens)).float() / 255


def mosaic(frames: Frames, index: int, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """All images of a frame on one ground, their mean where several see it (3, rows, cols), and where one does."""
    total, count = torch.zeros(3, *grid.shape), torch.zeros(grid.shape)
    for number in range(len(frames.calibration.cameras)):
        if frames.image_path(index, number) is None:
            continue
        camera = camera_of(frames.calibration, frames.names[index], number)
        bev, seen = image_to_bev(read_straight(frames, index, number)[None, None], camera, grid)
        total, count = total + bev[0, 0], count + seen[0, 0]
    return total / count.clamp(min=1), count > 0


def _draw_image(
    axes: Axes, image: Tensor, camera: Cameras, grid: BEVGrid, planes: dict[str, Tensor], title: str
) -> None:
    height, width = camera.image_size
    axes.imshow(image.permute(1, 2, 0).numpy())
    for number, plane in enumerate(planes.values()):
        drawn = bev_to_image(plane[None, None], camera, grid)[0][0, 0, 0]
        axes.contour(drawn.numpy(), [0.5], colors=COLOURS[number % len(COLOURS)], linewidths=0.9)
    for points, label in _ground_lines(grid):
        on_ground = torch.tensor(points, dtype=torch.float32)
        pixels, depth = camera.project(torch.cat([on_ground, torch.zeros(len(points), 1)], dim=1)[None])
        seen = camera.sees(pixels, depth)[0, 0]
        line = torch.where(seen[:, None], pixels[0, 0], torch.nan).numpy()
        axes.plot(line[:, 0], line[:, 1], color="white", linewidth=0.7, alpha=0.8)
        if seen.any():
            lowest = line[np.nanargmax(line[:, 1])]
            axes.annotate(label, lowest, color="white", fontsize=7, backgroundcolor="#0006")
    axes.set(title=title, xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xlabel="u, pixels", ylabel="v, pixels")


def _draw_wireframes(axes: Axes, camera: Cameras, boxes: Boxes) -> None:
    """The edges of every box in an image, and a stroke on its bottom from the middle to the front."""
    corners = boxes.corners.float()
    pairs = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]
    starts, ends = (torch.stack([corners[:, pair[side]] for pair in pairs], dim=1) for side in (0, 1))  # k 12 3
    front, bottom = (corners[:, [1, 3]].mean(1), corners[:, :4].mean(1))
    starts = torch.cat([starts, bottom[:, None]], dim=1)
    ends = torch.cat([ends, front[:, None]], dim=1)
    share = torch.linspace(0, 1, 24)[:, None]
    points = starts[:, :, None] + (ends - starts)[:, :, None] * share  # k 13 24 3
    pixels, depth = camera.project(points.flatten(0, 2)[None])
    pixels = torch.where((depth > NEAREST_M)[..., None], pixels, torch.nan).reshape(*points.shape[:3], 2)
    broken = torch.cat([pixels, torch.full_like(pixels[:, :, :1], torch.nan)], dim=2)  # between two edges
    for box, category in zip(broken.flatten(1, 2).numpy(), boxes.categories, strict=True):
        axes.plot(box[:, 0], box[:, 1], color=_box_colour(boxes, category), linewidth=0.8)


def _draw_footprints(axes: Axes, boxes: Boxes) -> None:
    corners = boxes.corners
    outline = corners[:, [0, 1, 3, 2, 0], :2]
    strokes = torch.stack([corners[:, :4, :2].mean(1), corners[:, [1, 3], :2].mean(1)], dim=1)
    gaps = torch.full_like(outline[:, :1], torch.nan)
    for box, category in zip(torch.cat([outline, gaps, strokes], dim=1).numpy(), boxes.categories, strict=True):
        axes.plot(box[:, 1], box[:, 0], color=_box_colour(boxes, category), linewidth=0.8)
    for category in sorted(set(boxes.categories)):
        axes.plot([], [], color=_box_colour(boxes, category), label=category)


def _box_colour(boxes: Boxes, category: str) -> str:
    return COLOURS[-1 - sorted(set(boxes.categories)).index(category) % len(COLOURS)]  # labels begin at the other end


def _draw_bev(
    axes: Axes, bev: Tensor, seen: Tensor, grid: BEVGrid, planes: dict[str, Tensor], boxes: Boxes | None
) -> None:
    extent = (grid.left_m[1], grid.left_m[0], grid.forward_m[0], grid.forward_m[1])
    shown = torch.where(seen, bev, torch.full_like(bev, 0.5))
    axes.imshow(shown.permute(1, 2, 0).numpy(), extent=extent)
    centers = grid.centers().numpy()
    for number, (name, plane) in enumerate(planes.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.contour(centers[0, :, 1], centers[:, 0, 0], plane.numpy(), [0.5], colors=colour, linewidths=0.9)
        axes.plot([], [], color=colour, label=name)
    if boxes is not None:
        _draw_footprints(axes, boxes)
    if planes or (boxes is not None and boxes.categories):
        axes.legend(fontsize=7, loc="upper right")
    step = _step(grid)
    axes.set_xticks(_multiples(grid.left_m, step))
    axes.set_yticks(_multiples(grid.forward_m, step))
    axes.grid(color="white", linewidth=0.4, alpha=0.6)
    axes.set(title="the ground, from this image", xlabel="left, m", ylabel="forward, m", aspect="equal")
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _ground_lines(grid: BEVGrid) -> Iterator[tuple[list[tuple[float, float]], str]]:
    step = _step(grid)
    (back, front), (right, left) = grid.forward_m, grid.left_m
    xs, ys = np.linspace(back, front, 400), np.linspace(right, left, 400)
    for x in _multiples(grid.forward_m, step):
        yield [(x, y) for y in ys], f"{x:.3g} m"
    for y in _multiples(grid.left_m, step):
        yield [(x, y) for x in xs], f"{abs(y):.3g} m {'left' if y > 0 else 'right'}" if y else "ahead"


def _multiples(bounds: Sequence[float], step: float) -> np.ndarray:
    return np.arange(math.ceil(bounds[0] / step), math.floor(bounds[1] / step + 1e-6) + 1) * step


def _step(grid: BEVGrid) -> float:
    """Metres between two lines: 1, 2 or 5 times a power of ten, for about six of them."""
    span = max(grid.rows, grid.cols) * grid.cell_m / 6
    power = 10 ** math.floor(math.log10(span))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= span)


def check(
    root: Path, grid: BEVGrid | None, frame: str | None, out: Path | None, image_mode: str = "rgb"
) -> tuple[list[str], list[str]]:
    """All of it; returns what is wrong and what is doubtful, a sentence each."""
    console = Console()
    calibration = read_calibration(root / "calibration.json")
    targets = grid or _target_grid(calibration)
    grid = grid or default_grid(calibration)
    calibration.check_views(grid)
    frames = Frames(root / "images", calibration, (32, 32), allow_missing=True, image_mode=image_mode)
    if frame is not None and frame not in frames.names:
        raise InputError(f"{root}: there is no frame {frame!r}; {suggest(frame, frames.names)}")
    images = truth = None
    if calibration.labels is not None:
        images = ImageLabels(root / "labels", calibration, {name: [name] for name in calibration.labels.members})
    if calibration.bev is not None and calibration.bev_grid is not None:
        own = {name: [name] for name in calibration.bev.members}
        truth = BEVLabels(root / "bev", calibration, own, calibration.bev_grid)
    boxes = root / "boxes" if calibration.boxes is not None else None
    console.print(
        f"[bold]{escape(str(root))}[/]: {len(frames)} frames, {len(calibration.cameras)} cameras. {escape(calibration.note)}",
        soft_wrap=True,
    )
    print_table(describe_cameras(frames, grid))
    for line in describe_lenses(frames):
        console.print(escape(line), soft_wrap=True)
    splits, faults, remarkable = check_splits(root, frames)
    if splits.row_count:
        print_table(splits)
    else:
        console.print("no splits/*.txt: list frames there, one a line, or in data.splits", soft_wrap=True)
    labels, found, broken = check_frames(frames, images, truth, boxes)
    faults += broken
    if labels.row_count:
        print_table(labels)
    by_category = categories(found, targets)
    if by_category:
        print_table(describe_boxes(by_category, targets))
    doubted = [*remarkable, *doubts(frames, grid, found), *box_doubts(frames, targets, by_category)]
    for sentence in doubted:
        console.print(f"[yellow]doubt:[/] {escape(sentence)}", soft_wrap=True)
    if out is not None:
        try:
            _draw(frames, frame, grid, images, truth, boxes, out)
            console.print(
                f"wrote {escape(str(out))}: are the lines on the road, straight and parallel from above?",
                soft_wrap=True,
            )
        except InputError as error:
            faults.append(f"{out} cannot be drawn: {error}")
    return faults, doubted


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _target_grid(calibration: Calibration) -> BEVGrid:
    """The cells of data=folder where they fit, or the truth's own."""
    drawn = default_grid(calibration)
    spans = [high - low for low, high in (drawn.forward_m, drawn.left_m)]
    whole = all(math.isclose(span, round(span / TRAINING_CELL_M) * TRAINING_CELL_M) for span in spans)
    return BEVGrid(drawn.forward_m, drawn.left_m, TRAINING_CELL_M) if whole else drawn


def _draw(
    frames: Frames,
    frame: str | None,
    grid: BEVGrid,
    images: ImageLabels | None,
    truth: BEVLabels | None,
    boxes: Path | None,
    out: Path,
) -> None:
    index = frames.names.index(frame) if frame else 0
    drawn = None if boxes is None else boxes_of(frames, index, boxes)
    fitting = truth if grid == frames.calibration.bev_grid else None
    figure = overlay(frames, index, grid, images, fitting, drawn)
    write_atomic(out, lambda file: figure.savefig(file, dpi=90, format="png"))


def main() -> None:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="camera folder")
    parser.add_argument("--out", type=Path, help="PNG to draw the overlay of one frame to")
    parser.add_argument("--frame", help="which frame; the first by default")
    parser.add_argument("--forward", type=float, nargs=2, metavar=("FROM", "TO"), help="metres to draw")
    parser.add_argument("--left", type=float, nargs=2, metavar=("FROM", "TO"), help="metres to draw; right is negative")
    parser.add_argument("--cell", type=float, help="metres a cell")
    parser.add_argument(
        "--image-mode", choices=get_args(ImageMode), default="rgb", help="how images are read; grey of one channel"
    )
    args = parser.parse_args()
    given = [value is not None for value in (args.forward, args.left, args.cell)]
    if any(given) and not all(given):
        raise InputError("--forward, --left and --cell describe a grid together; give all three")
    grid = BEVGrid(tuple(args.forward), tuple(args.left), args.cell) if all(given) else None
    faults, doubted = check(args.folder, grid, args.frame, args.out, args.image_mode)
    console = Console(stderr=True)
    for fault in faults:
        console.print(f"[red]fault:[/] {escape(fault)}", soft_wrap=True, highlight=False)
    counted = [
        _counted(len(sentences), what) for sentences, what in ((faults, "fault"), (doubted, "doubt")) if sentences
    ]
    console.print(f"{' and '.join(counted)}, named above" if counted else "no fault found", highlight=False)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    cli.speaking(main)
