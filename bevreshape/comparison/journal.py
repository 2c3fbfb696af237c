"""Optuna's journal of a comparison: a line of JSON per change, of any number of processes.

A process that is killed while it writes, or a full disk, leaves a line without an end. It is cut before the next one is
written, under the lock of all writers. Optuna would append to it, and read neither from then on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from bevreshape.errors import InputError

JOURNAL = "optuna.log"
"""File of the trials in a comparison's folder; ``optuna-dashboard`` reads it."""

STALE_S = 15
"""Seconds after which the journal's lock of a killed process is broken."""

BLOCK = 1 << 16
"""Bytes that are read at once in search of the last end of a line."""


class _Lock(JournalFileOpenLock):
    """Optuna's lock of the writers, which cuts a torn line as soon as it is held."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=STALE_S)
        self.path = path

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            cut_torn_line(self.path)
        except BaseException:
            self.release()
            raise
        return held


class Journal(JournalStorage):
    """The storage, which knows its file."""

    def __init__(self, path: Path, lock: JournalFileOpenLock) -> None:
        super().__init__(JournalFileBackend(str(path), lock_obj=lock))
        self.path = path


def open_journal(folder: Path) -> Journal:
    """Open the storage of a comparison.

    Its lock is a file that is created exclusively, which is atomic on local disks and on NFS from version 3 on.

    Raises:
        InputError: when the file is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    lock = _Lock(path)
    if path.exists():
        lock.acquire()
        lock.release()
    with readable(path):
        return Journal(path, lock)


def cut_torn_line(path: Path) -> None:
    """Cut what follows the last end of a line; the caller holds the lock of all writers."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = size = file.seek(0, 2)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            end = start if found < 0 else start + found + 1
            if found >= 0:
                break
        if end < size:
            file.truncate(end)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error of Optuna at a damaged journal into one that names the file.

    Raises:
        InputError: when a line is no JSON, or not one of Optuna's.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:80]}); restore a copy, delete "
            "it to tune again what is not recorded, or begin another comparison with name="
        ) from error
