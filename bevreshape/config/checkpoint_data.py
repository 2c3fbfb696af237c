"""``data=from_checkpoint``: the groups data, loader and metric of a checkpoint as choices."""

import re
from typing import Any

from hydra.core.config_store import ConfigStore

from bevreshape.config.allowed import check_cache, check_targets, typed_addresses
from bevreshape.config.command_line import asks_for_help, typed_trust, typed_value
from bevreshape.config.groups import FROM_CHECKPOINT
from bevreshape.config.options import LocalPath, read_value
from bevreshape.errors import InputError

IOU = {"iou": {"_target_": "bevreshape.metrics.BEVIoU"}}


def offer_checkpoint_data(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Register data, loader and metrics of the checkpoint's run as the default choices ``from_checkpoint``.

    They hold nothing that Hydra would interpret, see :func:`~bevreshape.storage.checkpoint.read_checkpoint`.

    Raises:
        InputError: when there is no checkpoint, its data names a class or a cache that is not allowed, or the arguments
            set another grid or image size.
    """
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~")
        if key == "data.image_size" or key.startswith("data.grid"):
            raise InputError(
                f"{argument}: the data uses the grid and the image size of the checkpoint; leave it out, or "
                "train a model with this value"
            )
    path = typed_value(arguments, "checkpoint")
    offered: dict[str, Any] = {group: {} for group in FROM_CHECKPOINT}
    if path is not None:
        offered, where = stored_groups(read_value("checkpoint", LocalPath, path))
        if _names_other_data(typed_value(arguments, "data")):
            offered["metric"] = IOU  # other metrics may need fields that this data does not have
        else:
            for group in FROM_CHECKPOINT:
                check_targets(offered[group], group, where, typed_trust(arguments))
            check_cache(offered["data"], where, typed_addresses(arguments))
    elif not asks_for_help(arguments):
        raise InputError(
            "checkpoint=FILE must be given, for instance checkpoint=runs/<date>/<time>/checkpoints/best.ckpt"
        )
    for group, node in offered.items():
        ConfigStore.instance().store(group=group, name="from_checkpoint", node=node)
    return name, arguments


def _names_other_data(typed: str | None) -> bool:
    """Return whether ``data=…`` chooses another group by a plain name, and so not the checkpoint's."""
    return bool(typed) and typed != "from_checkpoint" and re.fullmatch(r"[\w-]+([/.][\w-]+)*", str(typed)) is not None


def stored_groups(path: str) -> tuple[dict[str, Any], str]:
    """Return the groups of a checkpoint's run for evaluation, and the name of the file for messages."""
    from bevreshape.storage.checkpoint import read_checkpoint

    where = f"checkpoint {path}"
    config = read_checkpoint(path)["bevreshape"].get("config")
    found = {group: config.get(group) if isinstance(config, dict) else None for group in FROM_CHECKPOINT}
    for group, node in found.items():
        if not isinstance(node, dict) or "defaults" in node:  # Hydra would compose another config from defaults
            raise InputError(
                f"{where}: bevreshape.config.{group} must be a mapping of options, not {node!r:.80}; it is damaged"
            )
    return found, where
