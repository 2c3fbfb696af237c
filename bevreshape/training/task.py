"""The Lightning task: steps, logging and the optimizer; no architecture."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import SumMetric

from bevreshape.data.batch import SEGMENTATION, BEVBatch, seeded
from bevreshape.errors import Divergence
from bevreshape.heads import Head
from bevreshape.metrics.iou import BEVIoU
from bevreshape.objectives.losses import InstanceLoss
from bevreshape.reshapers import Reshaper
from bevreshape.training.optimizer import AdamWOneCycle

STAGES = ("train", "val", "test")


class BEVTask(LightningModule):
    """BEV segmentation with any model ``model(images, cameras) -> logits``.

    Args:
        model: the network; where it has a ``reshaper`` with a loss of its own, that is added in training.
        loss: ``loss(logits, target, valid) -> scalar``.
        metric: IoU on the classes and grid of the data; one clone each for validation and test.
        optimizer: what updates the weights, and its schedule.
        seed: random numbers of a training step (dropout and the like) are a function of seed, step and process.
        recipe: plain values that rebuild the model; stored in every checkpoint.
        instance_loss: of the maps that the model's ``head`` makes of objects, added in training; see
            :class:`~bevreshape.objectives.losses.InstanceLoss`.

    Set ``test_thresholds`` (per class, from the validation set) to have the test's IoU at these beside that at 0.5.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        metric: BEVIoU,
        optimizer: AdamWOneCycle | None = None,
        *,
        seed: int = 0,
        recipe: dict[str, Any] | None = None,
        instance_loss: InstanceLoss | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.instance_loss = instance_loss
        self.val_metric: BEVIoU = deepcopy(metric)
        self.test_metric: BEVIoU = deepcopy(metric)
        self.optimizer = optimizer or AdamWOneCycle()
        self.seed = seed
        self.recipe = recipe
        self.test_thresholds: dict[str, float] | None = None
        self.masked = nn.ModuleList(SumMetric(nan_strategy="disable") for _ in STAGES)
        self._latest: tuple[Tensor, int, list[str]] | None = None
        self._compiled: Callable[..., Tensor] | None = None

    def compile_training(self) -> None:
        """Compile the training steps' forward and backward pass by ``torch.compile``.

        The weights keep their names. Validation and test run as written, so their figures are those that anything else
        reads from the checkpoint.
        """
        # a function, since a module would be saved with the task; and with the random numbers of steps not compiled
        self._compiled = torch.compile(self.model.forward, options={"fallback_random": True})

    def forward(self, batch: BEVBatch) -> Tensor:
        """Logits (b, k, rows, cols) of a batch on its device."""
        network = self._compiled if self._compiled is not None and self.training else self.model
        return network(batch.images, batch.cameras)

    def on_train_batch_start(self, batch: BEVBatch, batch_idx: int) -> None:
        # A run that goes on from a checkpoint draws what the uninterrupted one would have drawn.
        self.check_finite()
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        torch.manual_seed(seeded(self.seed, self.global_step, batch_idx, self.global_rank).initial_seed())

    def training_step(self, batch: BEVBatch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: BEVBatch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: BEVBatch, batch_idx: int) -> None:
        self._step(batch, "test")

    def _step(self, batch: BEVBatch, stage: str) -> Tensor:
        self._masked_metric(stage).update((~batch.cameras.full_mask).sum())
        logits = self(batch)  # b k rows cols
        target = batch.targets[SEGMENTATION]
        loss = self.loss(logits, target.value, target.valid)
        if stage == "train":
            reshaper = getattr(self.model, "reshaper", None)
            auxiliary = reshaper.pop_auxiliary_loss() if isinstance(reshaper, Reshaper) else None
            if auxiliary is not None:
                self.log("train/auxiliary_loss", auxiliary.detach())
                loss = loss + auxiliary
            if self.instance_loss is not None:
                head = self.model.head
                assert isinstance(head, Head)
                maps = head.pop_instances()
                own = self.instance_loss(maps, batch.targets["centers"])
                self.log("train/instance_loss", own.detach())
                loss = loss + own
            self._latest = (loss.detach(), self.global_step, batch.names)
            self.log("train/loss", loss.detach())
        else:
            self._metric(stage).update(logits, target.value, target.valid)
            self.log(f"{stage}/loss", loss, batch_size=len(batch), on_epoch=True, sync_dist=True)
        return loss

    def check_finite(self) -> None:
        """Stop when the latest training loss was NaN or infinite; looked at a step late, so that no GPU is waited for.

        Raises:
            InputError: naming the step and the batch.
        """
        if self._latest is not None:
            loss, step, names = self._latest
            if not torch.isfinite(loss):
                raise Divergence(
                    f"training: the loss is {loss.item()} at step {step}, on the batch {', '.join(names)}; look at these "
                    "samples, or lower optimizer.lr"
                )

    def on_validation_epoch_start(self) -> None:
        self.check_finite()

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _metric(self, stage: str) -> BEVIoU:
        return self.test_metric if stage == "test" else self.val_metric

    def _log_metrics(self, stage: str) -> None:
        metric = self._metric(stage)
        values = {f"{stage}/{key}": value for key, value in metric.compute().items()}
        if stage == "test" and self.test_thresholds is not None:
            at_chosen = metric.iou_at(self.test_thresholds)
            values |= {key.replace("iou/", "test/iou_at_val_threshold/"): value for key, value in at_chosen.items()}
        values |= self._masked(stage) | (self._masked("train") if stage == "val" else {})
        # The metric itself has added up all processes' counts.
        self.log_dict(values, rank_zero_only=False, sync_dist=False)
        metric.reset()

    def _masked(self, stage: str) -> dict[str, Tensor]:
        """How many images were missing or could not be read, if any: in training since it was started or resumed, else of the
        split."""
        metric = self._masked_metric(stage)
        if not metric.update_called:
            return {}  # a run that had been trained to its end was resumed to be tested
        count = metric.compute()
        if stage != "train":
            metric.reset()
        return {f"{stage}/masked_cameras": count} if count > 0 else {}

    def _masked_metric(self, stage: str) -> SumMetric:
        metric = self.masked[STAGES.index(stage)]
        assert isinstance(metric, SumMetric)
        return metric

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer, schedule = self.optimizer.build(self.model, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        if self.recipe is not None:
            checkpoint["bevreshape"] = self.recipe


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of a whole run."""
    return trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)
