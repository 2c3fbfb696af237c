"""Diagnosis of a checkpoint's model on a split of data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bevreshape.analysis.diagnosis import Diagnosis, Plan, diagnose, first_cameras
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data_for
from bevreshape.config.build_logger import logger_options
from bevreshape.config.load_model import load_model
from bevreshape.data.batch import BEVBatch, match_cameras
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError
from bevreshape.metrics.iou import BEVIoU
from bevreshape.training.hardware import read_device


def diagnose_checkpoint(settings: Mapping[str, Any]) -> Diagnosis:
    """Run the instruments.

    Args:
        settings: options of the command, see :class:`~bevreshape.config.settings.Diagnose`.

    Raises:
        InputError: if the data has other classes or cameras than the model.
    """
    logger_options(settings)
    device = read_device(str(settings["device"]))
    model, spec, _ = load_model(settings["checkpoint"], settings["trust"])
    data = build_data_for({**settings, "seed": 0}, spec)
    found = BEVSpec.of(data.source)
    if found.classes != spec.classes:
        raise InputError(
            f"data: its classes are {', '.join(found.classes)} but the checkpoint's are {', '.join(spec.classes)}; "
            "diagnose on data with the same classes"
        )
    data.camera_order = match_cameras(spec.camera_names, found.camera_names, "data")
    data.source.prepare((settings["split"],))
    data.tested_split = settings["split"]
    plan = Plan(**{key: settings[key] for key in ("samples", "cells", "probes", "errors", "corruptions", "rigs")})
    metric = BEVIoU(spec.classes, spec.grid).to(device)
    true = None
    if settings["data"].get("calibration", "exact") != "exact":  # the data provides the exact calibration too
        exact = build_data_for({**settings, "data": {**settings["data"], "calibration": "exact"}, "seed": 0}, spec)
        exact.tested_split, exact.camera_order = settings["split"], data.camera_order
        true = first_cameras(OnDevice(exact, device), plan.samples)
    batches = partial(OnDevice, data, device)
    return diagnose(model.to(device), batches, metric, spec.camera_names, plan, true)


@dataclass(frozen=True)
class OnDevice:
    """Batches of the tested split on the model's device."""

    data: BEVDataModule
    device: torch.device

    def __len__(self) -> int:
        return len(self.data.test_dataloader())

    def __iter__(self) -> Iterator[BEVBatch]:
        for batch in self.data.test_dataloader():
            yield self.data.on_after_batch_transfer(batch.to(self.device), 0)
