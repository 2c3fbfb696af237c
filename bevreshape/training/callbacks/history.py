"""The history of a run: validation scores, training time and number of samples."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bevreshape.data.batch import BEVBatch
from bevreshape.storage.files import write_csv
from bevreshape.storage.plain_values import read_history
from bevreshape.training.trainer_options import MONITORS


class History(Callback):
    """Write ``history.csv``, a row per validation, and measure the fit.

    ``seconds`` is the time of training, ``samples`` the number of samples. ``waited`` is the part of the time between a
    step and the arrival of the next batch, spent in the loader and in other callbacks. ``began`` is true once training
    has begun, after a checkpoint was restored.

    Args:
        path: the file; a resumed run drops the rows written after its checkpoint.
        score: of :data:`~bevreshape.training.trainer_options.MONITORS`, by which one validation is the best.
    """

    def __init__(self, path: Path, score: str = "val/iou/mean") -> None:
        self.path, self.score = path, score
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.samples = 0
        self.waited = 0.0
        self.began = False
        self._started = 0.0
        self._ended: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True
        self._started = time.perf_counter()
        if self.path.exists():
            self.rows = [row for row in read_history(self.path) if int(row["step"]) <= trainer.global_step]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int
    ) -> None:
        self.samples += len(batch) * trainer.world_size
        self._ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: BEVBatch, batch_idx: int
    ) -> None:
        if self._ended is not None:
            arrived_s = getattr(trainer.datamodule, "arrived_s", None)  # type: ignore[attr-defined]
            self.waited += (arrived_s or time.perf_counter()) - self._ended

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        values = {
            key: round(float(value), 6)
            for key, value in trainer.callback_metrics.items()
            if not key.startswith("test/")
        }
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, "seconds": round(self.elapsed, 2), **values}
        self.rows = [old for old in self.rows if int(old["step"]) != trainer.global_step] + [row]
        write_csv(self.path, self.rows)

    def best(self) -> dict[str, float]:
        """Return the metrics of the validation with the best score so far; empty before the first validation."""
        rows = [{k: float(v) for k, v in row.items() if k.startswith("val/") and v != ""} for row in self.rows]
        best = max if MONITORS[self.score] == "max" else min
        return best((row for row in rows if self.score in row), key=lambda row: row[self.score], default={})

    @property
    def elapsed(self) -> float:
        """Return the seconds of training so far, including those before a resume."""
        running = time.perf_counter() - self._started if self._started else 0.0
        return self.seconds + running

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds, self._started = self.elapsed, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.elapsed, "samples": self.samples, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.samples, self.waited = (state_dict[key] for key in ("seconds", "samples", "waited"))
