"""What loggers are told besides curves, and how W&B is begun; what it cannot do is said before anything runs."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import urlsplit

import torch
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from bevreshape.analysis.costs import forward_flops, ring
from bevreshape.analysis.evaluation import evaluating
from bevreshape.config.construct import locate
from bevreshape.errors import InputError, suggest
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""Of W&B, with the older names that its environment variable still may have."""

SUMMARY_WRITER = ("comment", "purge_step", "max_queue", "flush_secs", "filename_suffix")
"""Options of tensorboard's ``SummaryWriter``, which need not be installed."""

LONGEST_TAG = 64
"""Characters, by W&B's server."""


def check_passed_on(node: Mapping[str, Any]) -> None:
    """Compare options of the loggers that take any, and hand on what is not theirs to what they begin.

    Raises:
        InputError: for an option that neither has.
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
    """What W&B is begun with: the ``logger`` group with its mode decided; ``None`` where it is disabled.

    ``logger.mode`` decides, where it is null the environment's ``WANDB_MODE``, and where that is not set either it is
    online if the user is logged in.

    Raises:
        InputError: for an option that W&B does not have in that mode, or of the wrong kind.
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
            raise InputError(f"logger.{key}={options[key]!r} must be a text; put it into quotes")
    return options


def is_wandb(node: Mapping[str, Any]) -> bool:
    """Whether the ``logger`` group is W&B's."""
    return str(node.get("_target_", "")).endswith("WandbLogger")


def begin(logger: Logger) -> None:
    """Begin a W&B run; other loggers begin by themselves.

    Raises:
        InputError: with what W&B says when it cannot.
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
def summarize(logger: Logger, metrics: Mapping[str, float]) -> None:
    """Have W&B list these as the run's result, those of its best checkpoint, instead of what was logged last."""
    if isinstance(logger, WandbLogger) and metrics:
        logger.experiment.summary.update(dict(metrics))


def described(model: BEVModel, image_size: tuple[int, int]) -> dict[str, Any]:
    """Name, parameters and millions of operations of a model's parts, the latter of a forward pass of one sample."""
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
    """``CrossAttention`` as ``cross_attention``, ``ColumnMLP`` as ``column_mlp``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _logged_in() -> bool:
    """Whether a key lies where W&B looks for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc().authenticators(str(host)) is not None
    except (FileNotFoundError, NetrcParseError):
        return False
