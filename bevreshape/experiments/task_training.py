"""A training of the task level by ``bevreshape.train``, and the measurements of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bevreshape.analysis.constant_map import constant_map_iou
from bevreshape.analysis.evaluation import Variant, iou_of
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import compose_training
from bevreshape.experiments.task_instruments import Inspected, costs, inspect
from bevreshape.experiments.task_plan import ALONE, typed
from bevreshape.model import BEVModel
from bevreshape.training.recorded import Tested, Trained, best_model, data_of, metric_of, train_recorded


def run(arguments: Sequence[str], folder: Path) -> Trained:
    """Train, or resume the training in the folder, or read the finished one.

    Args:
        arguments: that determine the result.
        folder: of this training only.

    Raises:
        InputError: when training does not take an argument.
        TrainingInterrupted: after a stop signal.
    """
    return train_recorded(compose_training([*typed(arguments), *ALONE]), folder, "study")


def constant_iou(arguments: Sequence[str]) -> float:
    """Return the mean test IoU of the map of class frequencies, each class at the threshold that is best for it."""
    data = build_data(compose_training([*typed(arguments), *ALONE]))
    data.source.prepare(("train", "test"))
    return constant_map_iou(data)["best_iou/mean"]


def unseen_iou(model: BEVModel, trained: Trained, jitter: Mapping[str, float]) -> float:
    """Return the mean test IoU with another jitter of cameras than in training."""
    data = data_of(trained.config, jitter)
    return iou_of(model, Tested(data), metric_of(data), {"": Variant()})[""]["iou/mean"]


@dataclass(frozen=True)
class TaskOutcome:
    """Outcome of a training.

    Attributes:
        curve: step and mean validation IoU.
        iou: of the test by class, and ``mean``; empty if training diverged.
        best_iou: likewise, each class at the threshold that is best for it.
        unseen: mean IoU with cameras unlike those of training, by kind.
        inspected: values of the model; ``None`` for short trainings.
        costs: see :func:`costs`.
        reason: why training diverged; empty if it did not.
    """

    curve: tuple[tuple[int, float], ...]
    iou: Mapping[str, float]
    unseen: Mapping[str, float]
    inspected: Inspected | None
    costs: Mapping[str, int]
    best_iou: Mapping[str, float]
    reason: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        plain = asdict(self)
        plain["curve"] = [[step, _rounded(value)] for step, value in self.curve]
        for key in ("iou", "unseen", "inspected", "best_iou"):
            plain[key] = plain[key] and {name: _rounded(value) for name, value in plain[key].items()}
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "TaskOutcome":
        """Build it from what :meth:`to_plain` returns."""
        inspected = plain["inspected"]
        return cls(
            tuple((step, value) for step, value in plain["curve"]), plain["iou"], plain["unseen"],
            None if inspected is None else Inspected(**inspected), plain["costs"], plain["best_iou"], plain["reason"],
        )  # fmt: skip


MEASURES = tuple(field.name for field in fields(TaskOutcome)) + tuple(field.name for field in fields(Inspected))
"""Names of all that is measured; a record of others is refused."""


def judge(
    arguments: Sequence[str], folder: Path, unseen: Mapping[str, Mapping[str, float]], examined: int
) -> TaskOutcome:
    """Train and measure.

    Args:
        arguments: that determine the result.
        folder: of this training only.
        unseen: jitters of cameras in the test.
        examined: samples for the instruments; 0 leaves them out.
    """
    trained = run(arguments, folder)
    if not trained.metrics:
        return TaskOutcome((), {}, {}, None, {}, {}, trained.reason or "")
    model, data = best_model(trained)
    names = [*data.source.classes, "mean"]

    def measured(kind: str) -> dict[str, float]:
        return {name: value for name in names if (value := trained.metrics[f"test/{kind}/{name}"]) is not None}

    return TaskOutcome(
        trained.curve,
        measured("iou"),
        {what: unseen_iou(model, trained, jitter) for what, jitter in unseen.items()},
        inspect(model, Tested(data), metric_of(data), examined) if examined else None,
        costs(model, next(iter(Tested(data)))),
        measured("best_iou"),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
