"""All instruments on one trained model: learned weights, and robustness."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from bevreshape.analysis.data_dependence import relative_spread
from bevreshape.analysis.effective_weights import attention_weights, cell_raster, jacobian_norm, product_count
from bevreshape.analysis.evaluation import Change, evaluating
from bevreshape.analysis.geometric_alignment import geometry_agreement, projections
from bevreshape.analysis.permutation import can_move, iou_when_permuted, permutation_error
from bevreshape.analysis.robustness import corrupt_images, drop_camera, iou_under, perturb_calibration, rotate_rig
from bevreshape.data.batch import BEVBatch, seeded
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reporting.labels import figure_text
from bevreshape.reporting.progress import Progress
from bevreshape.reshapers import FeatureShape, Reshaper


class Split(Protocol):
    """Batches of a split on the model's device, and their number."""

    def __iter__(self) -> Iterator[BEVBatch]: ...

    def __len__(self) -> int: ...


Batches = Callable[[], Split]
"""Returns the split from its first batch at every call."""

PERMUTATION = 0x5045524D
"""Component of the permutation's random seed."""


@dataclass(frozen=True)
class Plan:
    """Amount of measurements.

    Attributes:
        samples: number of samples whose weights are measured and which are permuted.
        cells: k; weights are measured at about k × k cells, evenly over the map.
        probes: random probes per cell; ``None`` measures exactly, with as many products as the map has channels.
        errors: amounts of calibration error, by name of the error.
        corruptions: severities by name of the corruption.
        rigs: degrees by which all cameras are rotated, images and calibration alike, by name of the rotation.
    """

    samples: int
    cells: int
    probes: int | None
    errors: Mapping[str, Sequence[float | int]]
    corruptions: Mapping[str, Sequence[float | int]]
    rigs: Mapping[str, Sequence[float | int]]


@dataclass(frozen=True)
class Diagnosis:
    """Results of a diagnosis.

    Attributes:
        numbers: values for a JSON file.
        figures: figures by name.
    """

    numbers: dict[str, Any]
    figures: dict[str, Figure]


def diagnose(
    model: BEVModel,
    batches: Batches,
    metric: BEVIoU,
    camera_names: Sequence[str],
    plan: Plan,
    true: Cameras | None = None,
) -> Diagnosis:
    """Run every instrument.

    An instrument that does not apply, such as permuting the tokens of several scales, reports the reason instead of
    values.

    Args:
        model: a trained model.
        batches: batches of a split, with the metric's classes.
        metric: a metric on the model's classes and grid.
        camera_names: names of the rig's cameras.
        plan: amount of measurements.
        true: exact calibration of the first samples, if that of the batches is not.

    Raises:
        InputError: if the reshaper does not have source and grid, or the split is empty.
    """
    reshaper = model.reshaper
    if not isinstance(reshaper, Reshaper) or not isinstance(reshaper.grid, BEVGrid):
        raise InputError(
            f"diagnose: the model's reshaper, a {type(reshaper).__name__}, has no grid of cells; derive "
            "it from Reshaper and build it with a BEVGrid"
        )
    images, scales, cameras = first_samples(model, batches(), plan.samples)
    features = scales[0] if len(scales) == 1 else scales
    cells = cell_raster(reshaper.target_shape, plan.cells)
    true = cameras if true is None else true

    def agreement(weights: Tensor) -> dict[str, Any]:
        assert isinstance(reshaper.grid, BEVGrid)
        return asdict(geometry_agreement(weights, true, reshaper.grid, reshaper.source, cells=cells))

    products = product_count(len(images), len(cells), plan.probes or reshaper.out_channels)
    with Progress("weights", products) as progress:
        weights = jacobian_norm(
            reshaper, features, cameras, cells=cells, probes=plan.probes, step=progress.advance
        )  # b q n h w

    def of_images(weights: Tensor) -> Tensor:
        """Return the weights of all samples under the first sample's cameras, so that only images differ."""
        poses, intrinsics = cameras.ego_from_cam, cameras.intrinsics
        first = Cameras(
            intrinsics[:1].expand_as(intrinsics), poses[:1].expand_as(poses), cameras.image_size, cameras.full_mask
        )
        if torch.equal(first.intrinsics, intrinsics) and torch.equal(first.ego_from_cam, poses):
            return weights
        with Progress("weights under one calibration", products) as progress:
            return jacobian_norm(reshaper, features, first, cells=cells, probes=plan.probes, step=progress.advance)

    changes = _changes(plan, camera_names, metric.grid)
    named = {name: change for _, _, name, change in changes}
    with Progress("errors and failures", len(batches()) * (1 + len(named))) as progress:
        found = iou_under(model, batches(), metric, named, progress.advance)
    robustness: dict[str, dict[str, dict[str, float]]] = {}
    for group, what, name, _ in changes:
        robustness.setdefault(group, {})[what] = found[name]
    numbers = {
        "reshaper": reshaper.name,
        "samples": len(images),
        "cells": len(cells),
        "probes": plan.probes,
        "iou": found["unchanged"],
        "data_dependence": relative_spread([of_images(weights)]),
        "agreement": _or_reason(lambda: agreement(weights)),
        "attention": _or_reason(lambda: agreement(attention_weights(reshaper, features, cameras, cells=cells).mean(1))),
        "order": _or_reason(lambda: _order(model, scales, cameras, batches, metric)),
        "robustness": robustness,
    }
    figures = {
        "weights": draw_weights(images[0], {reshaper.name: weights[0]}, true, reshaper.grid, reshaper.source, cells)
    }
    if robustness:
        figures["robustness"] = draw_robustness(robustness, found["unchanged"]["iou/mean"])
    return Diagnosis(numbers, figures)


