"""Prepare nuScenes for training: its tables, and its maps as cells, read once with nuscenes-devkit.

    pip install 'bevreshape[nuscenes]'      # into an environment of its own, if its old numpy is not wanted
    python tools/prepare_nuscenes.py root=data/nuscenes version=v1.0-mini
    python tools/prepare_nuscenes.py root=data/nuscenes version=v1.0-trainval 'left_m=[-25,25]' cell_m=0.25   # setting
    1

Goes on where it was stopped. Training then needs images and what is prepared, no tables and no devkit.
"""

import os
import time
from collections import Counter
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bevreshape.config.arguments import Parser
from bevreshape.console import run_script
from bevreshape.data.sources.folder.entries import numbers
from bevreshape.data.sources.nuscenes.prepared import Content, prepare_release
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid

DEFAULTS = {
    "root": "data/nuscenes", "version": "v1.0-trainval", "out": "data/nuscenes_prepared", "forward_m": [-50, 50],
    "left_m": [-50, 50], "cell_m": 0.5, "line_width_m": None, "workers": None,
}  # fmt: skip

MOST_WORKERS = 1024

EXAMPLES = {"line_width_m": 0.75, "workers": 4}
"""Of settings whose default is none."""


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, list):
        return numbers(value, len(default))
    if isinstance(default, str):
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    return numbers([value], 1) or (default is None and value is None)


def main() -> None:
    """The command line."""
    parser = Parser(f"{__doc__}\nsettings: {' '.join(f'{key}={value}' for key, value in DEFAULTS.items())}")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that differ from these")
    prepare(parser.parse_args().settings)


def prepare(arguments: list[str]) -> None:
    """Prepare, and say what there is and what was left out."""
    try:
        given = dict(OmegaConf.to_container(OmegaConf.from_dotlist(arguments)))  # type: ignore[arg-type]
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{' '.join(arguments)}: this is not KEY=VALUE ({error})") from None
    for key in given:
        if key not in DEFAULTS:
            raise InputError(f"{key} is no setting; {suggest(str(key), DEFAULTS)}")
    settings = DEFAULTS | given
    for key, value in settings.items():
        if not _is_like(value, DEFAULTS[key]):
            raise InputError(
                f"{key}={value} is no such value; it must be like {key}={EXAMPLES.get(key, DEFAULTS[key])}"
            )
    workers = os.cpu_count() or 1 if settings["workers"] is None else settings["workers"]
    if workers not in range(1, MOST_WORKERS + 1):
        raise InputError(f"workers={workers} must be an integer from 1 to {MOST_WORKERS}, processes that read maps")
    grid = BEVGrid(settings["forward_m"], settings["left_m"], settings["cell_m"])
    content = Content(str(settings["version"]), grid, settings["line_width_m"])
    start = time.perf_counter()
    index, skipped = prepare_release(Path(settings["root"]), Path(settings["out"]), content, int(workers))
    size = sum(path.stat().st_size for path in index.records.iterdir())
    counts = Counter(scene["split"] for scene in index.scenes for _ in range(scene["count"]))
    shown = ", ".join(f"{number} {split}" for split, number in sorted(counts.items()))
    print(f"{index.records.parent}: {shown}; {size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s")
    if skipped:
        print(f"left out: {len(skipped)} keyframes or shapes of maps, listed in index.json, first {skipped[0]}")


if __name__ == "__main__":
    run_script(main)
