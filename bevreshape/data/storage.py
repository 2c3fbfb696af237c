"""Records in shard files: generated once, on all cores, and read one at a time.

A shard is its records one after another, then their offsets, then a trailer whose last bytes are the magic word; it is
written beside its place and moved there in one step, so that a file of that name is whole or, if something else
damaged it, recognised by its trailer. A record carries its own checksum. Generation goes on shard by shard, wherever
an earlier one stopped.
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

import numpy as np
import torch

from bevreshape.errors import InputError
from bevreshape.reporting.progress import Progress
from bevreshape.training.stopping import outlive_stops

SHARD = 64
"""Records in a full shard."""
MAGIC = b"BEVSHRD1"
TRAILER = struct.Struct("<QQ8s")  # offset of the index in bytes, number of records, MAGIC
CHECKSUM = struct.Struct("<I")
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How workers start; forked ones, as torch's loaders have them on Linux, need not import everything anew."""

MakeShard = Callable[[int, int], list[bytes]]
"""Makes the records from a first to before a last one; crosses into other processes, so it must pickle."""


def shard_path(folder: Path, index: int) -> Path:
    """The file that holds record ``index``."""
    return folder / f"{index // SHARD:06d}.shard"


def pack(records: list[bytes]) -> bytes:
    """The bytes of a shard."""
    parts = [CHECKSUM.pack(zlib.crc32(record)) + record for record in records]
    offsets = np.cumsum([0, *map(len, parts)], dtype="<u8")
    return b"".join([*parts, offsets.tobytes(), TRAILER.pack(int(offsets[-1]), len(records), MAGIC)])


def count_records(path: Path) -> int:
    """How many records a shard holds; 0 when it is missing, cut off or no shard."""
    try:
        with path.open("rb") as file:
            return _trailer(file.fileno())[1]
    except OSError:
        return 0


def _trailer(file: int) -> tuple[int, int]:
    """(offset of the index, number of records); (0, 0) when the file is not a whole shard."""
    size = os.fstat(file).st_size
    if size < TRAILER.size:
        return 0, 0
    index, count, magic = TRAILER.unpack(os.pread(file, TRAILER.size, size - TRAILER.size))
    whole = magic == MAGIC and index + 8 * (count + 1) + TRAILER.size == size
    return (index, count) if whole else (0, 0)


def read_record(folder: Path, index: int, remedy: str) -> bytes:
    """Record ``index`` of a folder of shards.

    Args:
        folder: of the shards.
        index: of the record.
        remedy: what makes a lost one again.

    Raises:
        InputError: when its shard is missing or damaged.
    """
    path, number = shard_path(folder, index), index % SHARD
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file, which would hold record {index}; {remedy}") from None
    try:
        start_of_index, count = _trailer(file)
        if number >= count:
            raise InputError(
                f"{path}: the shard holds {count} whole records but record {number} is wanted; it was cut off or is of "
                f"fewer records; {remedy}"
            )
        start, stop = struct.unpack("<QQ", os.pread(file, 16, start_of_index + 8 * number))
        stored = os.pread(file, stop - start, start)
    finally:
        os.close(file)
    record = stored[CHECKSUM.size :]
    if CHECKSUM.unpack(stored[: CHECKSUM.size])[0] != zlib.crc32(record):
        raise InputError(f"{path}: record {number} is damaged (its checksum differs); delete the file, {remedy}")
    return record


def prepare(
    folder: Path, meta: Mapping[str, object], count: int, make: MakeShard, workers: int, key: str = "data.root"
) -> None:
    """Have ``count`` records in ``folder``, generating the shards that are missing, cut off or too short.

    Args:
        folder: made if need be.
        meta: what the content depends on, written beside it for people as ``meta.json``.
        count: records wanted.
        make: makes a run of records.
        workers: processes to make them in; 1 means this one.
        key: the setting that says where they are kept.

    Raises:
        InputError: when the folder cannot be written, or the disk is full.
    """
    if not _missing(folder, count):
        return
    with explained(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            missing = _missing(folder, count)  # another process may have made them while this one waited
            for left_behind in folder.glob("*.part"):
                left_behind.unlink()
            if missing:
                _write(folder / "meta.json", json.dumps(meta, indent=2).encode())
                _generate(folder, missing, count, make, workers, key)


def _missing(folder: Path, count: int) -> list[int]:
    """First records of the shards that are to be made."""
    return [
        first
        for first in range(0, count, SHARD)
        if count_records(shard_path(folder, first)) < min(SHARD, count - first)
    ]


def _generate(folder: Path, missing: list[int], count: int, make: MakeShard, workers: int, key: str) -> None:
    sizes = {first: min(SHARD, count - first) for first in missing}
    left = sum(sizes.values())
    with Progress(f"generating {folder.name}", left) as progress:
        for first, records in _made(sizes, make, workers):
            shard = pack(records)
            try:
                _write(shard_path(folder, first), shard)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                needed = len(shard) / sizes[first] * left / 1e6
                raise InputError(
                    f"{folder}: the disk is full, about {needed:.0f} MB more are needed for the {left} records that are left; "
                    f"free some space or set {key} to another disk (what is there already is kept)"
                ) from error
            left -= sizes[first]
            progress.advance(sizes[first])


def _made(sizes: dict[int, int], make: MakeShard, workers: int) -> Iterator[tuple[int, list[bytes]]]:
    """(first record, records) of every shard, in the order in which they get ready.

    Torch works on one thread here: processes share the cores, and a loop's split over threads may show in the last bit.
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
    """Set up a worker: on one thread, and to end with its parent, whose work it would wait for for ever, and not before."""
    outlive_stops()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder; the lock goes with the process that holds it."""
    import fcntl  # not on Windows, where only reading a cache works

    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: waiting for the process that is writing it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def explained(folder: Path, key: str) -> Iterator[None]:
    """Say what is wrong with a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); set {key} to a folder that can") from error
