"""The Lightning task: steps, logging and the optimizer; no architecture."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric

from bevreshape.data.batch import BEVBatch, seeded
from bevreshape.geometry import Cameras
from bevreshape.metrics import BEVMetric, MaskedCameras, collected, values_besides_iou
from bevreshape.model import Outputs
from bevreshape.objectives.base import scalar
from bevreshape.ops.compiled import compile_alone
from bevreshape.training.divergence import StopOnDivergence
from bevreshape.training.optimizer import AdamWOneCycle, OptimizerSchedule, clips_mixed, total_steps, without_fusion


class BEVTask(LightningModule):
    """Train, validate and test a model ``model(images, cameras) -> Outputs``.

    Args:
        model: the network; auxiliary losses of its view transformer are added in training.
        objectives, metrics: by name; the sum of objectives is the loss; validation and test have clones of metrics.
        optimizer: builds the optimizer and its schedule.
        seed: random numbers of a training step (dropout and the like) are a function of seed, step and process.
        recipe: plain values that rebuild the model; stored in every checkpoint.

    After a test ``tables`` holds the values of every metric other than IoU, metric by metric.
    """

    def __init__(
        self, model: nn.Module, objectives: Mapping[str, nn.Module], metrics: Mapping[str, BEVMetric],
        optimizer: OptimizerSchedule | None = None, *, seed: int = 0, recipe: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.objectives = model, nn.ModuleDict(objectives)
        counted: dict[str, Metric] = {"masked_cameras": MaskedCameras()}
        stages = {"train": counted, "val": {**metrics, **counted}, "test": {**metrics, **counted}}
        self.metrics = {stage: collected(own, stage) for stage, own in stages.items()}
        self._moved = nn.ModuleList(self.metrics.values())  # moves them between devices with the task
        self.optimizer, self.seed, self.recipe = optimizer or AdamWOneCycle(), seed, recipe
        self.tables: list[dict[str, float]] = []
        self.rig_geometry: Callable[[Cameras], Any] | None = None
        self._compiled: Callable[..., Outputs] | None = None

    def compile_training(self, cuda_graphs: bool = False) -> None:
        """Compile training steps by ``torch.compile``, except their random numbers; all else runs uncompiled.

        Args:
            cuda_graphs: also record them as CUDA graphs, which are replayed; this pays where the launch of many small
                kernels takes longer than their work.
        """
        graphs = {"triton.cudagraphs": True} if cuda_graphs else {}
        self._compiled = compile_alone(self.model.forward, options={"fallback_random": True, **graphs})

    def forward(self, batch: BEVBatch) -> Outputs:
        model = self._compiled if self._compiled and self.training else self.model
        located = None if self.rig_geometry is None else self.rig_geometry(batch.cameras)
        return model(batch.images, batch.cameras, *(() if located is None else (located,)))

    def step(self, batch: BEVBatch, stage: str) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs of a batch, and update the metrics."""
        outputs = self(batch)
        self.metrics[stage].update(outputs, batch)
        losses = {f"{name}_loss": scalar(name, own, own(outputs, batch)) for name, own in self.objectives.items()}
        own = {"auxiliary_loss": sum(outputs.auxiliary.values())} if outputs.auxiliary else {}
        total: Tensor = sum([*losses.values(), *own.values()])  # type: ignore[assignment]
        named = {**(losses if len(losses) > 1 else {}), **own, "loss": total}
        over_epoch = {"on_step": False, "on_epoch": True, "sync_dist": True} if stage != "train" else {}
        logged = {f"{stage}/{name}": one.detach() for name, one in named.items()}
        samples = float(len(batch))  # of integers, Lightning would drop the remainder in their mean over processes
        self.log_dict(logged, batch_size=samples, **over_epoch)  # type: ignore[arg-type]
        return total, outputs

    def on_train_batch_start(self, batch: BEVBatch, batch_idx: int) -> None:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/learning_rate", torch.as_tensor(rate, dtype=torch.float32))  # a number would wait for the GPU
        # A run that resumes draws what the uninterrupted one would have drawn.
        torch.manual_seed(seeded(self.seed, self.trainer.global_step, batch_idx, self.global_rank).initial_seed())

    def training_step(self, batch: BEVBatch, batch_idx: int) -> Tensor:
        return self.step(batch, "train")[0]

    def validation_step(self, batch: BEVBatch, batch_idx: int) -> dict[str, Any]:
        return {"outputs": self.step(batch, "val")[1]}

    def test_step(self, batch: BEVBatch, batch_idx: int) -> dict[str, Any] | None:
        return {"outputs": self.step(batch, "test")[1]}

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("train", keep=True)  # accumulated since training was started or resumed
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self.tables = values_besides_iou(self.metrics["test"])
        self.log_metrics("test")

    def log_metrics(self, stage: str, keep: bool = False) -> None:
        """Log the metrics of all processes, and reset them unless ``keep``."""
        metrics = self.metrics[stage]
        if all(metric.update_called for metric in metrics.values()):
            self.log_dict(metrics.compute(), rank_zero_only=False, sync_dist=False)
        if not keep:
            metrics.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        unfused = clips_mixed(self.trainer.precision, self.trainer.gradient_clip_val)
        own = without_fusion(self.optimizer) if unfused else self.optimizer
        optimizer, schedule = own.build(self.model, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        return [StopOnDivergence()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update({} if self.recipe is None else {"bevreshape": self.recipe})
