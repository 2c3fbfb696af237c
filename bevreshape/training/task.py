"""The Lightning task: steps, logging and the optimizer; no architecture."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from bevreshape.data.batch import BEVBatch, seeded
from bevreshape.metrics import BEVMetric, MaskedCameras
from bevreshape.model import Outputs
from bevreshape.training.divergence import StopOnDivergence
from bevreshape.training.optimizer import AdamWOneCycle, OptimizerSchedule, total_steps

STAGES = ("train", "val", "test")


def collected(metrics: Mapping[str, Metric], stage: str) -> MetricCollection:
    """Metrics of a stage, in whose names it is the first part."""
    return MetricCollection(dict(metrics), prefix=f"{stage}/" if stage else "", compute_groups=False).clone()


class BEVTask(LightningModule):
    """Train, validate and test any model ``model(images, cameras) -> Outputs``.

    Args:
        model: the network; losses that its view transformer brings itself are added in training.
        objectives: by name, see :class:`~bevreshape.objectives.Objective`; their sum is the loss.
        metrics: by name; one clone each for validation and test.
        optimizer: what updates the weights, and its schedule.
        seed: random numbers of a training step (dropout and the like) are a function of seed, step and process.
        recipe: plain values that rebuild the model; stored in every checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Mapping[str, nn.Module],
        metrics: Mapping[str, BEVMetric],
        optimizer: OptimizerSchedule | None = None,
        *,
        seed: int = 0,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleDict(objectives)
        counted: dict[str, Metric] = {"masked_cameras": MaskedCameras()}
        own = (counted, {**metrics, **counted}, {**metrics, **counted})
        self.metrics = nn.ModuleList(collected(*pair) for pair in zip(own, STAGES, strict=True))
        self.optimizer = optimizer or AdamWOneCycle()
        self.seed = seed
        self.recipe = recipe
        self._compiled: Callable[..., Outputs] | None = None

    def compile_training(self) -> None:
        """Compile the training steps' forward and backward pass by ``torch.compile``; validation and test run as
        written."""
        # a function, since a module would be saved with the task; and with the random numbers of steps not compiled
        self._compiled = torch.compile(self.model.forward, options={"fallback_random": True})

    def forward(self, batch: BEVBatch) -> Outputs:
        network = self._compiled if self._compiled is not None and self.training else self.model
        return network(batch.images, batch.cameras)

    def metrics_of(self, stage: str) -> MetricCollection:
        """The metrics of ``train``, ``val`` or ``test``, by name."""
        return cast(MetricCollection, self.metrics[STAGES.index(stage)])

    def step(self, batch: BEVBatch, stage: str) -> Tensor:
        """The loss of a batch; its metrics are counted."""
        outputs = self(batch)
        self.metrics_of(stage).update(outputs, batch)
        losses = {name: objective(outputs, batch) for name, objective in self.objectives.items()}
        own: Tensor | int = sum(outputs.auxiliary.values())
        total: Tensor = sum(losses.values()) + own
        named = {f"{name}_loss": one for name, one in losses.items()} if len(losses) > 1 else {}
        named |= {"loss": total} | ({"auxiliary_loss": own} if isinstance(own, Tensor) else {})
        over_epoch = {"on_step": False, "on_epoch": True, "sync_dist": True} if stage != "train" else {}
        logged = {f"{stage}/{name}": one.detach() for name, one in named.items()}
        self.log_dict(logged, batch_size=len(batch), **over_epoch)  # type: ignore[arg-type]
        return total

    def on_train_batch_start(self, batch: BEVBatch, batch_idx: int) -> None:
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        # A run that resumes draws what the uninterrupted one would have drawn.
        torch.manual_seed(seeded(self.seed, self.trainer.global_step, batch_idx, self.global_rank).initial_seed())

    def training_step(self, batch: BEVBatch, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: BEVBatch, batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: BEVBatch, batch_idx: int) -> None:
        self.step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("train")  # counted since training was started or resumed
        self._log_metrics("val")
        self.metrics_of("val").reset()

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
        self.metrics_of("test").reset()

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics_of(stage)
        if all(metric.update_called for metric in metrics.values()):
            # Metrics have added up all processes' counts themselves.
            self.log_dict(metrics.compute(), rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer, schedule = self.optimizer.build(self.model, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        return [StopOnDivergence()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.recipe is not None:
            checkpoint["bevreshape"] = self.recipe
