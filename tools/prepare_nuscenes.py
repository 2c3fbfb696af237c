"""Prepare nuScenes for training: read its tables, and its maps as cells, once with nuscenes-devkit.

    pip install 'bevreshape[nuscenes]'      # into a separate environment, because of its old numpy
    python tools/prepare_nuscenes.py root=data/nuscenes version=v1.0-mini
    python tools/prepare_nuscenes.py root=data/nuscenes 'left_m=[-25,25]' cell_m=0.25   # setting 1

An interrupted preparation resumes. Training then needs images and the prepared folder, no tables and no devkit.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import TypedDict

from bevreshape.config.arguments import Parser
from bevreshape.config.key_values import read_key_values
from bevreshape.config.options import Count, Edges, Length, LocalPath
from bevreshape.console import run_script
from bevreshape.data.sources.nuscenes.prepared import Content, prepare_release
from bevreshape.geometry import BEVGrid


class Settings(TypedDict):
    """Hold the settings of the tool; ``workers`` is the number of processes that read maps."""

    root: LocalPath
    version: str
    out: LocalPath
    forward_m: Edges
    left_m: Edges
    cell_m: Length
    line_width_m: Length | None
    workers: Count | None


DEFAULTS = {
    "root": "data/nuscenes", "version": "v1.0-trainval", "out": "data/nuscenes_prepared", "forward_m": [-50, 50],
    "left_m": [-50, 50], "cell_m": 0.5, "line_width_m": None, "workers": None,
}  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = Parser(f"{__doc__}\nsettings: {' '.join(f'{key}={value}' for key, value in DEFAULTS.items())}")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that differ from these")
    prepare(parser.parse_args().settings)


def prepare(arguments: list[str]) -> None:
    """Prepare, and print the keyframes and what was left out."""
    settings = read_key_values(Settings, DEFAULTS, arguments)
    workers = settings["workers"] or os.cpu_count() or 1
    grid = BEVGrid(settings["forward_m"], settings["left_m"], settings["cell_m"])
    content = Content(settings["version"], grid, settings["line_width_m"])
    start = time.perf_counter()
    index, skipped = prepare_release(Path(settings["root"]), Path(settings["out"]), content, workers)
    assert isinstance(index.records, Path)  # they were just written
    size = sum(path.stat().st_size for path in index.records.rglob("*.record"))
    counts = Counter(scene["split"] for scene in index.scenes for _ in range(scene["count"]))
    shown = ", ".join(f"{number} {split}" for split, number in sorted(counts.items()))
    print(f"{index.records.parent}: {shown}; {size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s")
    if skipped:
        print(f"left out: {len(skipped)} keyframes or shapes of maps, listed in index.json, first {skipped[0]}")


if __name__ == "__main__":
    run_script(main)
