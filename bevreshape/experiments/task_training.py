"""A training of the task level by ``bevreshape.train``, and the measurements of its model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from bevreshape.analysis.evaluation import Variant, iou_of
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data
from bevreshape.config.build_model import build_model
from bevreshape.config.compose import compose_training
from bevreshape.data.batch import BEVBatch
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import Divergence, TrainingInterrupted
from bevreshape.experiments.task_instruments import Inspected, costs, inspect
from bevreshape.experiments.task_plan import ALONE, typed
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.storage.checkpoint import load_weights, read_checkpoint
from bevreshape.storage.plain_values import read_history, read_json
from bevreshape.storage.run_folder import begin, held
from bevreshape.training.fit import train
from bevreshape.training.validate_config import validate_config


@dataclass(frozen=True)
class Trained:
    """A run of ``bevreshape.train``.

    Attributes:
        folder: of the run.
        config: the composed config.
        curve: step and mean validation IoU.
        metrics: of validation and test, by the names of ``metrics.json``; empty if training diverged.
    """

    folder: Path
    config: Mapping[str, Any]
    curve: tuple[tuple[int, float], ...]
    metrics: Mapping[str, float]


def run(arguments: Sequence[str], folder: Path) -> Trained:
    """Train, or resume the training in the folder, or read the finished one.

    Args:
        arguments: that determine the result.
        folder: of this training only.

    Raises:
        InputError: when training does not take an argument.
        TrainingInterrupted: after a stop signal.
    """
    config = compose_training([*typed(arguments), *ALONE])
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder), (folder / "train.log").open("a", encoding="utf-8") as log, _printing_to(log):
        if not (folder / "metrics.json").exists():
            validate_config(config).prepare_data()
            begin(folder, config)
            try:
                train(config, folder, (folder / "checkpoints" / "last.ckpt").exists())
            except Divergence:
                return Trained(folder, config, (), {})
            except TrainingInterrupted:
                raise TrainingInterrupted(
                    "stopped; the same command resumes the study"
                ) from None  # instead of resuming only this training
    rows = read_history(folder / "history.csv")
    curve = tuple((int(row["step"]), float(row["val/iou/mean"])) for row in rows if row.get("val/iou/mean"))
    return Trained(folder, config, curve, read_json(folder / "metrics.json"))


@contextmanager
def _printing_to(log: TextIO) -> Iterator[None]:
    with redirect_stdout(log), redirect_stderr(log):
        yield


def best_model(trained: Trained) -> tuple[BEVModel, BEVDataModule]:
    """Return the model of the best validation, in evaluation mode, and its data."""
    data = data_of(trained.config)
    model = build_model(trained.config, BEVSpec.of(data.source))
    best = trained.folder / "checkpoints" / "best.ckpt"
    load_weights(model, read_checkpoint(best), best)
    return model.eval(), data


def data_of(config: Mapping[str, Any], jitter: Mapping[str, float] | None = None) -> BEVDataModule:
    """Build the data of a run with the test split prepared; ``jitter`` replaces that of the cameras."""
    node = dict(config["data"]) if jitter is None else {**config["data"], "jitter": dict(jitter)}
    data = build_data({"data": node, "loader": config["loader"], "seed": 0})
    data.source.prepare(("test",))
    return data


@dataclass(frozen=True)
class Tested:
    """The batches of a test split, as a model takes them; every iteration starts again."""

    data: BEVDataModule

    def __iter__(self) -> Iterator[BEVBatch]:
        for batch in self.data.test_dataloader():
            yield self.data.on_after_batch_transfer(batch, 0)


def metric_of(data: BEVDataModule) -> BEVIoU:
    """Return the IoU metric of the data's classes and grid."""
    return BEVIoU(data.source.classes, data.source.grid)


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
        unseen: mean IoU with cameras unlike those of training, by kind.
        inspected: values of the model; ``None`` for short trainings.
        costs: see :func:`costs`.
        seconds: of training.
    """

    curve: tuple[tuple[int, float], ...]
    iou: Mapping[str, float]
    unseen: Mapping[str, float]
    inspected: Inspected | None
    costs: Mapping[str, int]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        plain = asdict(self)
        plain["curve"] = [[step, _rounded(value)] for step, value in self.curve]
        for key in ("iou", "unseen", "inspected"):
            plain[key] = plain[key] and {name: _rounded(value) for name, value in plain[key].items()}
        return plain | {"seconds": _rounded(self.seconds)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "TaskOutcome":
        """Build it from what :meth:`to_plain` returns."""
        inspected = plain["inspected"]
        return cls(
            tuple((step, value) for step, value in plain["curve"]), plain["iou"], plain["unseen"],
            None if inspected is None else Inspected(**inspected), plain["costs"], plain["seconds"],
        )  # fmt: skip


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
        return TaskOutcome((), {}, {}, None, {}, 0.0)
    model, data = best_model(trained)
    prefix = "test/iou/"
    names = [*data.source.classes, "mean"]
    return TaskOutcome(
        trained.curve,
        {name: value for name in names if (value := trained.metrics[prefix + name]) is not None},
        {what: unseen_iou(model, trained, jitter) for what, jitter in unseen.items()},
        inspect(model, Tested(data), metric_of(data), examined) if examined else None,
        costs(model, next(iter(Tested(data)))),
        trained.metrics["fit/seconds"],
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
