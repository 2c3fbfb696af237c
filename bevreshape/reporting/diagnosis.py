"""Write a diagnosis to the console, files and the logger."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from rich.table import Table

from bevreshape.analysis.diagnosis import Diagnosis
from bevreshape.config.build_logger import make_logger
from bevreshape.storage.files import write_atomic, write_text


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> list[str | Path]:
    """Write ``diagnosis.json`` and the drawings; return the files, the drawings by name alone."""
    write_text(folder / "diagnosis.json", json.dumps(diagnosis.numbers, indent=2) + "\n")
    for name, figure in diagnosis.figures.items():
        write_atomic(folder / f"{name}.png", partial(figure.savefig, format="png", dpi=150))
    return [folder / "diagnosis.json", *(f"{name}.png" for name in diagnosis.figures)]


def log_diagnosis(diagnosis: Diagnosis, settings: Mapping[str, Any], folder: Path) -> None:
    """Log figures; W&B and MLflow also get the drawings of :func:`write_diagnosis`."""
    logger = make_logger(settings, folder)
    if isinstance(logger, bool):
        return
    logger.log_metrics({key: value for key, value in flat(diagnosis.numbers).items() if isinstance(value, float)})
    for name in diagnosis.figures:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"diagnosis/{name}", [str(folder / f"{name}.png")])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(folder / f"{name}.png"), "diagnosis")
    logger.finalize("success")
    wandb.finish()


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists to ``a/b/0: value``."""
    if isinstance(node, dict | list | tuple):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}".strip("/")).items()}
    return {prefix: node}


def summary_table(numbers: dict[str, Any]) -> Table:
    """Return the table of the main figures."""
    table = Table("measurement", "value", title=f"{numbers['reshaper']}: diagnosis")
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
