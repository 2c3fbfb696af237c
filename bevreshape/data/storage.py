"""Store one record per file: generated once, on all cores, and read one at a time.

A file is a header, with checksum and length, and the record. It is written next to its path and moved there in one
step, so a file of that name is complete; later damage is detected by its header. Generation resumes at the first record
that is missing. The files are in sub-folders of 1,000, since folders of many more are slow to list on network file
systems.

Reading 40 kB takes 34 to 54 µs of a processor's time, where a sample of the synthetic world takes 700 µs. From files of
64 records it takes 0.5 to 0.7 of that, from SQLite 1.1 to 1.2 (``tools/time_records.py``), so the simplest way was
chosen.
"""

import errno
import json
import os
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch

from bevreshape.errors import InputError
from bevreshape.reporting.progress import Progress
from bevreshape.storage.files import remove_abandoned, write_whole
from bevreshape.storage.lock import locked
from bevreshape.storage.store_path import DataPath
from bevreshape.training.stopping import ignore_stop_signals

RUN = 64
"""Records that a worker makes at a time."""
PER_FOLDER = 1000
"""Records in a sub-folder; object stores list as many names per request."""
HEADER = struct.Struct("<II")  # checksum and bytes of the record
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Start method of workers; forked ones, as in torch's loaders on Linux, need not import everything again."""

MakeRecords = Callable[[int, int], list[bytes]]
"""Makes the records from a first to before a last one; it is sent to other processes, so it must pickle."""


def record_name(index: int) -> str:
    """Return the file of record ``index`` in its folder, such as ``012/012345.record``."""
    return f"{index // PER_FOLDER:03d}/{index:06d}.record"


def pack_record(record: bytes) -> bytes:
    """Return the content of a record's file."""
    return HEADER.pack(zlib.crc32(record), len(record)) + record


def is_whole(path: Path) -> bool:
    """Return whether a record's file exists with the length in its header; its content is not compared."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            return len(header) == HEADER.size and os.fstat(file.fileno()).st_size == sum(_sizes(header))
    except OSError:
        return False


def _sizes(header: bytes) -> tuple[int, int]:
    return HEADER.size, HEADER.unpack(header)[1]


def read_record(folder: DataPath, index: int, remedy: str) -> bytes:
    """Return record ``index`` of a folder.

    Args:
        folder: of the records.
        index: of the record.
        remedy: how a lost record is made again.

    Raises:
        InputError: when its file is missing or damaged.
    """
    path = folder / record_name(index)
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file of record {index}; {remedy}") from None
    header, record = stored[: HEADER.size], stored[HEADER.size :]
    if len(header) < HEADER.size or len(stored) != sum(_sizes(header)):
        raise InputError(f"{path}: the file has {len(stored)} bytes and no complete record; it was cut off; {remedy}")
    if HEADER.unpack(header)[0] != zlib.crc32(record):
        raise InputError(f"{path}: the record is damaged (its checksum differs); delete the file, {remedy}")
    return record


def prepare(
    folder: Path, meta: Mapping[str, object], count: int, make: MakeRecords, workers: int, key: str = "data.root"
) -> None:
    """Generate the records of ``folder``, ``count`` in all, that are missing or cut off.

    Args:
        folder: created if absent.
        meta: parameters of the content, written for readers as ``meta.json``.
        count: records wanted.
        make: makes a run of records.
        workers: processes to make them in; 1 means this one.
        key: the setting that names the folder.

    Raises:
        InputError: when the folder cannot be written, it holds records of an older version, or the disk is full.
    """
    if (old := folder / Path(record_name(0)).name).exists():
        raise InputError(
            f"{old}: an older version stored records here, all in one folder, and they are now in sub-folders; delete "
            f"{folder}, and they are generated again"
        )
    if not _missing(folder, count):
        return
    with explain_unwritable(folder, key), exclusive(folder):
        missing = _missing(folder, count)  # another process may have made them meanwhile
        remove_abandoned(folder, *filter(Path.is_dir, folder.iterdir()))
        if missing:
            _write(folder / "meta.json", json.dumps(meta, indent=2).encode())
            _generate(folder, missing, make, workers, key)


def _missing(folder: Path, count: int) -> dict[int, int]:
    """Return the runs of records to be made: their lengths by their first index."""
    runs: dict[int, int] = {}
    first = -1
    for index in range(count):
        if is_whole(folder / record_name(index)):
            continue
        if first < 0 or index != first + runs[first] or runs[first] == RUN:
            first = index
        runs[first] = runs.get(first, 0) + 1
    return runs


def _generate(folder: Path, runs: dict[int, int], make: MakeRecords, workers: int, key: str) -> None:
    left = sum(runs.values())
    with Progress(f"generating {folder.name}", left) as progress:
        for first, records in _made(runs, make, workers):
            for index, record in enumerate(records, first):
                path = folder / record_name(index)
                try:
                    path.parent.mkdir(exist_ok=True)
                    _write(path, pack_record(record))
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    needed = sum(map(len, records)) / len(records) * left / 1e6
                    raise InputError(
                        f"{folder}: the disk is full, about {needed:.0f} MB more are needed for the {left} records "
                        f"that are left; free some space or set {key} to another disk (what is there already is kept)"
                    ) from error
                left -= 1
                progress.advance(1)


def _write(path: Path, content: bytes) -> None:
    """Write a file without waiting for the disk; after a power failure its header shows whether it is complete."""
    write_whole(path, lambda file: file.write(content), durable=False)


def _made(sizes: dict[int, int], make: MakeRecords, workers: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (first record, records) of every run of them, in the order in which they get ready.

    Torch uses one thread here: processes share the cores, and the number of threads may change the last bit.
    """
    if min(workers, len(sizes)) == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for first, size in sizes.items():
                yield first, make(first, first + size)
        finally:
            torch.set_num_threads(threads)
        return
    pool = ProcessPoolExecutor(min(workers, len(sizes)), get_context(START_METHOD), _join)
    try:
        waiting: dict[Future[list[bytes]], int] = {
            pool.submit(make, first, first + size): first for first, size in sizes.items()
        }
        for future in as_completed(list(waiting)):
            yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _join() -> None:
    """Set up a worker: it uses one thread, and it ends with its parent."""
    ignore_stop_signals()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder; the lock ends with the process that holds it."""
    with locked(folder / "lock", waiting=f"{folder}: waiting for the process that is writing it"):
        yield


@contextmanager
def explain_unwritable(folder: Path, key: str) -> Iterator[None]:
    """Raise an error with a remedy for a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); set {key} to a writable folder") from error
