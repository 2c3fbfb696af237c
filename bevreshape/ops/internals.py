"""Private and internal functions of libraries other than kernels, each with a plain fallback of the same result."""

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bevreshape.ops.probe import probed


@probed
def _watchers() -> list[Callable[[], bool]]:
    """Return functions that tell whether operations are counted, transformed or differentiated forward."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    questions = [
        lambda: _get_current_dispatch_mode() is not None,
        torch._C._are_functorch_transforms_active,
        lambda: forward_ad._current_level >= 0,
    ]
    if any(question() for question in questions):  # nothing is active in a fresh thread
        raise ValueError("a private function of torch has changed its meaning")
    return questions


def operations_are_watched() -> bool:
    """Return whether a counter, a transform of ``torch.func`` or forward differentiation must see ordinary operations.

    If this version of torch does not tell, the answer is yes, and callers use ordinary operations.
    """
    questions = _watchers()
    return questions is None or any(question() for question in questions)


@probed
def _foreach_lerp() -> Callable[[list[Tensor], list[Tensor], float], None]:
    """Return torch's interpolation of many tensors in one call."""
    found = [torch.zeros(2)]
    torch._foreach_lerp_(found, [torch.ones(2)], 0.25)
    if found[0].tolist() != [0.25, 0.25]:
        raise ValueError("torch._foreach_lerp_ has changed its meaning")
    return torch._foreach_lerp_


def lerp_all_(values: list[Tensor], targets: list[Tensor], share: float) -> None:
    """Move every tensor towards its target, in place: ``value += share · (target − value)``."""
    many = _foreach_lerp()
    if many is not None:
        many(values, targets, share)
        return
    for value, target in zip(values, targets, strict=True):
        value.lerp_(target, share)


def archive_offsets(file: IO[bytes]) -> dict[str, int] | None:
    """Return the offsets, in bytes, at which torch's reader finds the entries of a checkpoint's archive.

    Return ``None`` if this version of torch does not tell.

    Raises:
        RuntimeError: if torch cannot read the archive.
    """
    reader_class: Any = getattr(torch._C, "PyTorchFileReader", None)
    if not all(hasattr(reader_class, name) for name in ("get_all_records", "get_record_offset")):
        return None
    reader = reader_class(file)
    return {name: reader.get_record_offset(name) for name in reader.get_all_records()}


def drop_wandb_setting(logger: Any, name: str) -> None:
    """Remove a setting from Lightning's W&B logger. W&B has deprecated it and would warn."""
    settings = getattr(logger, "_wandb_init", None)
    if isinstance(settings, dict):
        settings.pop(name, None)


def move_mlflow_artifacts(database: Path, location: str) -> None:
    """Set the location of all artifacts in an MLflow database to a folder, which may have been moved with it.

    MLflow stores absolute paths and has no call to change them. If this version stores them otherwise, nothing changes.

    Args:
        database: file of SQLite; may be missing.
        location: URI of the folder; a run's artifacts are in ``<location>/<run id>/artifacts``.
    """
    if not database.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", (location,))
        connection.execute("UPDATE runs SET artifact_uri = ? || '/' || run_uuid || '/artifacts'", (location,))
