"""Draw a frame: its images with the ground, and the ground from its images."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from bevreshape.data.image_io import read_image, read_image_size, undistort
from bevreshape.data.sources.folder.boxes import Boxes
from bevreshape.data.sources.folder.dataset import CameraFolderDataset, check_size
from bevreshape.data.sources.folder.labels import BEVLabels, ImageLabels
from bevreshape.geometry import (
    BEVGrid,
    Cameras,
    bev_to_image,
    image_to_bev,
)
from folder_check.cameras import camera_of

COLORS = ("#ff3b30", "#34c7ff", "#ffd60a", "#30d158", "#bf5af2", "#ff9f0a", "#64d2ff", "#ff7bd5")
NEAREST_M = 0.2
"""Least depth at which a box is drawn into an image."""


@rc_context({"text.parse_math": False})  # names may hold a dollar
def overlay(
    frames: CameraFolderDataset,
    index: int,
    grid: BEVGrid,
    images: ImageLabels | None,
    bev_labels: BEVLabels | None,
    boxes: Boxes | None = None,
) -> Figure:
    """Draw a frame's cameras, one for each row: the image with the ground's lines, and the ground from the image.

    With several cameras, the ground from all of them comes first.
    """
    name, count = frames.names[index], len(frames.calibration.cameras)
    together = 2.5 if count > 1 else 0.0  # rows
    figure = Figure(figsize=(15, 5.2 * (count + together)), layout="constrained")
    rest: FigureBase = figure
    if count > 1:
        above, rest = figure.subfigures(2, 1, squeeze=False, height_ratios=(together, count))[:, 0]
        axes = above.subplots()
        _draw_bev(axes, *mosaic(frames, index, grid), grid, _bev_planes(bev_labels, name), boxes)
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
            projected = images.to_bev(ids[None, [row], :height, :width], camera, grid)
            planes = {f"{key} (IPM)": plane[0].float() for key, (plane, _) in projected.items() if plane.any()}
        planes |= _bev_planes(bev_labels, name)
        _draw_image(axes[0], image, camera, grid, planes, f"{frames.calibration.cameras[row]} · {name}")
        if boxes is not None:
            _draw_wireframes(axes[0], camera, boxes)
        _draw_bev(axes[1], bev[0, 0], seen[0, 0], grid, planes, boxes)
    return figure


def _bev_planes(bev_labels: BEVLabels | None, name: str) -> dict[str, Tensor]:
    projected = {} if bev_labels is None else bev_labels.to_bev(bev_labels.read(name)[None])
    return {f"{key} (labels)": plane[0].float() for key, (plane, _) in projected.items() if plane.any()}


def read_straight(frames: CameraFolderDataset, index: int, camera: int) -> Tensor:
    """Return a frame's image of the stored size, undistorted, in 0..1; black where it is missing."""
    rig, path = frames.calibration.of(frames.names[index]), frames.image_path(index, camera)
    if path is None:
        return torch.zeros(3, *rig.sizes[camera])
    check_size(path, read_image_size(path), rig.sizes[camera], frames.calibration.path)
    image, distortion = read_image(path, image_mode=frames.image_mode), rig.distortions[camera]
    return (image if distortion is None else undistort(image, distortion)).float() / 255


def mosaic(frames: CameraFolderDataset, index: int, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """Project all images of a frame onto one ground plane.

    Returns:
        Their mean where several observe a cell, (3, rows, cols), and the cells that one observes.
    """
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
        axes.contour(drawn.numpy(), [0.5], colors=COLORS[number % len(COLORS)], linewidths=0.9)
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
    """Draw the edges of every box in an image, and a stroke on its bottom from the middle to the front."""
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
        axes.plot(box[:, 0], box[:, 1], color=_box_color(boxes, category), linewidth=0.8)


def _draw_footprints(axes: Axes, boxes: Boxes) -> None:
    corners = boxes.corners
    outline = corners[:, [0, 1, 3, 2, 0], :2]
    strokes = torch.stack([corners[:, :4, :2].mean(1), corners[:, [1, 3], :2].mean(1)], dim=1)
    gaps = torch.full_like(outline[:, :1], torch.nan)
    for box, category in zip(torch.cat([outline, gaps, strokes], dim=1).numpy(), boxes.categories, strict=True):
        axes.plot(box[:, 1], box[:, 0], color=_box_color(boxes, category), linewidth=0.8)
    for category in sorted(set(boxes.categories)):
        axes.plot([], [], color=_box_color(boxes, category), label=category)


def _box_color(boxes: Boxes, category: str) -> str:
    return COLORS[-1 - sorted(set(boxes.categories)).index(category) % len(COLORS)]  # labels begin at the other end


def _draw_bev(
    axes: Axes, bev: Tensor, seen: Tensor, grid: BEVGrid, planes: dict[str, Tensor], boxes: Boxes | None
) -> None:
    extent = (grid.left_m[1], grid.left_m[0], grid.forward_m[0], grid.forward_m[1])
    shown = torch.where(seen, bev, torch.full_like(bev, 0.5))
    axes.imshow(shown.permute(1, 2, 0).numpy(), extent=extent)
    centers = grid.centers().numpy()
    for number, (name, plane) in enumerate(planes.items()):
        color = COLORS[number % len(COLORS)]
        axes.contour(centers[0, :, 1], centers[:, 0, 0], plane.numpy(), [0.5], colors=color, linewidths=0.9)
        axes.plot([], [], color=color, label=name)
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
    """Return metres between two lines: 1, 2 or 5 times a power of ten, for about six of them."""
    span = max(grid.rows, grid.cols) * grid.cell_m / 6
    power = 10 ** math.floor(math.log10(span))
    return power * max(factor for factor in (1, 2, 5) if factor * power <= span)
