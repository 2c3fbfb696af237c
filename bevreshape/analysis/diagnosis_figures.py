"""Draw the results of a diagnosis."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from bevreshape.analysis.geometric_alignment import projections
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reporting.labels import figure_text
from bevreshape.reshapers import FeatureShape


def draw_weights(
    images: Float[Tensor, "n 3 H W"],
    weights: Mapping[str, Float[Tensor, "q n h w"]],
    cameras: Cameras,
    grid: BEVGrid,
    source: FeatureShape,
    cells: Sequence[tuple[int, int]],
    shown: int = 8,
) -> Figure:
    """Draw the effective weights of some cells, from far to near, over the images, and mark the cells' projections.

    Args:
        images: images of one sample, in 0..1.
        weights: weights of its cells, by name of the reshaper; one row of panels each.
        cameras: cameras; the first sample is this one.
        grid: the cells.
        source: shape of the features.
        cells: (row, column) of the q cells.
        shown: number of visible cells to draw.
    """
    positions, seen = (x[0].cpu() for x in projections(cameras, grid, source, cells))  # q n 2, q n
    visible = seen.any(1).nonzero().squeeze(1)
    chosen = visible[torch.linspace(0, len(visible) - 1, min(shown, len(visible))).round().long()].tolist()
    cols = 4 if len(weights) == 1 else len(chosen)
    rows = -(-len(chosen) // cols) * len(weights)
    figure = Figure(figsize=(3 * cols, 1.9 * rows + 0.3), layout="constrained")
    panels = iter(figure.subplots(rows, cols, squeeze=False).flat)
    half = source.stride / 2
    right, bottom = (source.offset_px + source.stride * (count - 1) + half for count in (source.width, source.height))
    extent = (source.offset_px - half, right, bottom, source.offset_px - half)
    centers = grid.centers()
    for name, found in weights.items():
        for q, panel in zip(chosen, panels, strict=False):
            camera = int(seen[q].nonzero()[0])
            image = images[camera].permute(1, 2, 0).float().cpu().numpy()
            panel.imshow(image @ np.array([0.3, 0.59, 0.11]), cmap="gray", vmin=0, vmax=1)
            heat = (found[q, camera] / found[q].max().clamp(min=1e-12)).float().cpu().numpy()
            panel.imshow(heat, cmap="inferno", alpha=np.sqrt(heat) * 0.85, extent=extent, vmin=0, vmax=1)
            u, v = (positions[q, camera] * source.stride + source.offset_px).tolist()
            panel.plot(u, v, "+", color="cyan", markersize=12, markeredgewidth=2)
            x, y = centers[cells[q]].tolist()
            where = f"{x:.0f} m ahead, {abs(y):.0f} m {'left' if y >= 0 else 'right'}"
            panel.set_title(where if len(weights) == 1 else f"{figure_text(name)}: {where}", fontsize=9)
            panel.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    for panel in figure.axes:
        panel.set_axis_off()
    names = ", ".join(map(figure_text, weights))
    figure.suptitle(f"{names}: effective weights of cells over the images; + is a cell's projection", fontsize=10)
    return figure


def draw_robustness(found: Mapping[str, Mapping[str, Mapping[str, float]]], unchanged: float) -> Figure:
    """Plot mean IoU against every error; bars for dropped cameras."""
    cols = min(4, len(found))
    rows = -(-len(found) // 4)
    figure = Figure(figsize=(3 * cols, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, cols, squeeze=False, sharey=True).flat
    for (group, values), panel in zip(found.items(), panels, strict=False):
        iou = [value["iou/mean"] for value in values.values()]
        if group == "without":
            panel.bar(list(map(figure_text, values)), iou)
            panel.tick_params(axis="x", rotation=60)
        else:
            points = sorted({0.0: unchanged, **dict(zip(map(float, values), iou, strict=True))}.items())
            panel.plot(*zip(*points, strict=True), "o-")
        panel.axhline(unchanged, color="gray", linewidth=0.8, linestyle=":")
        panel.set(xlabel=figure_text(group), ylim=(0, None))
    for row in range(rows):
        figure.axes[row * cols].set_ylabel("mean IoU")
    for panel in figure.axes[len(found) :]:
        panel.set_axis_off()
    return figure
