"""A judged training: the test of its best checkpoint, with calibration errors and dropped cameras too."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bevreshape.analysis.evaluation import Change
from bevreshape.analysis.robustness import drop_camera, iou_under, perturb_calibration
from bevreshape.bev_spec import BEVSpec
from bevreshape.comparison.outcome import Run
from bevreshape.config.groups import build_named
from bevreshape.errors import InputError
from bevreshape.metrics import BEVIoU
from bevreshape.training.hardware import on_gpu
from bevreshape.training.recorded import Tested, Trained, best_model


def changes(errors: Mapping[str, Any], cameras: tuple[str, ...]) -> dict[str, Change]:
    """Return the changes of the input under which a model is tested, by name.

    Args:
        errors: sizes by error of the calibration.
        cameras: names of the rig's cameras; each is dropped in turn if there are several.
    """
    found = {
        f"{error}={amount:g}": perturb_calibration(error, amount)
        for error, amounts in errors.items()
        for amount in amounts
    }
    if len(cameras) > 1:
        found |= {f"without {name}": drop_camera(number) for number, name in enumerate(cameras)}
    return found


def iou_metric(config: Mapping[str, Any], spec: BEVSpec) -> BEVIoU:
    """Return the metric that gives the mean IoU.

    Raises:
        InputError: when there is none.
    """
    metrics = build_named("metric", config["metric"], classes=spec.classes, grid=spec.grid)
    for metric in metrics.values():
        if isinstance(metric, BEVIoU):
            return metric
    raise InputError("metric: none gives the IoU, by which view transformers are compared; add metric=[iou,…]")


def no_iou(split: str) -> str:
    """Return why a training without a finite mean IoU has failed."""
    return f"{split}/iou/mean is not a number: no labelled cell of the split belongs to a class, or outputs are NaN"


def measured(trained: Trained, errors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a finished training, plain for a line of JSON.

    Args:
        trained: tested by ``bevreshape.train``.
        errors: sizes by error of the calibration.

    Raises:
        InputError: when its mean IoU on the validation or test split is not finite.
    """
    for split in ("val", "test"):
        value = trained.metrics.get(f"{split}/iou/mean")
        if value is None or not math.isfinite(value):
            raise InputError(no_iou(split))
    model, data = best_model(trained)
    metric = iou_metric(trained.config, BEVSpec.of(data.source))
    model.to(torch.device("cuda" if on_gpu(trained.config["trainer"]) else "cpu"))
    found = changes(errors, BEVSpec.of(data.source).camera_names)
    batches = Tested(data, next(model.parameters()).device)
    changed = iou_under(model, batches, metric, found) if found else {}
    metrics = trained.metrics
    bands = {band: [metrics.get(f"test/iou/{name}/{band}") for name in metric.classes] for band in metric.bands}
    return {
        "validation": _rounded(metrics["val/iou/mean"]),
        "iou": _known({name: metrics.get(f"test/iou/{name}") for name in (*metric.classes, "mean")}),
        "bands": _known({band: _mean(values) for band, values in bands.items()}),
        "curve": [[step, _rounded(value)] for step, value in trained.curve if math.isfinite(value)],
        "changed": _known({name: changed[name]["iou/mean"] for name in found}),
        "seconds": _rounded(metrics["fit/seconds"]),
    }


def read_run(result: Mapping[str, Any], seed: int, folder: Path) -> Run:
    """Build a run from what :func:`measured` returns."""
    curve = tuple((step, value) for step, value in result["curve"])
    return Run(
        seed, result["validation"], result["iou"], result["bands"], curve, result["changed"], result["seconds"],
        str(folder),
    )  # fmt: skip


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that are known: a class without a cell has none."""
    return {name: _rounded(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
