"""From the group ``logger`` to the logger of a run."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from bevreshape.config.groups import build_part
from bevreshape.errors import InputError
from bevreshape.ops.internals import drop_wandb_setting
from bevreshape.storage.files import read_text, write_text
from bevreshape.training.loggers import begin, check_library_options, is_wandb, wandb_options
from bevreshape.training.processes import rank


def make_logger(cfg: Mapping[str, Any], folder: Path) -> Logger | bool:
    """The logger of a run, which is begun; none where W&B is disabled.

    Raises:
        InputError: when it cannot be begun, or see :func:`~bevreshape.training.loggers.wandb_options`.
    """
    node = logger_options(cfg)
    if not node:
        return False
    if is_wandb(node):
        node |= wandb_identity(folder, node["mode"] == "offline", node) if rank() == 0 else {}
        os.environ.setdefault("WANDB_SILENT", "true")
    try:
        logger: Logger = build_part("logger", node, save_dir=folder)
        drop_wandb_setting(logger, "anonymous")
        begin(logger)
        return logger
    except ModuleNotFoundError as error:
        raise InputError(
            f"logger: {error.name} is not installed; pip install {error.name}, or choose logger=csv"
        ) from error


def logger_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ``logger`` group, checked before anything runs; empty where nothing is logged."""
    node = dict(cfg["logger"] or {})
    check_library_options(node)
    return (wandb_options(node) or {}) if is_wandb(node) else node


def wandb_identity(folder: Path, offline: bool, node: Mapping[str, Any]) -> dict[str, Any]:
    """Under which id a run's folder is known to W&B, and where it resumes, how it is linked to what was before.

    Online a run that resumes is the same W&B run, which goes on behind what the server has. A part that is written
    offline cannot know that: it begins at step 0 again, and of two parts of one id the later would be written over the
    other by ``wandb sync``. So it is a run of its own, which names the one before; its curves, over
    ``trainer/global_step``, continue where the other's end.

    Args:
        folder: of the run; the id of its latest part is kept in its ``wandb_id``.
        offline: whether this part is.
        node: the logger's own ``name`` and ``notes``.
    """
    path = folder / "wandb_id"
    before = read_text(path) if path.exists() else None
    if before is not None and not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", before):
        raise InputError(f"{path} holds {before!r:.80}, which is no id of a W&B run; remove it to begin another")
    if before is not None and not offline and not any(folder.glob(f"wandb/offline-run-*-{before}")):
        return {"id": before, "resume": "allow"}
    own = secrets.token_hex(4)
    write_text(path, own)
    if before is None:
        return {"id": own, "resume": "allow"}
    parts = len(list(folder.glob("wandb/*run-*-*"))) + 1
    notes = " ".join(filter(None, (node.get("notes"), f"Resumes the run {before}.")))
    return {"id": own, "resume": "allow", "name": f"{node['name']}, part {parts}", "notes": notes}
