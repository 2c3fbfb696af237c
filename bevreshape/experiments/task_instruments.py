"""What a trained model of the task level has learned: whether A follows the image, and how much the image counts
for."""

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
"""Cells along a side of the map whose Jacobian is taken, and random probes of each."""

IMAGES = 64
"""Samples that the image's share is measured on, where there are as many."""

PERMUTATION = 0x5461736B
"""Word of the random key of the permutation that a trained model is tried with."""


@dataclass(frozen=True)
class Inspected:
    """Figures of a trained model, on test samples and under the cameras of the first of them, so that what differs from
    sample to sample is the image.

    Attributes:
        spread_of_a: of A over images, relative to its mean; 0 where there is no attention, since A does not know X.
        spread_of_jacobian: of ``‖∂O_q/∂X_t‖_F`` over images, likewise.
        spread_of_jacobian_held: the same with A held fixed: what normalisation and activations bring.
        image_share: of the map's variance, see :func:`~bevreshape.experiments.image_share.image_share`.
        iou_permuted: mean IoU with the tokens permuted in the test alone.
        iou_unrelated: mean IoU with the images of other samples: what is right without looking.
    """

    spread_of_a: float
    spread_of_jacobian: float
    spread_of_jacobian_held: float
    image_share: float
    iou_permuted: float
    iou_unrelated: float


def inspect(model: BEVModel, batches: Iterable[BEVBatch], metric: BEVIoU, samples: int) -> Inspected:
    """Apply the instruments to a trained model.

    Args:
        model: in evaluation.
        batches: of the test split; begin anew whenever they are read.
        metric: on its classes and grid.
        samples: of it, for the spreads.
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
    )  # fmt: skip


def _first(cameras: Cameras, count: int) -> Cameras:
    """The first sample's, for so many."""
    intrinsics, poses = (x[:1].expand(count, -1, -1, -1) for x in (cameras.intrinsics, cameras.ego_from_cam))
    return Cameras(intrinsics, poses, cameras.image_size)


def costs(model: BEVModel, batch: BEVBatch) -> dict[str, int]:
    """Parameters, and FLOPs of a forward pass of one sample (a multiply-add counted as two), of the model and its
    reshaper."""
    image, cameras = batch.images[:1], batch.cameras[:1]
    with torch.no_grad():
        features = model.encoder(image)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": forward_flops(model, lambda: model(image, cameras)),
        "reshaper_parameters": sum(p.numel() for p in model.reshaper.parameters()),
        "reshaper_flops": forward_flops(model.reshaper, lambda: model.reshaper(features, cameras)),
    }
