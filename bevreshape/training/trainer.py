"""Building a Lightning Trainer from the ``trainer`` group."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from bevreshape.errors import InputError
from bevreshape.training.callbacks import AtomicCheckpointIO
from bevreshape.training.cluster import cluster_environment
from bevreshape.training.hardware import check_hardware, on_gpu
from bevreshape.training.sharding import is_sharded
from bevreshape.training.trainer_options import OPTIONS, Refused, check_options

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
"""Profilers, which write files ``*-profile*`` in the run folder."""


def make_trainer(cfg: Mapping[str, Any], **kwargs: Any) -> Trainer:
    """Build a Lightning Trainer from the ``trainer`` group; Lightning's errors become one-line messages.

    Raises:
        InputError: when a device, precision or value is not supported.
    """
    check_options(cfg)
    check_hardware(cfg)
    options = lightning_options(cfg, kwargs.get("default_root_dir"))
    plugins: list[Any] = [AtomicCheckpointIO(), cluster_environment()]
    try:
        return Trainer(
            **{**options, "accelerator": "cuda" if on_gpu(cfg) else "cpu", **kwargs},
            plugins=plugins,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


def silence_lightning() -> None:
    """Silence Lightning's messages that appear on every run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*your dataloader is not resumable.*",
        r".*`srun` command is available on your system but is not used.*",
        r".*is smaller than the logging interval.*",
        r"Grad strides do not match bucket view strides.*",  # of DDP, on every CPU
        r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",
        r"FSDP2-wrapped module \(FSDPBEVModel\) returned a view tensor.*",  # which is not changed in place
        r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # the metric sums over the processes itself
    ):
        warnings.filterwarnings("ignore", message)


def lightning_options(group: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer for a checked ``trainer`` group.

    Args:
        group: as :func:`check_options` lets it pass.
        folder: where a profiler writes.
    """
    options = {key: value for key, value in group.items() if key in OPTIONS and not isinstance(OPTIONS[key], Refused)}
    if options.get("profiler"):
        options["profiler"] = PROFILERS[options["profiler"]](dirpath=folder, filename="profile")
    if is_sharded(group):
        options["inference_mode"] = False  # shards that are gathered in it could not be trained afterwards
    return {"enable_model_summary": False, **options, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
