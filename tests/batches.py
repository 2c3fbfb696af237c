"""Batches that tests make by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevreshape.data.batch import SEGMENTATION, BEVBatch, BEVSource, Meta, collate
from bevreshape.data.targets import BEVTarget
from bevreshape.geometry import Cameras


def batch_of(
    images: Tensor,
    rig: Cameras,
    target: Tensor | None = None,
    valid: Tensor | None = None,
    indices: Sequence[int] | None = None,
) -> BEVBatch:
    """A batch of images (b, n, 3, H, W) with all cameras there, and of classes, valid everywhere unless said otherwise."""
    numbers = list(range(len(images)) if indices is None else indices)
    size = (images.shape[-2], images.shape[-1])
    cameras = Cameras(rig.intrinsics, rig.ego_from_cam, size, rig.full_mask)
    targets = {}
    if target is not None:
        targets[SEGMENTATION] = BEVTarget(target, torch.ones_like(target, dtype=torch.bool) if valid is None else valid)
    return BEVBatch(images, cameras, targets, [Meta(f"sample {number}", number) for number in numbers])


def finished(source: BEVSource, split: str) -> BEVBatch:
    """All samples of a split with their targets, images in bytes."""
    dataset = source.split(split)
    return source.make_targets(collate([dataset[number] for number in range(len(dataset))]))  # type: ignore[arg-type]
