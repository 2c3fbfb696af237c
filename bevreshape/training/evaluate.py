"""The metrics of a checkpoint, on its own data or on other data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bevreshape.analysis.evaluation import Change, Evaluation, Variant
from bevreshape.analysis.robustness import drop_camera
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data_for
from bevreshape.config.build_task import build_metrics
from bevreshape.config.load_model import load_model
from bevreshape.data.batch import SEGMENTATION, BEVBatch, match_cameras
from bevreshape.errors import InputError
from bevreshape.metrics import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reporting.tables import write_metrics
from bevreshape.training.callbacks import RunProgress
from bevreshape.training.hardware import matmul_precision
from bevreshape.training.trainer import make_trainer, silence_lightning


class SelectChannels(nn.Module):
    """Select channels of a head's output."""

    def __init__(self, head: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.head, self.channels = head, list(channels)

    def forward(self, bev: Tensor) -> Tensor:
        """Map (b, d, R, C) to (b, channels, rows, cols)."""
        return self.head(bev)[:, self.channels]


def select_classes(model: BEVModel, predicted: Sequence[str], classes: Sequence[str]) -> BEVModel:
    """Return the model with its segmentation head, if it has one, reduced to ``classes``; other heads are kept."""
    if SEGMENTATION not in model.heads:
        return model
    channels = [list(predicted).index(name) for name in classes]
    selected = SelectChannels(model.heads[SEGMENTATION], channels)
    return BEVModel(model.encoder, model.reshaper, {**dict(model.heads.items()), SEGMENTATION: selected})


def variants(labelled: Sequence[str], classes: Sequence[str], dropped: Sequence[str]) -> dict[str, Variant]:
    """Return the variants of a batch: reduced to ``classes``, and with each camera dropped in turn.

    Args:
        labelled: classes of the labels.
        classes: classes to evaluate.
        dropped: names of the cameras to drop in turn: all cameras of the model in order, or none.
    """
    channels = [list(labelled).index(name) for name in classes]

    def select(batch: BEVBatch) -> BEVBatch:
        if SEGMENTATION not in batch.targets:
            return batch
        target = batch.targets[SEGMENTATION].map(lambda cells: cells[:, channels])
        return replace(batch, targets={**batch.targets, SEGMENTATION: target})

    def without(camera: int) -> Change:
        return lambda batch: drop_camera(camera)(select(batch))

    return {"": Variant(select), **{name: Variant(without(number)) for number, name in enumerate(dropped)}}


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: as written to ``metrics.json``.
        classes: the evaluated classes.
        tables: title and values of metrics other than the IoU of a class.
        left_out: classes that only the data or only the model has.
    """

    metrics: dict[str, float]
    classes: tuple[str, ...]
    tables: tuple[tuple[str | None, dict[str, float]], ...]
    left_out: tuple[str, ...]


def evaluate(cfg: dict[str, Any], folder: Path) -> EvaluationResult:
    """Evaluate one checkpoint on one split and write ``metrics.json``.

    Raises:
        InputError: when the data has another number of cameras than the model, or no class in common with it.
    """
    silence_lightning()
    model, spec, _ = load_model(cfg["checkpoint"], cfg["trust"])
    data = build_data_for(cfg, spec)
    found = BEVSpec.of(data.source)
    data.camera_order = match_cameras(spec.camera_names, found.camera_names, "data")
    classes = tuple(name for name in spec.classes if name in found.classes)
    if not classes:
        raise InputError(
            f"data: its classes ({', '.join(found.classes)}) and the checkpoint's ({', '.join(spec.classes)}) have no "
            "name in common; give them the same names in data.classes"
        )
    measured = build_metrics(cfg["metric"], classes, spec.grid)
    dropped = spec.camera_names if cfg["drop_each_camera"] else ()
    if dropped and not any(isinstance(metric, BEVIoU) for metric in measured.values()):
        raise InputError("drop_each_camera=true reports the IoU, but no metric gives it; add metric=[iou,…]")
    task = Evaluation(select_classes(model, spec.classes, classes), measured, variants(found.classes, classes, dropped))
    bars = [RunProgress()] if cfg["trainer"].get("enable_progress_bar", True) else []
    trainer = make_trainer(cfg["trainer"], logger=False, enable_checkpointing=False, callbacks=bars)
    data.tested_split = cfg["split"]
    with matmul_precision(cfg["trainer"]):
        tested = trainer.test(task, datamodule=data, verbose=False)[0]
    metrics = {key: float(value) for key, value in tested.items()}
    without = {
        f"iou_without/{name}/{camera}": task.results[camera][f"iou/{name}"]
        for name in (*classes, "mean")
        for camera in dropped
    }
    metrics |= {f"test/{key}": value for key, value in without.items()}
    if trainer.is_global_zero:
        write_metrics(folder, metrics)
    title = getattr(data.source, "protocol", None)
    tables = *((title, values) for values in task.tables), *((("IoU without one camera", without),) if without else ())
    left_out = tuple(sorted({*spec.classes, *found.classes} - {*classes}))
    return EvaluationResult(metrics, classes, tables, left_out)
