"""The length of a run in steps, its validations, and early stopping."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torchmetrics import Metric

from bevreshape.data.batch import SPLITS
from bevreshape.data.datamodule import BEVDataModule, ResumableShuffleSampler, evaluation_sampler
from bevreshape.errors import InputError
from bevreshape.metrics import BEVIoU, improvement
from bevreshape.training.callbacks import EarlyStop
from bevreshape.training.hardware import process_count
from bevreshape.training.task import BEVTask


def resolve_schedule(trainer: Mapping[str, Any], data: BEVDataModule) -> dict[str, Any]:
    """Return the ``trainer`` group with its length in optimizer steps and its validation interval in batches.

    ``max_epochs`` is converted to steps; an incomplete step at the end of an epoch does not count. If ``max_steps`` is
    also given, the shorter length holds. Validations take place at the multiples of ``val_check_interval`` and at the
    end (:class:`~bevreshape.training.callbacks.FinalValidation`).

    Raises:
        InputError: when a split is too small for the batch size, the processes, the accumulated batches, or the
            fraction of it that is used.
    """
    trainer = {"accumulate_grad_batches": 1, "max_epochs": -1, **trainer}
    accumulated, steps, epochs = (trainer[key] for key in ("accumulate_grad_batches", "max_steps", "max_epochs"))
    world = process_count(trainer) * trainer.get("num_nodes", 1)
    samples = {name: len(data.source.split(name)) for name in SPLITS}  # type: ignore[arg-type]
    order = ResumableShuffleSampler(samples["train"], data.batch_size, data.seed, world=world, accumulated=accumulated)
    for name in ("val", "test"):
        smallest = len(evaluation_sampler(range(samples[name]), world - 1, world))
        batches = math.ceil(smallest / data.batch_size)
        limit = trainer.get(f"limit_{name}_batches")
        if isinstance(limit, float) and int(batches * limit) == 0:
            raise InputError(
                f"trainer.limit_{name}_batches={limit} of {batches} batches is none; set it to a number of batches"
            )
    if epochs > 0:
        steps = min(order.steps * epochs, steps) if steps > 0 else order.steps * epochs
    every = min(trainer["val_check_interval"], steps)
    return {**trainer, "max_steps": steps, "max_epochs": -1, "val_check_interval": every * accumulated}


def score_of(metrics: Iterable[Metric]) -> str:
    """Return the score that selects a run's best checkpoint: the mean IoU if a metric gives it, else the loss."""
    return "val/iou/mean" if any(isinstance(metric, BEVIoU) for metric in metrics) else "val/loss"


def make_early_stop(trainer: Mapping[str, Any], task: BEVTask) -> EarlyStop | None:
    """Return the callback that ends training early; ``None`` unless the ``trainer`` group asks for it.

    Raises:
        InputError: when no metric and no objective of the run gives the score, or its direction is not known.
    """
    node = {"monitor": "val/iou/mean", "patience": None, "min_delta": 0.0, **(trainer.get("early_stopping") or {})}
    if node["patience"] is None:
        return None
    monitor = node["monitor"]
    losses = ["val/loss", *(f"val/{name}_loss" for name in task.objectives if len(task.objectives) > 1)]
    mode = "min" if monitor in losses else improvement(task.metrics["val"], monitor)
    if mode is None:
        raise InputError(
            f"trainer.early_stopping.monitor={monitor} but no metric gives it; set monitor={' or '.join(losses)}, or "
            "choose a metric that gives it, such as metric=[iou,…]"
        )
    return EarlyStop(**node, mode=mode)
