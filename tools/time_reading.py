"""Measure how fast images are read for the network, and the effect of decoding at reduced size.

python tools/time_reading.py data/nuscenes/samples/CAM_*/*1533151603*.jpg --size 224 480
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bevreshape.config.arguments import Parser, integer
from bevreshape.console import run_script
from bevreshape.data.image_io import read_image, read_image_size, resize_and_crop
from bevreshape.reporting.progress import track

Size = tuple[int, int]

SAMPLES = 8
"""Samples that every process reads in a round."""


def by_pillow(path: Path, size: Size) -> NDArray[np.uint8]:
    """Decode in full, resize, crop."""
    image = Image.open(path).convert("RGB")
    scale = max(size[0] / image.height, size[1] / image.width)
    wide, high = round(image.width * scale), round(image.height * scale)
    left, top = (wide - size[1]) // 2, high - size[0]
    image = image.resize((wide, high), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size[1], top + size[0]))).transpose(2, 0, 1)


def whole(path: Path, size: Size) -> NDArray[np.uint8]:
    """Read with this package at full size, as for images with distortion."""
    return resize_and_crop(read_image(path), torch.eye(3), size)[0].numpy()


def reduced(path: Path, size: Size) -> NDArray[np.uint8]:
    """Read with this package at reduced size."""
    return resize_and_crop(read_image(path, size), torch.eye(3), size)[0].numpy()


WAYS: dict[str, Callable[[Path, Size], NDArray[np.uint8]]] = {
    "Pillow, decode and resize": by_pillow, "read_image, whole": whole, "read_image, reduced": reduced,
}  # fmt: skip


def read_samples(way: str, paths: list[Path], size: Size, times: int) -> None:
    """Read all images ``times`` times."""
    torch.set_num_threads(1)
    for _ in range(times):
        for path in paths:
            WAYS[way](path, size)


def time_reading(paths: list[Path], size: Size, rounds: int, processes: int) -> None:
    """Print samples of all images per second, each way in turn, and mean differences in grey levels."""
    for path in paths:
        read_image_size(path)  # raises for a file that is not an image
    differences = {
        way: np.mean([np.abs(read(path, size).astype(float) - by_pillow(path, size)).mean() for path in paths])
        for way, read in WAYS.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for _ in track(range(rounds + 1), "rounds"):  # the first one starts the processes and warms up
            for way in WAYS:
                start = time.perf_counter()
                list(pool.map(partial(read_samples, way, paths, size), [SAMPLES] * processes))
                seconds[way].append(time.perf_counter() - start)
    print(f"a sample is {len(paths)} images; {processes} processes, medians of {rounds} rounds")
    for way, found in seconds.items():
        rate = SAMPLES * processes / median(found[1:])
        print(f"{way:26} {rate:6.1f} samples/s, {differences[way]:.2f} grey levels from Pillow's")


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("images", nargs="+", type=Path, help="JPEG or PNG files; together they are a sample")
    parser.add_argument(
        "--size", type=integer(1, 10_000), nargs=2, default=(224, 480), metavar=("HEIGHT", "WIDTH"),
        help="for the network (224 480)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=integer(1, 10_000), default=7, help="of which the median counts (7)")
    parser.add_argument(
        "--processes", type=integer(1, 1024), default=os.cpu_count() or 1, help="that read at once; one a core"
    )
    given = parser.parse_args()
    time_reading(given.images, tuple(given.size), given.rounds, given.processes)


if __name__ == "__main__":
    run_script(main)
