"""``python -m bevreshape.evaluate``: the metrics of a checkpoint, on its own data or on other."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from bevreshape.analysis.evaluation import Change, Evaluation, Variant
from bevreshape.analysis.robustness import drop_camera
from bevreshape.bev_spec import BEVSpec
from bevreshape.config import cli, settings
from bevreshape.config.build_data import build_data
from bevreshape.config.compose import plain_config
from bevreshape.config.groups import build_named
from bevreshape.config.load_model import load_model
from bevreshape.config.options import LocalPath, read_settings, read_value
from bevreshape.config.stored import check_cache, check_targets, typed_trust
from bevreshape.data.batch import SEGMENTATION, BEVBatch, match_cameras
from bevreshape.errors import InputError
from bevreshape.model import BEVModel
from bevreshape.reporting.tables import metrics_table, own_table, print_table, write_metrics
from bevreshape.storage.checkpoint import read_checkpoint
from bevreshape.training.callbacks import RunProgress
from bevreshape.training.launch import in_processes, make_trainer, process_count, quiet

FROM_CHECKPOINT = ("data", "loader", "metric")
"""Groups that a checkpoint's run brings, unless others are chosen."""

IOU = {"iou": {"_target_": "bevreshape.metrics.BEVIoU"}}


class SelectChannels(nn.Module):
    """Some channels of what a head makes."""

    def __init__(self, head: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.head, self.channels = head, list(channels)

    def forward(self, bev: Tensor) -> Tensor:
        """(b, d, R, C) → (b, channels, rows, cols)."""
        return self.head(bev)[:, self.channels]


def among(model: BEVModel, predicted: Sequence[str], classes: Sequence[str]) -> BEVModel:
    """A model of some of the classes that it predicts."""
    channels = [list(predicted).index(name) for name in classes]
    return BEVModel(model.encoder, model.reshaper, {SEGMENTATION: SelectChannels(model.heads[SEGMENTATION], channels)})


def variants(labelled: Sequence[str], classes: Sequence[str], dropped: Sequence[str]) -> dict[str, Variant]:
    """The batches with some of the classes that their labels have, and with each camera dropped in turn.

    Args:
        labelled: classes of the labels.
        classes: those that are compared.
        dropped: cameras; all of the model's, in their order, or none.
    """
    channels = [list(labelled).index(name) for name in classes]

    def select(batch: BEVBatch) -> BEVBatch:
        target = batch.targets[SEGMENTATION].map(lambda cells: cells[:, channels])
        return replace(batch, targets={**batch.targets, SEGMENTATION: target})

    def without(camera: int) -> Change:
        return lambda batch: drop_camera(camera)(select(batch))

    return {"": Variant(select), **{name: Variant(without(number)) for number, name in enumerate(dropped)}}


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
    data = build_data({"data": data_for(cfg["data"], spec), "loader": cfg["loader"], "seed": cfg["seed"]})
    found = BEVSpec.of(data.source)
    data.camera_order = match_cameras(spec.camera_names, found.camera_names, "data")
    classes = tuple(name for name in spec.classes if name in found.classes)
    if not classes:
        raise InputError(
            f"data: its classes ({', '.join(found.classes)}) and the checkpoint's ({', '.join(spec.classes)}) have no name in "
            "common; name them alike in data.classes"
        )
    measured = build_named("metric", cfg["metric"], classes=classes, grid=spec.grid)
    dropped = spec.camera_names if cfg["drop_each_camera"] else ()
    task = Evaluation(among(model, spec.classes, classes), measured, variants(found.classes, classes, dropped))
    bars = [RunProgress()] if cfg["trainer"].get("enable_progress_bar", True) else []
    trainer = make_trainer(cfg["trainer"], logger=False, enable_checkpointing=False, callbacks=bars)
    data.tested_split = cfg["split"]
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
        left_out = sorted({*spec.classes, *found.classes} - {*classes})
        console = Console()
        print_table(metrics_table(metrics, classes, f"{cfg['checkpoint']} on {cfg['split']}"))
        for values in task.tables:
            print_table(own_table(values, getattr(data.source, "protocol", None)))
        if without:
            print_table(own_table(without, "IoU without one camera"))
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
    offered: dict[str, Any] = {group: {} for group in FROM_CHECKPOINT}
    if path is not None:
        stored, where = stored_groups(read_value("checkpoint", LocalPath, path))
        offered = stored
        if _names_other_data(cli.typed_value(arguments, "data")):
            offered["metric"] = IOU  # others may need what that data does not have
        else:
            for group in FROM_CHECKPOINT:
                check_targets(stored[group], group, where, typed_trust(arguments))
            if cli.typed_value(arguments, "data.root") is None:
                check_cache(stored["data"], where)
    elif not {"--help", "-h"} & {*arguments}:
        raise InputError(
            "checkpoint=FILE must be given, for instance checkpoint=runs/<date>/<time>/checkpoints/best.ckpt"
        )
    for group, node in offered.items():
        ConfigStore.instance().store(group=group, name="from_checkpoint", node=node)
    return config_name, arguments


def _names_other_data(typed: str | None) -> bool:
    """Whether ``data=…`` chooses a group by its plain name; of all else Hydra may still make the checkpoint's."""
    return bool(typed) and typed != "from_checkpoint" and re.fullmatch(r"[\w-]+(/[\w-]+)*", str(typed)) is not None


def stored_groups(path: str) -> tuple[dict[str, Any], str]:
    """The groups of a checkpoint's run that say what is tested, and what to call the file in a message."""
    where = f"checkpoint {path}"
    config = read_checkpoint(path)["bevreshape"].get("config")
    found = {group: config.get(group) if isinstance(config, dict) else None for group in FROM_CHECKPOINT}
    for group, node in found.items():
        if not isinstance(node, dict) or "defaults" in node:  # of which Hydra would compose another config
            raise InputError(
                f"{where}: bevreshape.config.{group} must be a mapping of options, not {node!r:.80}; it is damaged"
            )
    return found, where


if __name__ == "__main__":
    cli.run(main, "evaluate", prepare)
