"""Images of a run: input, target and prediction, in the run folder and in the logger."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.model import Outputs
from bevreshape.reporting.drawing import draw_sample
from bevreshape.storage.files import write_png
from bevreshape.training.loggers import log_images


class ImageLogger(Callback):
    """Draw input, target and prediction side by side, every ``every_n_validations`` validations and at the test.

    The steps of validation and test return ``{"outputs": …}``, the model's :class:`~bevreshape.model.Outputs`: a
    sharded model runs in all processes at once, and not once more in the one that draws.

    Args:
        folder: of the PNGs; the logger gets the images too.
        classes: names of the channels.
        every_n_validations: interval between drawn validations.
        num_samples: number of samples, the first of the split.
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
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int, *_: Any
    ) -> None:
        due = trainer.state.fn == "fit" and self._validations % self.every_n_validations == 0
        if due and batch_idx == 0:
            self._draw(trainer, outputs["outputs"], batch, f"val_step{trainer.global_step:06d}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += 1

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: BEVBatch, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0:
            self._draw(trainer, outputs["outputs"], batch, "test")

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def _draw(self, trainer: Trainer, outputs: Outputs, batch: BEVBatch, name: str) -> None:
        if not trainer.is_global_zero or SEGMENTATION not in outputs.heads or SEGMENTATION not in batch.targets:
            return
        batch = batch[: self.num_samples]
        probabilities = outputs.heads[SEGMENTATION][: self.num_samples].float().sigmoid()
        panels, target = [], batch.targets[SEGMENTATION]
        for i in range(len(batch)):
            panel = draw_sample(
                batch.images[i],
                target.value[i],
                probabilities[i],
                target.valid[i],
                self.classes,
                ego_from_cam=batch.cameras.ego_from_cam[i],
            )
            panels.append(panel)
            write_png(self.folder / f"{name}_{i}.png", panel)
        key = f"{name.split('_')[0]}/predictions"
        for logger in trainer.loggers:
            log_images(logger, key, panels, batch.names[: len(panels)], trainer.global_step)
