"""All instruments on one trained model: learned weights, and robustness."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from bevreshape.analysis.data_dependence import relative_spread
from bevreshape.analysis.diagnosis_figures import draw_robustness, draw_weights
from bevreshape.analysis.effective_weights import (
    Features,
    attention_weights,
    cell_raster,
    jacobian_norm,
    product_count,
)
from bevreshape.analysis.evaluation import Change, evaluating
from bevreshape.analysis.geometric_alignment import geometry_agreement
from bevreshape.analysis.permutation import iou_when_permuted, permutation_error
from bevreshape.analysis.robustness import corrupt_images, drop_camera, iou_under, perturb_calibration, rotate_rig
from bevreshape.analysis.token_encodings import can_move
from bevreshape.data.batch import BEVBatch, seeded
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reporting.progress import Progress
from bevreshape.reshapers import Reshaper


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
    cells = cell_raster(reshaper.target_shape, plan.cells)
    true = cameras if true is None else true
    measured = _Weights(reshaper, scales[0] if len(scales) == 1 else scales, cameras, cells, plan.probes)
    weights = measured.under(cameras, "weights")  # b q n h w

    def agreement(weights: Tensor) -> dict[str, Any]:
        assert isinstance(reshaper.grid, BEVGrid)
        return asdict(geometry_agreement(weights, true, reshaper.grid, reshaper.source, cells=cells))

    unchanged, robustness = _robustness(model, batches, metric, _changes(plan, camera_names, metric.grid))
    numbers = {
        "reshaper": reshaper.name,
        "samples": len(images),
        "cells": len(cells),
        "probes": plan.probes,
        "iou": unchanged,
        "data_dependence": relative_spread([measured.under_one_calibration(weights)]),
        "agreement": _or_reason(lambda: agreement(weights)),
        "attention": _or_reason(lambda: agreement(measured.of_attention())),
        "order": _or_reason(lambda: _order(model, scales, cameras, batches, metric)),
        "robustness": robustness,
    }
    figures = {
        "weights": draw_weights(images[0], {reshaper.name: weights[0]}, true, reshaper.grid, reshaper.source, cells)
    }
    if robustness:
        figures["robustness"] = draw_robustness(robustness, unchanged["iou/mean"])
    return Diagnosis(numbers, figures)


@dataclass(frozen=True)
class _Weights:
    """Effective weights of a reshaper at some cells, on the first samples of a split."""

    reshaper: Reshaper
    features: Features
    cameras: Cameras
    cells: Sequence[tuple[int, int]]
    probes: int | None

    def under(self, cameras: Cameras, what: str) -> Float[Tensor, "b q n h w"]:
        """Return the weights under these cameras; ``what`` names the progress."""
        products = product_count(len(cameras.intrinsics), len(self.cells), self.probes or self.reshaper.out_channels)
        with Progress(what, products) as progress:
            return jacobian_norm(
                self.reshaper, self.features, cameras, cells=self.cells, probes=self.probes, step=progress.advance
            )

    def under_one_calibration(self, weights: Tensor) -> Tensor:
        """Return the weights of all samples under the first sample's cameras, so that only images differ.

        Args:
            weights: those under each sample's own cameras.
        """
        poses, intrinsics = self.cameras.ego_from_cam, self.cameras.intrinsics
        size, mask = self.cameras.image_size, self.cameras.full_mask
        first = Cameras(intrinsics[:1].expand_as(intrinsics), poses[:1].expand_as(poses), size, mask)
        if torch.equal(first.intrinsics, intrinsics) and torch.equal(first.ego_from_cam, poses):
            return weights
        return self.under(first, "weights under one calibration")

    def of_attention(self) -> Float[Tensor, "b q n h w"]:
        """Return the mean attention matrix of the heads."""
        return attention_weights(self.reshaper, self.features, self.cameras, cells=self.cells).mean(1)


Scores = dict[str, float]
"""IoU by name."""


def _robustness(
    model: BEVModel, batches: Batches, metric: BEVIoU, changes: Sequence[tuple[str, str, str, Change]]
) -> tuple[Scores, dict[str, dict[str, Scores]]]:
    """Return the IoU of unchanged batches, and by group and name that of every change of :func:`_changes`."""
    named = {name: change for _, _, name, change in changes}
    with Progress("errors and failures", len(batches()) * (1 + len(named))) as progress:
        found = iou_under(model, batches(), metric, named, progress.advance)
    grouped: dict[str, dict[str, Scores]] = {}
    for group, what, name, _ in changes:
        grouped.setdefault(group, {})[what] = found[name]
    return found["unchanged"], grouped


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
