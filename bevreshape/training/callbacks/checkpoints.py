"""Checkpoints of a run: atomic writing, the best one, and the last one, from which a run resumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError, TrainingInterrupted
from bevreshape.storage.checkpoint import read_checkpoint
from bevreshape.storage.files import write_atomic
from bevreshape.training.stopping import StopRequest
from bevreshape.training.trainer_options import MONITORS


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically and load them without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_atomic(path, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(path)


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, by a score of :data:`MONITORS`."""

    def __init__(self, folder: Path, score: str = "val/iou/mean") -> None:
        super().__init__(folder, filename="best", monitor=score, mode=MONITORS[score], enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also after the run's folder has moved.

        A path with another file name is ignored, since Lightning deletes the file of the former best score.
        """
        assert self.dirpath is not None
        best = str(Path(self.dirpath) / "best.ckpt")
        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = best if state[key] else ""
        state["best_k_models"] = dict(zip([best], state["best_k_models"].values(), strict=False))
        super().load_state_dict(state)


class LastCheckpoint(Checkpoint):
    """Save ``last.ckpt`` before the first step, every ``every_n_steps`` steps, and when a signal stops training.

    If a validation is due at such a step, the checkpoint is saved after it and includes its result. A resumed run then
    neither loses nor repeats the validation. The checkpoint is also saved at the step before every validation: a stop
    does not wait for the end of the validation, and only that step is repeated.

    Args:
        path: of the file, in the folder ``checkpoints`` of a run.
        every_n_steps: optimizer steps.
        request: the stop request to obey; by default a new one, which listens while the trainer runs.
        trust: packages that must be trusted to resume the run.
    """

    def __init__(
        self, path: Path, every_n_steps: int, request: StopRequest | None = None, trust: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.request = request or StopRequest()
        self._is_own = request is None
        self._trust = f" trust=[{','.join(trust)}]" if trust else ""
        self._due = False
        self._step = -1
        self._shared_batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self.request.listen()  # Lightning has replaced the handler by its own
        if trainer.ckpt_path is None:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int
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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int, *_: Any
    ) -> None:
        self._stop_evaluation(trainer, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int, *_: Any
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
        """Return whether a validation is due ``steps_ahead`` optimizer steps from now."""
        batches, interval = trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch
        ends = self._step + steps_ahead == trainer.max_steps or trainer.should_stop
        batches += steps_ahead * trainer.accumulate_grad_batches
        return ends or (interval is not None and batches % interval == 0)

    def _stops(self, trainer: Trainer) -> bool:
        """Return whether any process was asked to stop; all processes must call it at the same place."""
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
        return TrainingInterrupted(f"stopped{where}; resume with resume={self.path.parent.parent}{self._trust}")

    def _check_folder(self, trainer: Trainer) -> None:
        if self._step >= 0 and trainer.is_global_zero and not self.path.parent.is_dir():
            raise InputError(
                f"{self.path.parent} has vanished while its run was training; if the run's folder was moved, resume "
                f"with resume=ITS_NEW_PATH{self._trust}"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._is_own:
            self.request.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._is_own:
            self.request.restore()
