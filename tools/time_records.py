"""Measure how fast records are read in random order: from a file each, from files of many, and from SQLite.

python tools/time_records.py --records 3000 --kilobytes 40
"""

import os
import random
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bevreshape.config.arguments import Parser, integer
from bevreshape.console import run_script
from bevreshape.data.storage import pack_record, read_record, record_name

PACK = 64

Reader = Callable[[int], bytes]
"""Reads a record by its index, and compares its checksum."""


def as_files(folder: Path, records: list[bytes]) -> Reader:
    """Store records as this package does."""
    for number, record in enumerate(records):
        path = folder / record_name(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pack_record(record))
    return lambda number: read_record(folder, number, "")


def as_packs(folder: Path, records: list[bytes]) -> Reader:
    """Store ``PACK`` records in a file; their offsets are known without reading."""
    places, start = [], 0
    for number, record in enumerate(records):
        start = 0 if number % PACK == 0 else start
        places.append((start, len(record), zlib.crc32(record)))
        start += len(record)
    for first in range(0, len(records), PACK):
        (folder / f"{first // PACK}").write_bytes(b"".join(records[first : first + PACK]))

    def read(number: int) -> bytes:
        start, size, checksum = places[number]
        file = os.open(folder / f"{number // PACK}", os.O_RDONLY)
        try:
            return _checked(checksum, os.pread(file, size, start))
        finally:
            os.close(file)

    return read


def as_sqlite(folder: Path, records: list[bytes]) -> Reader:
    """Store records in one table, by number; the connection stays open, as in a worker."""
    connection = sqlite3.connect(folder / "records.sqlite3")
    connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, checksum INTEGER, content BLOB)")
    rows = ((number, zlib.crc32(record), record) for number, record in enumerate(records))
    connection.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
    connection.commit()

    def read(index: int) -> bytes:
        found = connection.execute("SELECT checksum, content FROM records WHERE number = ?", (index,)).fetchone()
        return _checked(*found)

    return read


def _checked(checksum: int, record: bytes) -> bytes:
    if zlib.crc32(record) != checksum:
        raise ValueError("a record is damaged")
    return record


WAYS: dict[str, Callable[[Path, list[bytes]], Reader]] = {
    "a file each": as_files, "packs of 64": as_packs, "SQLite": as_sqlite,
}  # fmt: skip


def time_records(count: int, size: int, rounds: int) -> None:
    """Print processor time for each record, microseconds, and its ratio to this package's; the ways take turns."""
    lots = random.Random(0)
    records = [lots.randbytes(lots.randint(size // 2, size * 3 // 2)) for _ in range(count)]
    with tempfile.TemporaryDirectory() as root:
        readers = {}
        for number, (way, keep) in enumerate(WAYS.items()):
            folder = Path(root) / str(number)
            folder.mkdir()
            readers[way] = keep(folder, records)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        order = list(range(count))
        for _ in range(rounds + 1):  # the first one fills the system's cache
            lots.shuffle(order)
            for way, read in readers.items():
                start = time.process_time()
                for index in order:
                    read(index)
                seconds[way].append((time.process_time() - start) / count)
        if any(read(index) != record for read in readers.values() for index, record in enumerate(records)):
            raise ValueError("a way returned another record than was stored")
    print(f"{count} records of about {size / 1000:g} kB in random order, medians of {rounds} rounds")
    ours = median(seconds["a file each"][1:])
    for way, found in seconds.items():
        print(f"{way:12} {1e6 * median(found[1:]):7.1f} µs a record, {median(found[1:]) / ours:.2f} of a file each")


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--records", type=integer(1, 10**6), default=3000, help="how many there are (3000)")
    parser.add_argument("--kilobytes", type=integer(1, 10**4), default=40, help="of one, on average (40)")
    parser.add_argument("--rounds", type=integer(1, 10_000), default=5, help="of which the median counts (5)")
    given = parser.parse_args()
    time_records(given.records, 1000 * given.kilobytes, given.rounds)


if __name__ == "__main__":
    run_script(main)
