"""Commands as a user types them."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CAMERA = {
    "name": "front",
    "image_size": [64, 128],
    "intrinsics": [[80.0, 0, 63.5], [0, 80.0, 31.5], [0, 0, 1]],
    "ego_from_cam": [[0, 0, 1, 1.2], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]],
}
"""A front camera, as ``calibration.json`` describes it."""

TINY = (
    "data.scenes.train=24",
    "data.scenes.val=7",
    "data.scenes.test=7",
    "data.image_size=[32,64]",
    "data.grid.cell_m=2",
    "loader.batch_size=4",
    "loader.num_workers=0",
    "data.generation_workers=1",
    "encoder.channels=8",
    "head.segmentation.channels=8",
    "head.segmentation.blocks=1",
    "trainer.accelerator=cpu",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "checkpoint_every_n_steps=3",
    "log_images.num_samples=1",
    "logger=none",
)
"""Arguments that make the main job a matter of seconds."""

DIVERGING = (
    "optimizer.lr=10", "optimizer.weight_decay=100", "optimizer.pct_start=0.01", "trainer.max_steps=40",
    "trainer.val_check_interval=40",
)  # fmt: skip
"""Arguments, all within their ranges, that end in NaN: decay multiplies weights by 1 - lr · weight_decay = -999 a
step."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]
"""``command(name, *arguments)``, as the fixture of that name."""


def without(*prefixes: str) -> list[str]:
    """``TINY`` without the arguments that begin so, to give them other values."""
    return [argument for argument in TINY if not argument.startswith(prefixes)]


def start(
    name: str,
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] = {},
    launcher: Sequence[str] = (),
    session: bool = False,
) -> subprocess.Popen[str]:
    """Start ``python -m bevreshape.NAME`` as a process of its own.

    Args:
        name: of the command.
        arguments: of the command.
        cwd: where.
        environment: variables in addition to those of the tests.
        launcher: what comes between ``python`` and ``-m``.
        session: whether it leads a process group of its own, which can be signalled as a whole.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", f"bevreshape.{name}", *arguments],
        cwd=cwd,
        start_new_session=session,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for a process."""
    out, err = process.communicate(timeout=600)
    return Ended(process.returncode, out, err)
