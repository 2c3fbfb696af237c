"""``python -m bevreshape.diagnose``: what a trained model has learned, and what it bears."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bevreshape.analysis.diagnosis import Plan, diagnose, first_cameras
from bevreshape.bev_spec import BEVSpec
from bevreshape.config import cli, settings
from bevreshape.config.build_data import build_data
from bevreshape.config.build_logger import logger_options, make_logger
from bevreshape.config.compose import plain_config
from bevreshape.config.load_model import load_model
from bevreshape.config.options import read_settings
from bevreshape.data.batch import BEVBatch, match_cameras
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError
from bevreshape.evaluate import data_for, prepare
from bevreshape.metrics.iou import BEVIoU
from bevreshape.reporting.tables import print_table
from bevreshape.storage.files import write_atomic, write_text
from bevreshape.training.launch import read_device


def main(cfg: DictConfig) -> None:
    """Run the instruments, print the main figures, write ``diagnosis.json`` and the drawings."""
    plain = read_settings(settings.Diagnose, plain_config(cfg))
    folder = Path(HydraConfig.get().runtime.output_dir)
    logger_options(plain)
    device = read_device(str(plain["device"]))
    model, spec, _ = load_model(plain["checkpoint"], plain["trust"])
    data = build_data({"data": data_for(plain["data"], spec), "loader": plain["loader"], "seed": 0})
    found = BEVSpec.of(data.source)
    if found.classes != spec.classes:
        raise InputError(
            f"data: its classes are {', '.join(found.classes)} but the checkpoint's are {', '.join(spec.classes)}; diagnose on "
            "data with the same classes"
        )
    data.camera_order = match_cameras(spec.camera_names, found.camera_names, "data")
    data.source.prepare((plain["split"],))
    data.tested_split = plain["split"]
    plan = Plan(**{key: plain[key] for key in ("samples", "cells", "probes", "errors", "corruptions", "rigs")})
    metric = BEVIoU(spec.classes, spec.grid).to(device)
    true = None
    if plain["data"].get("calibration", "exact") != "exact":  # of a world that can tell where the cameras really are
        exact = build_data(
            {"data": data_for({**plain["data"], "calibration": "exact"}, spec), "loader": plain["loader"], "seed": 0}
        )
        exact.tested_split, exact.camera_order = plain["split"], data.camera_order
        true = first_cameras(OnDevice(exact, device), plan.samples)
    batches = partial(OnDevice, data, device)
    diagnosis = diagnose(model.to(device), batches, metric, spec.camera_names, plan, true)
    write_text(folder / "diagnosis.json", json.dumps(diagnosis.numbers, indent=2) + "\n")
    for name, figure in diagnosis.figures.items():
        write_atomic(folder / f"{name}.png", partial(figure.savefig, format="png", dpi=150))
    print_table(summary(diagnosis.numbers))
    files = (folder / "diagnosis.json", *(f"{name}.png" for name in diagnosis.figures))
    Console().print(" · ".join(map(str, files)), markup=False, highlight=False, soft_wrap=True)
    logger = make_logger(plain, folder)
    if not isinstance(logger, bool):
        logger.log_metrics({key: value for key, value in flat(diagnosis.numbers).items() if isinstance(value, float)})
        if isinstance(logger, WandbLogger):
            for name in diagnosis.figures:
                logger.log_image(f"diagnosis/{name}", [str(folder / f"{name}.png")])
        logger.finalize("success")
        wandb.finish()


@dataclass(frozen=True)
class OnDevice:
    """Batches of the split that is tested, as a model gets them."""

    data: BEVDataModule
    device: torch.device

    def __len__(self) -> int:
        return len(self.data.test_dataloader())

    def __iter__(self) -> Iterator[BEVBatch]:
        for batch in self.data.test_dataloader():
            yield self.data.on_after_batch_transfer(batch.to(self.device), 0)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as ``a/b/0: value``."""
    if isinstance(node, dict | list | tuple):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}".strip("/")).items()}
    return {prefix: node}


def summary(numbers: dict[str, Any]) -> Table:
    """The main figures on the console."""
    table = Table("measurement", "value", title=f"{numbers['reshaper']}: what it has learned")
    table.add_row("mean IoU", f"{numbers['iou']['iou/mean']:.3f}")
    table.add_row("data dependence of W (0: fixed)", f"{numbers['data_dependence']:.3g}")
    agreement = numbers["agreement"]
    if "not_measured" in agreement:
        table.add_row("W to true projection", agreement["not_measured"])
    for rule in ("centroid", "peak", "uniform") if "whole" in agreement else ():
        found = agreement["whole"][rule]
        what = f"W to true projection, {rule}" if rule != "uniform" else "... of uniform weights"
        table.add_row(f"{what}: median, 90 % [features]", f"{found['median']:.2f}, {found['p90']:.2f}")
    if "not_measured" in numbers["order"]:
        table.add_row("tokens permuted", numbers["order"]["not_measured"])
    else:
        iou = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers["order"]["iou"].items())
        table.add_row("tokens permuted: mean IoU", iou)
    for group, values in numbers["robustness"].items():
        shown = ", ".join(f"{what}: {value['iou/mean']:.3f}" for what, value in values.items())
        table.add_row(f"{group}: mean IoU", shown)
    return table


if __name__ == "__main__":
    cli.run(main, "diagnose", prepare)