def _changes(plan: Plan, camera_names: Sequence[str], grid: BEVGrid) -> list[tuple[str, str, str, Change]]:
    """Return group, name in the group, unique name, and change of every variant."""
    changes: list[tuple[str, str, str, Change]] = []
    for error, amounts in plan.errors.items():
        changes += [(error, f"{x:+g}", f"{error}={x:+g}", perturb_calibration(error, x)) for x in _both_ways(amounts)]
    for turn, amounts in plan.rigs.items():
        name = f"rig turned, {turn}"
        changes += [(name, f"{x:+g}", f"{name}={x:+g}", rotate_rig(turn, x, grid)) for x in _both_ways(amounts)]
    if len(camera_names) > 1:
        changes += [("without", name, f"without {name}", drop_camera(i)) for i, name in enumerate(camera_names)]
    for kind, severities in plan.corruptions.items():
        changes += [(kind, f"{s:g}", f"{kind}={s:g}", corrupt_images(kind, float(s))) for s in sorted(severities)]
    return changes


def _both_ways(amounts: Sequence[float | int]) -> list[float]:
    return sorted({float(sign * amount) for amount in amounts for sign in (-1, 1)})


def _order(
    model: BEVModel, scales: Sequence[Tensor], cameras: Cameras, batches: Batches, metric: BEVIoU
) -> dict[str, Any]:
    """Measure the effect of a random permutation of every camera's tokens."""
    reshaper = model.reshaper
    assert isinstance(reshaper, Reshaper)
    permutation = torch.randperm(reshaper.source.tokens, generator=seeded(0, PERMUTATION)).to(scales[0].device)
    found: dict[str, Any] = {
        "invariance_error": permutation_error(reshaper, scales[0], permutation, cameras),
        "relative_invariance_error": permutation_error(
            reshaper, scales[0], permutation, cameras, relative_to="unrelated"
        ),
    }
    variants = 3 + can_move(reshaper)
    with Progress("permuted tokens", len(batches()) * variants) as progress:
        permuted = iou_when_permuted(model, batches(), metric, permutation, progress.advance)
    found["iou"] = {name: values["iou/mean"] for name, values in permuted.items()}
    return found


def _or_reason(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the measurement, or the reason why it does not apply."""
    try:
        return measure()
    except InputError as error:
        return {"not_measured": str(error)}


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


def first_cameras(batches: Iterable[BEVBatch], count: int) -> Cameras:
    """Return the cameras of the first samples of a split."""
    found: list[Cameras] = []
    left = count
    for batch in batches:
        found.append(batch.cameras[:left])
        left -= len(batch)
        if left <= 0:
            break
    return Cameras.cat(found)


def first_samples(
    model: BEVModel, batches: Iterable[BEVBatch], count: int
) -> tuple[Tensor, tuple[Tensor, ...], Cameras]:
    """Return images, features of every scale and cameras of the first samples of a split."""
    parts: list[tuple[Tensor, tuple[Tensor, ...], Cameras]] = []
    left = count
    with evaluating(model), torch.no_grad():
        for batch in batches:
            batch = batch[:left]
            features = model.encoder(batch.images)
            features = (features,) if isinstance(features, Tensor) else tuple(features)
            parts.append((batch.images, features, batch.cameras))
            left -= len(batch)
            if left <= 0:
                break
    if not parts:
        raise InputError("diagnose: the split has no sample")
    images, features, cameras = zip(*parts, strict=True)
    return (
        torch.cat(images),
        tuple(torch.cat(scale) for scale in zip(*features, strict=True)),
        Cameras.cat(cameras),
    )
