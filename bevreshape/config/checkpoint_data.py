"""``data=from_checkpoint``: the data config inside a checkpoint as a choice, its loader and metrics too."""

import re
from typing import Any

from hydra.core.config_store import ConfigStore

from bevreshape.config.allowed import check_cache, check_targets
from bevreshape.config.command_line import asks_for_help, typed_trust, typed_value
from bevreshape.config.options import LocalPath, read_value
from bevreshape.errors import InputError

FROM_CHECKPOINT = ("data", "loader", "metric")
"""Groups that a checkpoint's run brings, unless others are chosen."""

IOU = {"iou": {"_target_": "bevreshape.metrics.BEVIoU"}}


def offer_checkpoint_data(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Offer data, loader and metrics of the checkpoint's run as ``data=from_checkpoint`` and so on, the defaults.

    What is offered holds nothing that Hydra would interpret, see
    :func:`~bevreshape.storage.checkpoint.read_checkpoint`.

    Raises:
        InputError: when there is no checkpoint, or its data names classes that are not allowed, or a place to write to,
            or for cells or an image size other than the checkpoint's.
    """
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        if key == "data.image_size" or key.startswith("data.grid"):
            raise InputError(
                f"{argument}: data is brought to the cells and the image size of the checkpoint; leave it out, or "
                "train a model for others"
            )
    path = typed_value(arguments, "checkpoint")
    offered: dict[str, Any] = {group: {} for group in FROM_CHECKPOINT}
    if path is not None:
        offered, where = stored_groups(read_value("checkpoint", LocalPath, path))
        if _names_other_data(typed_value(arguments, "data")):
            offered["metric"] = IOU  # others may need what that data does not have
        else:
            for group in FROM_CHECKPOINT:
                check_targets(offered[group], group, where, typed_trust(arguments))
            if typed_value(arguments, "data.root") is None:
                check_cache(offered["data"], where)
    elif not asks_for_help(arguments):
        raise InputError(
            "checkpoint=FILE must be given, for instance checkpoint=runs/<date>/<time>/checkpoints/best.ckpt"
        )
    for group, node in offered.items():
        ConfigStore.instance().store(group=group, name="from_checkpoint", node=node)
    return name, arguments


def _names_other_data(typed: str | None) -> bool:
    """Whether ``data=…`` chooses a group by its plain name; of all else Hydra may still make the checkpoint's."""
    return bool(typed) and typed != "from_checkpoint" and re.fullmatch(r"[\w-]+([/.][\w-]+)*", str(typed)) is not None


def stored_groups(path: str) -> tuple[dict[str, Any], str]:
    """The groups of a checkpoint's run that say what is tested, and what to call the file in a message."""
    from bevreshape.storage.checkpoint import read_checkpoint

    where = f"checkpoint {path}"
    config = read_checkpoint(path)["bevreshape"].get("config")
    found = {group: config.get(group) if isinstance(config, dict) else None for group in FROM_CHECKPOINT}
    for group, node in found.items():
        if not isinstance(node, dict) or "defaults" in node:  # of which Hydra would compose another config
            raise InputError(
                f"{where}: bevreshape.config.{group} must be a mapping of options, not {node!r:.80}; it is damaged"
            )
    return found, where
