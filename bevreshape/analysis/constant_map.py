"""The baseline that does not look at the image: the map of class frequencies in the training split, for every image."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bevreshape.data.batch import SEGMENTATION, BEVBatch, collate
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import Outputs
from bevreshape.training.stopping import Loader

Track = Callable[[Iterable[BEVBatch], str], Iterable[BEVBatch]]
"""``track(batches, what)`` yields the batches and may report progress."""


def _untracked(batches: Iterable[BEVBatch], what: str) -> Iterable[BEVBatch]:
    return batches


def constant_map_iou(data: BEVDataModule, track: Track = _untracked) -> dict[str, float]:
    """Return the values of :class:`BEVIoU` of that map on the test split.

    Args:
        data: with the splits ``train`` and ``test`` prepared.
        track: reports the progress of reading.
    """
    frequency = frequencies(data, track)
    metric = BEVIoU(data.source.classes, data.source.grid)
    for batch in _batches(data, "test", track):
        logits = frequency.logit().expand_as(batch.targets[SEGMENTATION].value)
        metric.update(Outputs({SEGMENTATION: logits}, logits, {}), batch)
    return {key: float(value) for key, value in metric.compute().items()}


def frequencies(data: BEVDataModule, track: Track = _untracked) -> Tensor:
    """Return the share of training samples in which a cell has a class, where that is known: (k, rows, cols)."""
    source = data.source
    positive = known = torch.zeros(len(source.classes), *source.grid.shape)
    for batch in _batches(data, "train", track):
        target = batch.targets[SEGMENTATION]
        positive = positive + (target.value & target.valid).sum(0)
        known = known + target.valid.sum(0)
    return positive / known.clamp(min=1)


def _batches(data: BEVDataModule, split: str, track: Track) -> Iterable[BEVBatch]:
    loader = Loader(data.source.split(split), data.batch_size, num_workers=data.num_workers, collate_fn=collate)
    return map(data.source.make_targets, track(loader, f"reading {split}"))
