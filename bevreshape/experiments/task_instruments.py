"""Instruments for a trained model of the task level: dependence of A on the image, and the image's share of the map."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bevreshape.analysis.costs import forward_flops
from bevreshape.analysis.data_dependence import relative_spread
from bevreshape.analysis.diagnosis import first_samples
from bevreshape.analysis.effective_weights import attention_held, attention_weights, cell_raster, jacobian_norm
from bevreshape.analysis.permutation import iou_when_permuted
from bevreshape.data.batch import BEVBatch, seeded
from bevreshape.experiments.image_share import image_share
from bevreshape.geometry import Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import Reshaper

CELLS, PROBES = 4, 8
"""Cells along a side of the map whose Jacobian is computed, and random probes per cell."""

IMAGES = 64
"""Most samples on which the image's share is measured."""

PERMUTATION = 0x5461736B
"""Word of the random key for the permutation after training."""


@dataclass(frozen=True)
class Inspected:
    """Values of a trained model on test samples, all with the cameras of the first, so that only the images differ.

    Attributes:
        spread_of_a: of A over images, relative to its mean; 0 without attention, where A is independent of X.
        spread_of_jacobian: of ``‖∂O_q/∂X_t‖_F`` over images, likewise.
        spread_of_jacobian_held: the same with A held fixed, caused by normalisation and activations.
        image_share: of the map's variance, see :func:`~bevreshape.experiments.image_share.image_share`.
        iou_permuted: mean IoU with the tokens permuted only in the test.
        iou_unrelated: mean IoU with the images of other samples, a baseline without image content.
        best_iou_unrelated: the same, each class at the threshold that is best for it.
    """

    spread_of_a: float
    spread_of_jacobian: float
    spread_of_jacobian_held: float
    image_share: float
    iou_permuted: float
    iou_unrelated: float
    best_iou_unrelated: float


def inspect(model: BEVModel, batches: Iterable[BEVBatch], metric: BEVIoU, samples: int) -> Inspected:
    """Apply the instruments to a trained model.

    Args:
        model: in evaluation mode.
        batches: of the test split; every iteration starts again.
        metric: on the classes and grid of the data.
        samples: number of samples for the spreads.
    """
    reshaper = model.reshaper
    assert isinstance(reshaper, Reshaper)
    _, (every,), own = first_samples(model, batches, max(samples, IMAGES))
    features, cameras = every[:samples], _first(own, samples)
    cells = cell_raster(reshaper.target_shape, CELLS)

    def spread() -> float:
        return relative_spread([jacobian_norm(reshaper, features, cameras, cells=cells, probes=PROBES)])

    attends = hasattr(reshaper, "attention_weights")
    of_jacobian = held_fixed = spread()
    if attends:
        with attention_held(reshaper):
            held_fixed = spread()
    with torch.no_grad():
        share = image_share(reshaper(every, _first(own, len(every))))
    permutation = torch.randperm(reshaper.source.tokens, generator=seeded(0, PERMUTATION))
    iou = iou_when_permuted(model, batches, metric, permutation)
    return Inspected(
        relative_spread([attention_weights(reshaper, features, cameras, cells=cells)]) if attends else 0.0,
        of_jacobian, held_fixed, share, iou["permuted"]["iou/mean"], iou["unrelated"]["iou/mean"],
        iou["unrelated"]["best_iou/mean"],
    )  # fmt: skip


def _first(cameras: Cameras, count: int) -> Cameras:
    """Return the cameras of the first sample, repeated ``count`` times."""
    intrinsics, poses = (x[:1].expand(count, -1, -1, -1) for x in (cameras.intrinsics, cameras.ego_from_cam))
    return Cameras(intrinsics, poses, cameras.image_size)


def costs(model: BEVModel, batch: BEVBatch) -> dict[str, int]:
    """Count parameters, and FLOPs of a forward pass of one sample (two per multiply-add), of model and reshaper."""
    image, cameras = batch.images[:1], batch.cameras[:1]
    with torch.no_grad():
        features = model.encoder(image)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": forward_flops(model, lambda: model(image, cameras)),
        "reshaper_parameters": sum(p.numel() for p in model.reshaper.parameters()),
        "reshaper_flops": forward_flops(model.reshaper, lambda: model.reshaper(features, cameras)),
    }
