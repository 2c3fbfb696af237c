"""What happens beside training: progress, history, images, checkpoints, and a clean stop."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from bevreshape.config.stored import read_history
from bevreshape.data.batch import Batch
from bevreshape.errors import InputError
from bevreshape.reporting.drawing import draw_sample
from bevreshape.reporting.progress import Progress
from bevreshape.storage.checkpoint import read_checkpoint
from bevreshape.storage.files import write_atomic, write_png, write_text
from bevreshape.training.stopping import StopRequest, TrainingInterrupted
from bevreshape.training.task import total_steps
from bevreshape.training.trainer import MONITORS


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent, and that load without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_atomic(path, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(path)


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt`` by mean validation IoU."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, filename="best", monitor="val/iou/mean", mode="max", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score, also where the run's folder has moved.

        A file of another name is not taken from the checkpoint, since Lightning deletes what is no longer the best.
        """
        assert self.dirpath is not None
        best = str(Path(self.dirpath) / "best.ckpt")
        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = best if state[key] else ""
        state["best_k_models"] = dict(zip([best], state["best_k_models"].values(), strict=False))
        super().load_state_dict(state)


class LastCheckpoint(Checkpoint):
    """``last.ckpt`` before the first step, every so many steps, and when a signal asks to stop, after which training stops.

    Where a validation is due at such a step it is saved after that, with its result, so that a run which resumes has
    neither lost nor repeated it. It is saved at the step before every validation too: a stop does not wait for the
    validation's end, and no more than that step is repeated.

    Args:
        path: of the file, in the folder ``checkpoints`` of a run.
        every_n_steps: optimizer steps.
        request: whose signals count; by default of its own, which listens while the trainer runs.
    """

    def __init__(self, path: Path, every_n_steps: int, request: StopRequest | None = None) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.request = request or StopRequest()
        self._is_own = request is None
        self._due = False
        self._step = -1
        self._shared_batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self.request.listen()  # Lightning has put a handler of its own in place of it
        if trainer.ckpt_path is None:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        stops = self._stops(trainer)
        validates = self._validates(trainer, 0)
        if stops and validates:
            raise self._stopped()  # the step before was saved
        self._due = stops or self._step % self.every_n_steps == 0 or self._validates(trainer, 1)
        if self._due and not validates:
            self._save_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, trainer.num_test_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        self._stop_evaluation(trainer, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        self._stop_evaluation(trainer, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due and trainer.state.fn == "fit":
            self._save_due(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save now.

        Raises:
            InputError: when the run's folder is no longer there.
        """
        self._check_folder(trainer)
        trainer.save_checkpoint(self.path)

    def _save_due(self, trainer: Trainer) -> None:
        self._due = False
        self.save(trainer)
        if self._stops(trainer):
            raise self._stopped()

    def _validates(self, trainer: Trainer, steps_ahead: int) -> bool:
        """Whether a validation is due, after this optimizer step or a later one."""
        batches, interval = trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch
        ends = self._step + steps_ahead == trainer.max_steps or trainer.should_stop
        batches += steps_ahead * trainer.accumulate_grad_batches
        return ends or (interval is not None and batches % interval == 0)

    def _stops(self, trainer: Trainer) -> bool:
        """Whether any process was asked to; all must call it at the same place."""
        if trainer.world_size == 1:
            return self.request.asked
        return trainer.strategy.reduce_boolean_decision(self.request.asked, all=False)

    def _begin_evaluation(self, trainer: Trainer, batches: list[int | float]) -> None:
        self.request.listen()
        self._check_folder(trainer)
        fewest = torch.tensor(min(sum(batches), 2**31 - 1), device=trainer.strategy.root_device)
        self._shared_batches = int(trainer.strategy.reduce(fewest, reduce_op="min"))

    def _stop_evaluation(self, trainer: Trainer, batch_idx: int) -> None:
        if batch_idx < self._shared_batches and self._stops(trainer):
            fit = trainer.state.fn == "fit"
            raise self._stopped(
                f" in the {'validation' if trainer.validating else 'test'}{'' if fit else ' after training'}"
            )

    def _stopped(self, where: str = "") -> TrainingInterrupted:
        return TrainingInterrupted(f"stopped{where}; go on with resume={self.path.parent.parent}")

    def _check_folder(self, trainer: Trainer) -> None:
        if self._step >= 0 and trainer.is_global_zero and not self.path.parent.is_dir():
            raise InputError(
                f"{self.path.parent} has vanished while its run was training; if the run's folder was moved, go on with "
                "resume=ITS_NEW_PLACE"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._is_own:
            self.request.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._is_own:
            self.request.restore()


class FinalValidation(Callback):
    """Validate where training ends as well, wherever the interval between validations falls."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops


class EarlyStop(EarlyStopping):
    """Stop after so many validations in a row without a better score; a run that resumes counts on.

    Args:
        monitor: the score, a key of :data:`~bevreshape.training.trainer.MONITORS`.
        patience: validations.
        min_delta: what it must be better by.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float | int = 0.0) -> None:
        super().__init__(
            monitor,
            min_delta,
            patience,
            mode=MONITORS[monitor],
            check_finite=False,
            check_on_train_epoch_end=False,
        )

    @property
    def exhausted(self) -> bool:
        """Whether the patience is."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.exhausted:  # it had stopped before, and was resumed to be tested
            trainer.should_stop = True


class History(Callback):
    """``history.csv``: a row per validation, and what the fit cost: ``seconds``, of these ``waited`` between a step and
    the arrival of the next batch, for its loader and the other callbacks, and ``samples``. ``began`` says whether training
    has, after all that a checkpoint holds was restored.

    Args:
        path: the file; rows of an interrupted run that lie behind the checkpoint it goes on from are dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.samples += len(batch["name"]) * trainer.world_size
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
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
        columns = list(dict.fromkeys(key for entry in self.rows for key in entry))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def best(self) -> dict[str, float]:
        """The validation of the best mean IoU so far; nothing where there was none."""
        rows = [{k: float(v) for k, v in row.items() if k.startswith("val/") and v != ""} for row in self.rows]
        return max((row for row in rows if "val/iou/mean" in row), key=lambda row: row["val/iou/mean"], default={})

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before a resumed checkpoint included."""
        running = time.perf_counter() - self._started if self._started else 0.0
        return self.seconds + running

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds, self._started = self.elapsed, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.elapsed, "samples": self.samples, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.samples, self.waited = (state_dict[key] for key in ("seconds", "samples", "waited"))


class ImageLogger(Callback):
    """Input, target and prediction side by side, after every so many validations and at the test.

    Args:
        folder: where the PNGs go; the logger gets them too.
        classes: names of the channels.
        every_n_validations: how often.
        num_samples: how many, the first of the split.
    """

    def __init__(
        self, folder: Path, classes: tuple[str, ...], every_n_validations: int = 1, num_samples: int = 4
    ) -> None:
        self.folder = folder
        self.classes = classes
        self.every_n_validations = every_n_validations
        self.num_samples = num_samples
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = trainer.state.fn == "fit" and self._validations % self.every_n_validations == 0
        if due and batch_idx == 0:
            self._draw(trainer, pl_module, batch, f"val_step{trainer.global_step:06d}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += 1

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._draw(trainer, pl_module, batch, "test")

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def _draw(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, name: str) -> None:
        if not trainer.is_global_zero:
            return
        batch = {key: value[: self.samples] for key, value in batch.items()}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            probabilities = pl_module(batch).float().sigmoid()
        panels = []
        for i in range(len(batch["name"])):
            panel = draw_sample(
                batch["image"][i],
                batch["target"][i],
                probabilities[i],
                batch["valid"][i],
                self.classes,
                ego_from_cam=batch["ego_from_cam"][i],
            )
            panels.append(panel)
            write_png(self.folder / f"{name}_{i}.png", panel)
        key = f"{name.split('_')[0]}/predictions"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                captions = [str(n) for n in batch["name"][: len(panels)]]
                logger.log_image(key, panels, step=trainer.global_step, caption=captions)
            elif isinstance(logger, TensorBoardLogger):
                for i, panel in enumerate(panels):
                    logger.experiment.add_image(f"{key}/{i}", panel, global_step=trainer.global_step, dataformats="HWC")


class RunProgress(ProgressBar):
    """How far training or a test is, with the time that is left and the current IoU; a line per validation."""

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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._progress is not None:
            self._progress.advance(trainer.global_step - self._progress.done)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._begin("validating", int(sum(trainer.num_val_batches)))
        elif self._progress is not None:
            self._progress.what = "validating"

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        if self._progress is not None:
            self._progress.advance(0 if trainer.state.fn == "fit" else 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._end()
        elif self._progress is not None:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            iou = f"IoU {metrics['val/iou/mean']:.3f}"
            loss = f", train loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else ""
            classes = (f"{key.removeprefix('val/iou/')} {metrics[key]:.3f}" for key in metrics if _is_class_iou(key))
            self._progress.say(f"step {trainer.global_step:>6}: val {iou} ({'  '.join(classes)}){loss}")
            self._progress.what, self._progress.note = "training", iou

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("testing", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        if self._progress is not None:
            self._progress.advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()


def _is_class_iou(key: str) -> bool:
    return key.startswith("val/iou/") and key.count("/") == 2 and not key.endswith("/mean")
