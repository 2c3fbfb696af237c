"""Loggers: their options, checked before a run begins, and what they log in addition to curves."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from bevreshape.analysis.costs import forward_flops, ring
from bevreshape.analysis.evaluation import evaluating
from bevreshape.config.construct import locate
from bevreshape.errors import InputError, suggest
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape
from bevreshape.training.mlflow_run import log_mlflow_settings

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""Modes of W&B, including the older names that the environment variable may still have."""

SUMMARY_WRITER = ("comment", "purge_step", "max_queue", "flush_secs", "filename_suffix")
"""Options of tensorboard's ``SummaryWriter``; tensorboard need not be installed."""

LONGEST_TAG = 64
"""Longest tag in characters, as W&B's server limits it."""


def check_library_options(node: Mapping[str, Any]) -> None:
    """Check the options that a logger passes on to the library behind it.

    Raises:
        InputError: when neither the logger nor the library has the option.
    """
    target = str(node.get("_target_", ""))
    begun = {"WandbLogger": tuple(inspect.signature(wandb.init).parameters), "TensorBoardLogger": SUMMARY_WRITER}
    further = begun.get(target.rpartition(".")[2])
    if further is None:
        return
    known = [
        name for name in (*inspect.signature(locate(target)).parameters, *further) if name not in ("kwargs", "save_dir")
    ]
    for name in node:
        if name not in (*known, "_target_"):
            raise InputError(f"logger: {target.rpartition('.')[2]} has no option {name}; {suggest(str(name), known)}")


def wandb_options(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of W&B: the ``logger`` group with its mode resolved; ``None`` if W&B is disabled.

    The mode is ``logger.mode``, or the environment's ``WANDB_MODE`` if that is null. If neither is set, the mode is
    online when the user is logged in.

    Raises:
        InputError: when W&B does not have an option in that mode, or its value has the wrong type.
    """
    options = dict(node)
    given, asked = options.pop("mode", None), os.environ.get("WANDB_MODE")
    where = f"logger.mode={given}" if given is not None else f"the environment's WANDB_MODE={asked}"
    if given is None and not asked:
        options["mode"] = "online" if _logged_in() else "offline"
        where = "you are not logged in to W&B, so the run is offline"
    else:
        name = str(asked if given is None else given)
        if name not in MODES:
            raise InputError(f"{where} is unknown; {suggest(name, MODES)}")
        options["mode"] = MODES[name]
    if options["mode"] == "disabled":
        return None
    if options.get("log_model") not in (None, True, False, "all"):
        raise InputError(f"logger.log_model={options['log_model']!r} must be true, false or all")
    if options.get("log_model") and options["mode"] == "offline":
        raise InputError(
            f"logger.log_model={str(options['log_model']).lower()}: an offline run cannot upload checkpoints "
            f"({where}); log in with `wandb login`, set logger.mode=online, or leave log_model=false: they stay in the "
            "run's folder"
        )
    tags = options.get("tags")
    if tags is not None and not (
        isinstance(tags, Sequence)
        and not isinstance(tags, str)
        and all(isinstance(tag, str) and 0 < len(tag) <= LONGEST_TAG for tag in tags)
    ):
        raise InputError(
            f"logger.tags={tags!r} must be a list of words of at most {LONGEST_TAG} characters, such as [first,mlp]"
        )
    for key in ("notes", "job_type", "group", "project", "name"):
        if options.get(key) is not None and not isinstance(options[key], str):
            raise InputError(f"logger.{key}={options[key]!r} must be a string; put it into quotes")
    return options


def is_wandb(node: Mapping[str, Any]) -> bool:
    """Return whether the ``logger`` group is W&B's."""
    return str(node.get("_target_", "")).endswith("WandbLogger")


def begin(logger: Logger) -> None:
    """Begin a W&B run; other loggers have begun.

    Raises:
        InputError: when W&B cannot begin a run; quotes its message.
    """
    if not isinstance(logger, WandbLogger):
        return
    try:
        _ = logger.experiment
    except (wandb.Error, OSError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"logger: W&B cannot begin a run ({said}); log in with `wandb login`, or set logger.mode=offline, or "
            "logger=csv"
        ) from error


@rank_zero_only
def log_settings(logger: Logger, settings: Mapping[str, Any]) -> None:
    """Log the config of a run and the description of its model."""
    if isinstance(logger, MLFlowLogger):
        log_mlflow_settings(logger, settings)
    else:
        logger.log_hyperparams(dict(settings))


@rank_zero_only
def log_images(logger: Logger, key: str, images: Sequence[np.ndarray], captions: Sequence[str], step: int) -> None:
    """Log images of ``(height, width, 3)``, if the logger takes images.

    Args:
        logger: of the run.
        key: such as ``val/predictions``.
        images: 0..255.
        captions: one for each image.
        step: of training.
    """
    if isinstance(logger, WandbLogger):
        logger.log_image(key, list(images), step=step, caption=list(captions))
    for i, image in enumerate(images):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"{key}/{i}", image, global_step=step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, key=f"{key}/{i}", step=step)


@rank_zero_only
def summarize(logger: Logger, metrics: Mapping[str, float]) -> None:
    """Set the summary of the W&B run to the metrics of the best checkpoint, instead of the last logged values.

    MLflow has no summary; there the validation of the best checkpoint is ``best/val/…``.
    """
    if isinstance(logger, WandbLogger) and metrics:
        logger.experiment.summary.update(dict(metrics))
    elif isinstance(logger, MLFlowLogger):
        logger.log_metrics({f"best/{key}": value for key, value in metrics.items() if key.startswith("val/")})


def describe_model(model: BEVModel, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return name, parameters and millions of operations (forward pass, one sample) of the parts of a model."""
    parts = {"encoder": model.encoder, "reshaper": model.reshaper, "head": model.heads}
    sources: Sequence[FeatureShape] = model.encoder.sources  # type: ignore[assignment]
    cameras = ring(sources[0].cameras, image_size, 1, torch.device("cpu"))
    image = torch.zeros(1, sources[0].cameras, 3, *image_size)
    with evaluating(model), torch.no_grad():
        features = model.encoder(image)
        flops = {
            "reshaper": forward_flops(model.reshaper, lambda: model.reshaper(features, cameras)),
            "model": forward_flops(model, lambda: model(image, cameras)),
        }
    return {
        "reshaper": snake_case(type(model.reshaper).__name__),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "mflop": {name: count / 1e6 for name, count in flops.items()},
    }


def snake_case(name: str) -> str:
    """Return ``CrossAttention`` as ``cross_attention``, ``ColumnMLP`` as ``column_mlp``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _logged_in() -> bool:
    """Return whether W&B finds an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc().authenticators(str(host)) is not None
    except (FileNotFoundError, NetrcParseError):
        return False
