"""Errors of one view transformer, which do not end the comparison."""

import gc
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from bevreshape.errors import REMEDIES, out_of_memory, system_error, user_message

log = logging.getLogger(__name__)

T = TypeVar("T")

ELSEWHERE = ("logger: ", " is in use by ")
"""Parts of messages about a logger or a lock."""


def attempt(do: Callable[[], T], log_file: Path | None = None) -> tuple[T | None, str | None]:
    """Return the result of a function, or why the view transformer failed.

    Memory of the device is freed after a failure. The traceback of an internal error is appended to ``log_file``.

    Raises:
        Exception: of the disk, the logger or a lock, which says nothing about the view transformer.
    """
    try:
        return do(), None
    except Exception as error:
        system = system_error(error)
        if (system is not None and system.errno in REMEDIES) or any(map(str(error).__contains__, ELSEWHERE)):
            raise
        if user_message(error) is None and log_file is not None:
            with log_file.open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc())
        reason = reason_of(error)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason


def reason_of(error: BaseException) -> str:
    """Return the reason of a failure in one line."""
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "out of memory"
    return user_message(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
