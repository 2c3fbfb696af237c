"""Stop a training whose loss is no longer finite."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import Divergence


class StopOnDivergence(Callback):
    """Stop when a training loss is NaN or infinite; the check comes one step late, to avoid a GPU synchronization."""

    def __init__(self) -> None:
        self._step = 0
        self._latest: tuple[Tensor, int, list[str]] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: BEVBatch, batch_idx: int
    ) -> None:
        self.check()
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int
    ) -> None:
        self._latest = outputs["loss"], self._step, batch.names

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check()

    def check(self) -> None:
        """Check the latest loss.

        Raises:
            Divergence: when the loss is not finite; names the step and the batch.
        """
        if self._latest is not None:
            loss, step, names = self._latest
            if not torch.isfinite(loss):
                raise Divergence(
                    f"training: the loss is {loss.item()} at step {step}, on the batch {', '.join(names)}; check "
                    "these samples, or lower optimizer.lr"
                )
