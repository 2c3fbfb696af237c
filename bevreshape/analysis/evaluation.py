"""IoU of a trained model and of variants of it, all on the same batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torchmetrics import MetricCollection

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.metrics import BEVIoU, BEVMetric, MaskedCameras, collected
from bevreshape.model import BEVModel
from bevreshape.training.task import BEVTask

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


class Evaluation(BEVTask):
    """The test of a model and of variants of it, all on the same batches.

    Images that a variant leaves as they are, are encoded once. ``results`` holds what the metrics came to, by variant,
    ``tables`` those of the first that are no IoU.

    Args:
        model: trained.
        metrics: by name; one clone for each variant, of counts of its own.
        variants: by name; metrics of the first are those of the test.
    """

    def __init__(self, model: BEVModel, metrics: Mapping[str, BEVMetric], variants: Mapping[str, Variant]) -> None:
        super().__init__(model, {}, metrics)
        self.variants = dict(variants)
        others = [collected(metrics) for _ in list(variants)[1:]]
        self.counted = nn.ModuleList([self.metrics["test"], *others])
        self.results: dict[str, dict[str, float]] = {}
        self.tables: list[dict[str, float]] = []
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
        for metric in self.metrics["test"].values():
            if not isinstance(metric, BEVIoU | MaskedCameras):
                self.tables.append({key: value.item() for key, value in metric.compute().items()})
        super().on_test_epoch_end()
        for metrics in self._counted():
            metrics.reset()

    def compute(self) -> dict[str, dict[str, float]]:
        """What the metrics of every variant come to."""
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
    """What :meth:`BEVIoU.compute` gives, of every variant.

    Args:
        model: looked at in evaluation mode.
        batches: on its device, as ``BEVDataModule.on_after_batch_transfer`` hands them on.
        metric: on the model's classes and grid; counts of its own are left alone.
        variants: by name.
        step: called whenever a batch is done with a variant, to show progress.

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
