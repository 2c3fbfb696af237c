"""Batches made by tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevreshape.data.batch import SEGMENTATION, BEVBatch, BEVSource, Meta, collate
from bevreshape.data.targets import BEVTarget
from bevreshape.geometry import Cameras
from bevreshape.model import Outputs


def batch_of(
    images: Tensor,
    rig: Cameras,
    target: Tensor | None = None,
    valid: Tensor | None = None,
    indices: Sequence[int] | None = None,
) -> BEVBatch:
    """A batch of images (b, n, 3, H, W) with all cameras there, and of classes, valid everywhere unless said
    otherwise."""
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


def outputs_of(logits: Tensor) -> Outputs:
    """What a model with the head of the classes alone returns."""
    return Outputs({SEGMENTATION: logits}, logits, {})


def labelled(target: Tensor, valid: Tensor | None = None) -> BEVBatch:
    """A batch of which only the classes matter."""
    eye = torch.eye(4).expand(len(target), 1, 4, 4)
    return batch_of(torch.zeros(len(target), 1, 3, 1, 1), Cameras(eye[..., :3, :3], eye, (1, 1)), target, valid)
