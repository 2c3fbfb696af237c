"""Metrics of a trained model and of its variants, on the same batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torchmetrics import MetricCollection

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.metrics import BEVIoU, BEVMetric, collected
from bevreshape.model import BEVModel
from bevreshape.training.task import BEVTask

Change = Callable[[BEVBatch], BEVBatch]
"""A function that changes a batch on its device, but not its targets."""


@dataclass(frozen=True)
class Variant:
    """A change of the batch before the model, and a replacement of its reshaper; ``None`` for neither."""

    change: Change | None = None
    reshaper: nn.Module | None = None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode, in which samples are independent; restore every part's mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode  # not train(), which a fixed rig refuses


class Evaluation(BEVTask):
    """The test of a model and of its variants, on the same batches.

    Images that no variant changes are encoded once. ``results`` holds the metrics by variant.

    Args:
        model: a trained model.
        metrics: metrics by name; every variant has its own clone.
        variants: variants by name; the first one's metrics are those of the test.
    """

    def __init__(self, model: BEVModel, metrics: Mapping[str, BEVMetric], variants: Mapping[str, Variant]) -> None:
        super().__init__(model, {}, metrics)
        self.variants = dict(variants)
        others = [collected(metrics) for _ in list(variants)[1:]]
        self.counted = nn.ModuleList([self.metrics["test"], *others])
        self.results: dict[str, dict[str, float]] = {}
        for metrics_ in self._counted():
            metrics_.reset()

    def _counted(self) -> list[MetricCollection]:
        return cast(list[MetricCollection], list(self.counted))

    def test_step(self, batch: BEVBatch, batch_idx: int = 0, advance: Callable[[], object] = lambda: None) -> None:
        images = batch.images
        if not images.is_floating_point():
            raise InputError(
                f"evaluation: images are {images.dtype}, the model wants floats in 0..1; give what the datamodule's "
                "on_after_batch_transfer(batch, 0) makes of a batch"
            )
        assert isinstance(self.model, BEVModel)
        features = self.model.encoder(images)  # b n c h w
        for variant, metrics in zip(self.variants.values(), self._counted(), strict=True):
            changed = batch if variant.change is None else variant.change(batch)
            found = features if changed.images is images else self.model.encoder(changed.images)
            metrics.update(self.model.decode(found, changed.cameras, variant.reshaper), changed)
            advance()

    def on_test_epoch_end(self) -> None:
        self.compute()
        super().on_test_epoch_end()
        for metrics in self._counted():
            metrics.reset()

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the metrics of every variant."""
        for name, metrics in zip(self.variants, self._counted(), strict=True):
            values = metrics.compute()
            self.results[name] = {key.removeprefix(metrics.prefix or ""): value.item() for key, value in values.items()}
        return self.results


@torch.no_grad()
def iou_of(
    model: BEVModel,
    batches: Iterable[BEVBatch],
    metric: BEVIoU,
    variants: Mapping[str, Variant],
    step: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Return :meth:`BEVIoU.compute` of every variant.

    Args:
        model: a trained model; it is set to evaluation mode.
        batches: batches on its device, as ``BEVDataModule.on_after_batch_transfer`` returns them.
        metric: a metric on the model's classes and grid; its own state does not change.
        variants: variants by name.
        step: called after every batch and variant, to show progress.

    Raises:
        InputError: if there is no batch, or images are not floats.
    """
    task, read = None, 0
    with evaluating(model):
        for read, batch in enumerate(batches, 1):
            task = task or Evaluation(model, {"iou": metric}, variants).to(batch.images.device)
            task.test_step(batch, read - 1, step)
    if task is None or not variants:
        raise InputError("evaluation: there is no batch, or no variant; give one at least")
    return {
        name: {key: value for key, value in found.items() if key != "masked_cameras"}
        for name, found in task.compute().items()
    }
