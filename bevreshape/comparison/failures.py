"""Errors of one view transformer, which do not end the comparison."""

import gc
import logging
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from bevreshape.errors import (
    REMEDIES,
    DataError,
    InputError,
    RunError,
    causes,
    out_of_memory,
    system_error,
    user_message,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

KILLED = re.compile(r"DataLoader worker \(pid")
"""Begin of torch's message when a process of the loader was killed."""

RETRY_S = 30.0
"""Seconds before a second attempt when memory was short: another process may have held it."""


def attempt(
    do: Callable[[], T], log_file: Path | None = None, *, machine: bool = True, retry: bool = True
) -> tuple[T | None, str | None]:
    """Return the result of a function, or why the view transformer failed.

    Memory of the device is freed after a failure. If it was short, there is a second attempt. The traceback of an
    internal error is appended to ``log_file``.

    Args:
        do: builds, trains or measures a model.
        log_file: of the training.
        machine: raise all errors of the operating system; otherwise only those of the disk. A compiler that is missing
            is such an error too, but a reason.
        retry: attempt it again if memory was short.

    Raises:
        RunError: of the logger, a lock or the run's folder.
        DataError: when the data cannot be prepared or read.
        Exception: of the machine, which says nothing about the view transformer.
        InputError: when a process of the loader was killed.
    """
    try:
        return do(), None
    except Exception as error:
        short = retry and _memory_was_short(error)
        if not short:
            reason = _own_reason(error, log_file, machine)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not short:
        return None, reason
    time.sleep(RETRY_S)
    return attempt(do, log_file, machine=machine, retry=False)


def _own_reason(error: Exception, log_file: Path | None, machine: bool) -> str:
    """Return the reason of an error of the view transformer; raise any other."""
    system = system_error(error)
    if any(isinstance(link, RunError | DataError) for link in causes(error)):
        raise error
    if system is not None and (system.errno in REMEDIES or (machine and _is_system_error(error))):
        raise error
    if KILLED.search(str(error)):
        raise InputError(
            f"{' '.join(str(error).split())[:120]}; the same command resumes, lower loader.num_workers if it "
            "happens again"
        ) from error
    if user_message(error) is None and log_file is not None:
        with log_file.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
    return reason_of(error)


def _is_system_error(error: BaseException) -> bool:
    """Return whether an error, or a cause of it, is of the operating system; a message for the user is none."""
    chain = causes(error)
    return any(isinstance(link, OSError) for link in chain) and not any(isinstance(link, InputError) for link in chain)


def _memory_was_short(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(map(out_of_memory, causes(error)))


def reason_of(error: BaseException) -> str:
    """Return the reason of a failure in one line."""
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "out of memory"
    return user_message(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
