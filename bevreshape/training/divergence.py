"""Stop a training whose loss is no longer finite."""

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import Divergence
from bevreshape.ops.readback import Readback


class StepLoss(NamedTuple):
    """Hold the loss of a step, on its way to the host; its number and the names of its samples."""

    loss: Readback
    step: int
    names: list[str]


class StopOnDivergence(Callback):
    """Stop when a training loss is NaN or infinite; the check comes one step late.

    On a GPU the loss is copied to the host while the next step is prepared. The host waits for it only where the step
    after it is queued already, so that the device always has work: the check may then come two steps late. A
    checkpoint, a validation and the end of training wait for all of them.
    """

    def __init__(self) -> None:
        self._step = 0
        self._unchecked: deque[StepLoss] = deque()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: BEVBatch, batch_idx: int
    ) -> None:
        while self._unchecked and (len(self._unchecked) > 1 or self._unchecked[0].loss.ready):
            self._check_oldest()
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int
    ) -> None:
        self._unchecked.append(StepLoss(Readback(outputs["loss"]), self._step, batch.names))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check()

    def check(self) -> None:
        """Check all losses so far.

        Raises:
            Divergence: when one is not finite; names the step and the batch.
        """
        while self._unchecked:
            self._check_oldest()

    def _check_oldest(self) -> None:
        found, step, names = self._unchecked[0]
        loss = found.read()
        if not torch.isfinite(loss):  # it stays, so that no checkpoint is written afterwards
            raise Divergence(
                f"training: the loss is {loss.item()} at step {step}, on the batch {', '.join(names)}; check "
                "these samples, or lower optimizer.lr"
            )
        self._unchecked.popleft()
