"""``python -m bevreshape.evaluate``: the metrics of a checkpoint, on its own data or on other."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import LightningModule
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from bevreshape.bev_spec import BEVSpec
from bevreshape.config import cli, settings
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import plain_config
from bevreshape.config.load_model import load_model
from bevreshape.config.options import LocalPath, read_settings, read_value
from bevreshape.config.stored import check_cache, check_targets, typed_trust
from bevreshape.data.batch import SEGMENTATION, BEVBatch, SourceWithMetrics, match_cameras
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reporting.tables import metrics_table, own_table, print_table, write_metrics
from bevreshape.storage.checkpoint import read_checkpoint
from bevreshape.training.callbacks import RunProgress
from bevreshape.training.launch import in_processes, make_trainer, process_count, quiet


class Evaluation(LightningModule):
    """IoU of the classes that a model and a data source both know, compared by name.

    Args:
        model: gives logits of ``predicted`` classes.
        predicted: the model's classes.
        labelled: the data's classes.
        metric: on the classes to be compared.
        own: the data's own metrics on these, see :class:`~bevreshape.data.batch.SourceWithMetrics`.
        without: cameras of the model, each of which is dropped in turn; all, in their order, or none.

    ``tables`` holds titles and figures of all but the first metric.
    """

    def __init__(
        self,
        model: BEVModel,
        predicted: tuple[str, ...],
        labelled: tuple[str, ...],
        metric: BEVIoU,
        own: Sequence[Metric] = (),
        without: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.metric = metric
        self.own = nn.ModuleList(own)
        self.dropped = tuple(without)
        self.without = nn.ModuleList(deepcopy(metric) for _ in without)
        self.masked = SumMetric(nan_strategy="disable")
        self.tables: list[tuple[str | None, dict[str, float]]] = []
        self.predicted = [predicted.index(name) for name in metric.classes]
        self.labelled = [labelled.index(name) for name in metric.classes]

    @property
    def _own(self) -> list[Metric]:
        return cast(list[Metric], list(self.own))

    @property
    def _without(self) -> list[BEVIoU]:
        return cast(list[BEVIoU], list(self.without))

    def test_step(self, batch: BEVBatch, batch_idx: int) -> None:
        cameras = batch.cameras
        self.masked.update((~cameras.full_mask).sum())
        features = self.model.encoder(batch.images)
        logits = self._logits(features, cameras)
        labelled = batch.targets[SEGMENTATION]
        target, valid = labelled.value[:, self.labelled], labelled.valid[:, self.labelled]
        self.metric.update(logits, target, valid)
        for metric in self._own:
            metric.update(logits.float().sigmoid(), target, valid, batch)
        for number, metric in enumerate(self._without):
            mask = cameras.full_mask.clone()
            mask[:, number] = False
            metric.update(self._logits(features, replace(cameras, camera_mask=mask)), target, valid)

    def _logits(self, features: Tensor, cameras: Cameras) -> Tensor:
        return self.model.head(self.model.reshaper(features, cameras))[:, self.predicted]  # b k rows cols

    def on_test_epoch_end(self) -> None:
        found = [(getattr(metric, "title", None), metric.compute()) for metric in self._own]
        if self.without:
            dropped = {camera: metric.compute() for camera, metric in zip(self.dropped, self._without, strict=True)}
            named = (*self.metric.classes, "mean")
            values = {
                f"iou_without/{name}/{camera}": iou[f"iou/{name}"] for name in named for camera, iou in dropped.items()
            }
            found.append(("IoU without one camera", values))
        for values in (self.metric.compute(), *(values for _, values in found)):
            self.log_dict({f"test/{key}": value for key, value in values.items()}, sync_dist=False)
        self.tables = [(title, {key: float(value) for key, value in values.items()}) for title, values in found]
        if (masked := self.masked.compute()) > 0:
            self.log("test/masked_cameras", masked, sync_dist=False)
        for metric in (self.metric, self.masked, *self._own, *self._without):
            metric.reset()


def main(cfg: DictConfig) -> None:
    """Evaluate in as many processes as the config asks for."""
    plain = read_settings(settings.Evaluate, plain_config(cfg))
    folder = Path(HydraConfig.get().runtime.output_dir)
    in_processes(process_count(plain["trainer"]), evaluate, plain, folder)


def evaluate(cfg: dict[str, Any], folder: Path) -> dict[str, float]:
    """Measure one checkpoint on one split, print the table and write ``metrics.json``.

    Returns:
        The metrics, as written.

    Raises:
        InputError: when the data has another number of cameras or no class in common with the model.
    """
    quiet()
    model, spec, _ = load_model(cfg["checkpoint"], cfg["trust"])
    data = build_data({"data": data_for(cfg["data"], spec), "seed": cfg["seed"]})
    found = BEVSpec.of(data.source)
    data.camera_order = match_cameras(spec.camera_names, found.camera_names, "data")
    classes = tuple(name for name in spec.classes if name in found.classes)
    if not classes:
        raise InputError(
            f"data: its classes ({', '.join(found.classes)}) and the checkpoint's ({', '.join(spec.classes)}) have no name in "
            "common; name them alike in data.classes"
        )
    own = data.source.metrics(classes) if isinstance(data.source, SourceWithMetrics) else ()
    without = spec.camera_names if cfg["drop_each_camera"] else ()
    task = Evaluation(model, spec.classes, found.classes, BEVIoU(classes, spec.grid), own, without)
    bars = [RunProgress()] if cfg["trainer"].get("enable_progress_bar", True) else []
    trainer = make_trainer(cfg["trainer"], logger=False, enable_checkpointing=False, callbacks=bars)
    data.tested_split = cfg["split"]
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    metrics = {key: float(value) for key, value in tested.items()}
    if trainer.is_global_zero:
        write_metrics(folder, metrics)
        left_out = sorted({*spec.classes, *found.classes} - {*classes})
        console = Console()
        print_table(metrics_table(metrics, classes, f"{cfg['checkpoint']} on {cfg['split']}"))
        for title, values in task.tables:
            print_table(own_table(values, title))
        if "test/masked_cameras" in metrics:
            console.print(
                f"images masked, missing or not to be read: {metrics['test/masked_cameras']:.0f}", soft_wrap=True
            )
        console.print(
            f"{folder / 'metrics.json'}" + (f" · known to one side only: {', '.join(left_out)}" if left_out else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return metrics


def data_for(data: dict[str, Any], spec: BEVSpec) -> dict[str, Any]:
    """The ``data`` group on the cells and in the images, by size and mode, that a trained model is made for."""
    grid = {
        "_target_": "bevreshape.geometry.BEVGrid",
        "forward_m": list(spec.grid.forward_m),
        "left_m": list(spec.grid.left_m),
        "cell_m": spec.grid.cell_m,
    }
    mode = {"image_mode": spec.image_mode} if "image_mode" in data or spec.image_mode != "rgb" else {}
    return {**data, "grid": grid, "image_size": list(spec.image_size), **mode}


def prepare(config_name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Offer the data config inside the checkpoint as ``data=from_checkpoint``, the default.

    What is offered holds nothing that Hydra would interpret, see :func:`~bevreshape.storage.checkpoint.read_checkpoint`.

    Raises:
        InputError: when there is no checkpoint, or its data names classes that are not allowed, or a place to write to, or for
            cells or an image size other than the checkpoint's.
    """
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        if key == "data.image_size" or key.startswith("data.grid"):
            raise InputError(
                f"{argument}: data is brought to the cells and the image size of the checkpoint; leave it out, or train a model "
                "for others"
            )
    path = cli.typed_value(arguments, "checkpoint")
    if path is not None:
        stored, where = stored_data(read_value("checkpoint", LocalPath, path))
        if not _names_other_data(cli.typed_value(arguments, "data")):
            check_targets(stored, "data", where, typed_trust(arguments))
            if cli.typed_value(arguments, "data.root") is None:
                check_cache(stored, where)
        ConfigStore.instance().store(group="data", name="from_checkpoint", node=stored)
    elif not {"--help", "-h"} & {*arguments}:
        raise InputError(
            "checkpoint=FILE must be given, for instance checkpoint=runs/<date>/<time>/checkpoints/best.ckpt"
        )
    else:
        ConfigStore.instance().store(group="data", name="from_checkpoint", node={})
    return config_name, arguments


def _names_other_data(typed: str | None) -> bool:
    """Whether ``data=…`` chooses a group by its plain name; of all else Hydra may still make the checkpoint's."""
    return bool(typed) and typed != "from_checkpoint" and re.fullmatch(r"[\w-]+(/[\w-]+)*", str(typed)) is not None


def stored_data(path: str) -> tuple[dict[str, Any], str]:
    """The ``data`` group of a checkpoint's run, and what to call the file in a message."""
    where = f"checkpoint {path}"
    config = read_checkpoint(path)["bevreshape"].get("config")
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or "defaults" in data:  # of which Hydra would compose another config
        raise InputError(
            f"{where}: bevreshape.config.data must be the options of a data source, not {data!r:.80}; it is damaged"
        )
    return data, where


if __name__ == "__main__":
    cli.run(main, "evaluate", prepare)
