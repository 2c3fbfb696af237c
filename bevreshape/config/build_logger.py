"""Building the logger of a run from the group ``logger``."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from bevreshape.config.groups import build_part
from bevreshape.errors import InputError, RunError
from bevreshape.ops.internals import drop_wandb_setting
from bevreshape.storage.files import read_text, write_text
from bevreshape.training.loggers import begin, check_library_options, is_wandb, wandb_options
from bevreshape.training.mlflow_run import begin_mlflow, check_mlflow_installed, is_mlflow
from bevreshape.training.processes import rank


def make_logger(cfg: Mapping[str, Any], folder: Path) -> Logger | bool:
    """Build and start the logger of a run; ``False`` if W&B is disabled.

    MLflow's is built by the first process alone, since each would open the database.

    Raises:
        RunError: when it cannot start, or as :func:`logger_options`.
    """
    node = logger_options(cfg)
    if not node:
        return False
    if is_wandb(node):
        node |= wandb_identity(folder, node["mode"] == "offline", node) if rank() == 0 else {}
        os.environ.setdefault("WANDB_SILENT", "true")
    try:
        if is_mlflow(node):
            return begin_mlflow(node, folder) if rank() == 0 else False
        logger: Logger = build_part("logger", node, save_dir=folder)
        drop_wandb_setting(logger, "anonymous")
        begin(logger)
        return logger
    except InputError as error:
        raise RunError(str(error)) from error
    except ModuleNotFoundError as error:
        raise RunError(
            f"logger: {error.name} is not installed; pip install {error.name}, or choose logger=csv"
        ) from error


def logger_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked ``logger`` group; empty if nothing is logged.

    Raises:
        InputError: when an option is wrong, or the logger's package is not installed.
    """
    node = dict(cfg["logger"] or {})
    check_library_options(node)
    if is_mlflow(node):
        check_mlflow_installed()
    return (wandb_options(node) or {}) if is_wandb(node) else node


def wandb_identity(folder: Path, offline: bool, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the W&B id of a run's folder, and after a resume also its name and its link to the part before.

    Online, a resumed run continues the same W&B run. Offline, a part begins at step 0 again: with the same id ``wandb
    sync`` would overwrite the earlier part. So each offline part is a W&B run of its own, which names the one before.
    Its curves over ``trainer/global_step`` continue those of the earlier part.

    Args:
        folder: of the run; its file ``wandb_id`` holds the id of the latest part.
        offline: whether this part is offline.
        node: the logger's own ``name`` and ``notes``.
    """
    path = folder / "wandb_id"
    before = read_text(path) if path.exists() else None
    if before is not None and not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", before):
        raise InputError(f"{path} holds {before!r:.80}, which is no id of a W&B run; remove it to begin another")
    if before is not None and not offline and not any(folder.glob(f"wandb/offline-run-*-{before}")):
        return {"id": before, "resume": "allow"}
    own = secrets.token_hex(4)
    if os.environ.get("WANDB_SWEEP_ID"):  # the agent of a W&B sweep has begun the run
        own = os.environ.get("WANDB_RUN_ID") or own
    write_text(path, own)
    if before is None:
        return {"id": own, "resume": "allow"}
    parts = len(list(folder.glob("wandb/*run-*-*"))) + 1
    notes = " ".join(filter(None, (node.get("notes"), f"Resumes the run {before}.")))
    return {"id": own, "resume": "allow", "name": f"{node['name']}, part {parts}", "notes": notes}
