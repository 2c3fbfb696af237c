"""Measure how fast scenes are generated and read: ``python -m bevreshape.data.sources.synthetic --scenes 512``."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import os
import tempfile
import time
from pathlib import Path

import torch

from bevreshape.config.arguments import Parser, integer
from bevreshape.console import run_script
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.data.sources.synthetic.rig import RIGS


def main() -> None:
    """Generate a training split in a temporary folder, read it once, and print both rates."""
    parser = Parser(__doc__)
    parser.add_argument("--scenes", type=integer(1, 1_000_000), default=512, help="to generate (512)")
    parser.add_argument("--rig", choices=sorted(RIGS), default="front", help="which cameras (front)")
    parser.add_argument(
        "--workers", type=integer(1, 1024), default=os.cpu_count(), help="processes that generate; one a core"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        source = SyntheticSource(
            rig=options.rig,
            scenes={"train": options.scenes, "val": 1, "test": 1},
            root=root,
            generation_workers=options.workers,
        )
        start = time.perf_counter()
        source.prepare()
        generated = time.perf_counter() - start
        train = source.split("train")
        folder = Path(root) / source.world("train").folder_name()
        size = sum(file.stat().st_size for file in folder.rglob("*.record"))
        torch.set_num_threads(1)  # as in a worker of the loader
        start = time.perf_counter()
        for index in range(options.scenes):
            train[index]
        read = time.perf_counter() - start
    images = options.scenes * len(source.camera_names)
    height, width = source.image_size
    rows, cols = source.grid.shape
    print(
        f"{options.rig}: {options.scenes} scenes, {images} images of {height}×{width}, targets of {rows}×{cols}, "
        f"{options.workers} processes\n"
        f"generated at {images / generated:.0f} images/s ({generated:.1f} s, start of the processes included)\n"
        f"read in {1000 * read / options.scenes:.2f} ms a scene, {size / options.scenes / 1000:.0f} kB each"
    )


if __name__ == "__main__":
    run_script(main)
