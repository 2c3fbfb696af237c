"""How fast pictures are read for the network, and what decoding them at reduced size changes.

python tools/time_reading.py data/nuscenes/samples/CAM_*/*1533151603*.jpg --size 224 480
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from bevreshape.data.pictures import fit_picture, read_picture
from bevreshape.errors import InputError


def time_reading(paths: list[Path], size: tuple[int, int], rounds: int) -> None:
    """Print milliseconds of all pictures together, each way in turn, on one thread, and mean differences in grey levels."""
    torch.set_num_threads(1)

    def by_pillow(path: Path) -> np.ndarray:
        picture = Image.open(path).convert("RGB")
        scale = max(size[0] / picture.height, size[1] / picture.width)
        wide, high = round(picture.width * scale), round(picture.height * scale)
        left, top = (wide - size[1]) // 2, high - size[0]
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
        return np.asarray(picture.crop((left, top, left + size[1], top + size[0]))).transpose(2, 0, 1)

    def whole(path: Path) -> np.ndarray:
        return fit_picture(read_picture(path), torch.eye(3), size)[0].numpy()

    def reduced(path: Path) -> np.ndarray:
        return fit_picture(read_picture(path, size), torch.eye(3), size)[0].numpy()

    ways: dict[str, Callable[[Path], np.ndarray]] = {
        "Pillow, decode and resize": by_pillow, "read_picture, whole": whole, "read_picture, reduced": reduced,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, read in ways.items():
            start = time.perf_counter()
            found = [read(path) for path in paths]
            times[name].append(time.perf_counter() - start)
            if name == "Pillow, decode and resize":
                pillow = found
    for name, read in ways.items():
        away = np.mean([np.abs(read(path).astype(float) - p).mean() for path, p in zip(paths, pillow, strict=True)])
        print(
            f"{name:26} {median(times[name][1:]) * 1e3:7.1f} ms for {len(paths)} pictures, {away:.2f} grey levels from Pillow's"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(224, 480), help="height and width for the network")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    try:
        time_reading(given.pictures, tuple(given.size), given.rounds)
    except InputError as error:
        sys.exit(str(error))
