"""The end of training: a final validation, and early stopping."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError, suggest


class FinalValidation(Callback):
    """Validate at the end of training, whatever the interval between validations."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops


class EarlyStop(EarlyStopping):
    """Stop after ``patience`` validations in a row without a better score; a resumed run continues the count.

    Args:
        monitor: the score, such as ``val/loss``.
        patience: validations.
        min_delta: smallest change that counts as an improvement.
        mode: ``max`` if a higher score is better, else ``min``.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float | int = 0.0, mode: str = "max") -> None:
        super().__init__(monitor, min_delta, patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    @property
    def exhausted(self) -> bool:
        """Return whether ``patience`` validations have passed without improvement."""
        return self.wait_count >= self.patience

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics
        if trainer.state.fn == "fit" and self.monitor not in logged:
            found = suggest(self.monitor, (key for key in logged if key.startswith("val/")))
            raise InputError(f"trainer.early_stopping.monitor={self.monitor} is not logged; {found}")
        super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.exhausted:  # it had stopped before, and was resumed to be tested
            trainer.should_stop = True
