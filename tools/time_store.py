"""Measure samples per second from a local disk, from an object store, and from the cache of that store.

Scenes of the synthetic world are generated and copied to an address, where they stay. With a server on this machine:

python -m moto.server -p 5000 &
export AWS_ENDPOINT_URL=http://127.0.0.1:5000 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x
python tools/time_store.py s3://bucket/x
"""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import Dataset

from bevreshape.config.arguments import Parser, integer
from bevreshape.config.options import DataRoot, read_value
from bevreshape.console import run_script
from bevreshape.data.batch import Sample
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.reporting.progress import track
from bevreshape.storage.object_store import VARIABLE


def source(root: str, scenes: int) -> SyntheticSource:
    """Return the world of the main job with this number of training scenes."""
    return SyntheticSource(scenes={"train": scenes, "val": 1, "test": 1}, root=root)


@cache
def scenes_of(root: str, scenes: int) -> Dataset[Sample]:
    """Return the training scenes, once a process."""
    torch.set_num_threads(1)
    return source(root, scenes).split("train")


def read(root: str, scenes: int, numbers: Sequence[int]) -> None:
    """Read some scenes."""
    dataset = scenes_of(root, scenes)
    for number in numbers:
        dataset[number]


def copy(folder: Path, address: str) -> None:
    """Copy a folder to an address; create its bucket if needed."""
    import fsspec

    filesystem: Any = fsspec.filesystem(address.partition("://")[0])
    filesystem.makedirs(address.rpartition("/")[0], exist_ok=True)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in track(paths, "copying"):
        filesystem.pipe_file(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def time_store(address: str, scenes: int, rounds: int, processes: int) -> None:
    """Print the rates of all three."""
    with tempfile.TemporaryDirectory() as place:
        local, cached = Path(place) / "world", Path(place) / "cache"
        os.environ[VARIABLE] = str(cached)  # for the processes too
        source(str(local), scenes).prepare(("train",))
        copy(local, address)
        seconds: dict[str, list[float]] = {"local disk": [], "store": [], "cache": []}
        shares = [range(number, scenes, processes) for number in range(processes)]
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            for _ in track(range(rounds + 1), "rounds"):  # the first one starts the processes and connects them
                for path in cached.rglob("*"):
                    if path.is_file():
                        path.unlink()
                for what, root in zip(seconds, (str(local), address, address), strict=True):
                    start = time.perf_counter()
                    list(pool.map(partial(read, root, scenes), shares))
                    seconds[what].append(time.perf_counter() - start)
    print(f"{scenes} scenes, {processes} processes, medians of {rounds} rounds")
    for what, found in seconds.items():
        print(f"{what:10} {scenes / median(found[1:]):7.1f} samples/s")


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("address", help="where to copy the scenes, such as s3://bucket/x")
    parser.add_argument("--scenes", type=integer(1, 1_000_000), default=256, help="how many there are (256)")
    parser.add_argument("--rounds", type=integer(1, 10_000), default=3, help="of which the median counts (3)")
    parser.add_argument(
        "--processes", type=integer(1, 1024), default=os.cpu_count() or 1, help="that read at once; one a core"
    )
    given = parser.parse_args()
    time_store(read_value("address", DataRoot, given.address), given.scenes, given.rounds, given.processes)


if __name__ == "__main__":
    run_script(main)
