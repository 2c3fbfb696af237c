"""IoU of a trained model and of variants of it, all on the same batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.errors import InputError
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel

Change = Callable[[BEVBatch], BEVBatch]
"""A batch on its device, otherwise than it was; targets stay."""


@dataclass(frozen=True)
class Variant:
    """What is done to a batch before the model sees it, and what stands in for its reshaper; ``None``: nothing."""

    change: Change | None = None
    reshaper: nn.Module | None = None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation, in which the samples of a batch do not meet; afterwards all is as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode  # not train(), which ends a fixed rig


@torch.no_grad()
def iou_of(
    model: BEVModel,
    batches: Iterable[BEVBatch],
    metric: BEVIoU,
    variants: Mapping[str, Variant],
    step: Callable[[], object] | None = None,
) -> dict[str, dict[str, float]]:
    """What :meth:`BEVIoU.compute` gives, of every variant. Images that a variant leaves as they are, are encoded once.

    Args:
        model: looked at in evaluation mode.
        batches: on its device, as ``BEVDataModule.on_after_batch_transfer`` hands them on.
        metric: on the model's classes and grid; counts of its own are left alone.
        variants: by name.
        step: called whenever a batch is done with a variant, to show progress.

    Raises:
        InputError: when there is no batch, or images are not floats.
    """
    metrics: dict[str, BEVIoU] = {}
    with evaluating(model):
        for batch in batches:
            image = batch.images
            if not image.is_floating_point():
                raise InputError(
                    f"lab: images are {image.dtype}, the model wants floats in 0..1; give what the datamodule's "
                    "on_after_batch_transfer(batch, 0) makes of a batch"
                )
            features = model.encoder(image)  # b n c h w
            for name, variant in variants.items():
                if name not in metrics:
                    metrics[name] = deepcopy(metric).to(image.device)
                    metrics[name].reset()
                changed = batch if variant.change is None else variant.change(batch)
                found = features if changed.images is image else model.encoder(changed.images)
                logits = model.head((variant.reshaper or model.reshaper)(found, changed.cameras))  # b k rows cols
                target = changed.targets[SEGMENTATION]
                metrics[name].update(logits, target.value, target.valid)
                if step is not None:
                    step()
    if not metrics:
        raise InputError("lab: there is no batch, or no variant; give one at least")
    return {name: {key: value.item() for key, value in counted.compute().items()} for name, counted in metrics.items()}
