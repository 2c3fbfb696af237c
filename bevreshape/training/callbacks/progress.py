"""The progress bar of a run."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from bevreshape.data.batch import BEVBatch
from bevreshape.reporting.progress import Progress
from bevreshape.training.optimizer import total_steps


class RunProgress(ProgressBar):
    """Show the progress, the remaining time and the current score; print a line per validation."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _begin(self, what: str, total: int, done: int = 0) -> None:
        if self._enabled:
            self._progress = Progress(what, total, done)
            self._progress.start()

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("training", total_steps(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int
    ) -> None:
        if self._progress is not None:
            self._progress.advance(trainer.global_step - self._progress.done)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._begin("validating", int(sum(trainer.num_val_batches)))
        elif self._progress is not None:
            self._progress.what = "validating"

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int, *_: Any
    ) -> None:
        if self._progress is not None:
            self._progress.advance(0 if trainer.state.fn == "fit" else 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._end()
        elif self._progress is not None:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            mean, lost = metrics.get("val/iou/mean"), metrics.get("val/loss")
            score = f"IoU {mean:.3f}" if mean is not None else f"loss {lost:.4f}"
            loss = f", train loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else ""
            classes = "  ".join(
                f"{key.removeprefix('val/iou/')} {metrics[key]:.3f}" for key in metrics if _is_class_iou(key)
            )
            self._progress.print(
                f"step {trainer.global_step:>6}: val {score}{f' ({classes})' if classes else ''}{loss}"
            )
            self._progress.what, self._progress.note = "training", score

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("testing", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int, *_: Any
    ) -> None:
        if self._progress is not None:
            self._progress.advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()


def _is_class_iou(key: str) -> bool:
    return key.startswith("val/iou/") and key.count("/") == 2 and not key.endswith("/mean")
