"""A training inside another command: begun, resumed or read, in a folder of its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data
from bevreshape.config.build_model import build_model
from bevreshape.data.batch import BEVBatch
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import Divergence, TrainingInterrupted
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.storage.checkpoint import load_weights, read_checkpoint
from bevreshape.storage.plain_values import read_history, read_json
from bevreshape.storage.run_folder import begin, held
from bevreshape.training.fit import train
from bevreshape.training.hardware import process_count
from bevreshape.training.launch import launch_distributed
from bevreshape.training.validate_config import validate_config


@dataclass(frozen=True)
class Trained:
    """A run of ``bevreshape.train``.

    Attributes:
        folder: of the run.
        config: the composed config.
        curve: step and mean validation IoU.
        metrics: by the names of ``metrics.json``, ``None`` where there is no number; empty if training diverged.
        reason: why it diverged; ``None`` if it did not.
    """

    folder: Path
    config: Mapping[str, Any]
    curve: tuple[tuple[int, float], ...]
    metrics: Mapping[str, Any]
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds until the last validation."""
        rows = read_history(self.folder / "history.csv")
        return float(rows[-1]["seconds"]) if rows else 0.0


def train_recorded(config: dict[str, Any], folder: Path, command: str, tested: bool = True) -> Trained:
    """Train, or resume the training in the folder, or read the finished one.

    Args:
        config: of ``bevreshape.train``, composed.
        folder: of this training only.
        command: what the same command resumes after a stop signal, for the message.
        tested: measure the best checkpoint on the test split; otherwise ``metrics`` are those of its validation.

    Raises:
        InputError: when training does not take an argument.
        TrainingInterrupted: after a stop signal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder), (folder / "train.log").open("a", encoding="utf-8") as log, _printing_to(log):
        if not (folder / "metrics.json").exists():
            validate_config(config).prepare_data()
            begin(folder, config)
            resumed = (folder / "checkpoints" / "last.ckpt").exists()
            try:
                launch_distributed(process_count(config["trainer"]), train, config, folder, resumed, tested)
            except Divergence as error:
                return Trained(folder, config, (), {}, str(error))
            except TrainingInterrupted:
                raise TrainingInterrupted(
                    f"stopped; the same command resumes the {command}"
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
    device: torch.device | str = "cpu"

    def __iter__(self) -> Iterator[BEVBatch]:
        for batch in self.data.test_dataloader():
            yield self.data.on_after_batch_transfer(batch.to(self.device), 0)


def metric_of(data: BEVDataModule) -> BEVIoU:
    """Return the IoU metric of the data's classes and grid."""
    return BEVIoU(data.source.classes, data.source.grid)
