"""A command succeeds with a sane result, or prints a one-line message, for any input: seeded random cases.

pytest tests/fuzz --fuzz-seconds=600 --fuzz-seed=1     # more cases, others
pytest tests/fuzz --fuzz-case=17                       # one of them again
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from cases import UNCHANGED
from commands import ROOT
from PIL import Image

pytestmark = pytest.mark.slow

WAITING_SECONDS = 600
"""Time after which a worker counts as hanging."""

CASES, SECONDS = 100, 60
"""Of the default suite; on a slow machine fewer cases fit into its time."""

GOOD = ("ok", "message")


@pytest.fixture(scope="module")
def base(trained: Path, worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all cases read: a finished run, a camera folder, and the cache of scenes."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(trained, folder / "run")
    (folder / "worlds").symlink_to(worlds)
    (folder / "home").mkdir()
    frames = folder / "frames"
    for part in ("images", "labels", "bev", "boxes", "splits"):
        (frames / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(frames / f"images/{name}.png")
        Image.fromarray(random.choice([0, 1, 2, 11, 255], (60, 80)).astype(np.uint8)).save(
            frames / f"labels/{name}.png"
        )
        Image.fromarray(random.integers(0, 4, (16, 16), dtype=np.uint8)).save(frames / f"bev/{name}.png")
        box = {"category": "car", "center_m": [8, 1, 0.8], "size_m": [4, 2, 1.6], "yaw_deg": 30}
        (frames / f"boxes/{name}.json").write_text(json.dumps([box, {**box, "center_m": [5, -2, 0.7]}]))
    for split, names in (("train", "a\nb\n"), ("val", "a\n"), ("test", "b\n")):
        (frames / f"splits/{split}.txt").write_text(names)
    camera = {
        "name": "front",
        "image_size": [60, 80],
        "intrinsics": [[50, 0, 39.5], [0, 50, 29.5], [0, 0, 1]],
        "ego_from_cam": [[0, -0.2588, 0.9659, 0.3], [-1, 0, 0, 0.1], [0, -0.9659, -0.2588, 1.5], [0, 0, 0, 1]],
        "distortion": {"model": "opencv", "coefficients": [-0.05, 0.01, 0, 0]},
    }
    content = {
        "version": 1,
        "note": "of random images",
        "cameras": [camera],
        "frames": {"b": {"front": {"ego_from_cam": camera["ego_from_cam"]}}},
        "labels": {"ids": {"0": "other", "1": "road", "2": "line"}, "void": [11]},
        "bev": {"grid": {"forward_m": [0, 16], "left_m": [-8, 8], "cell_m": 1}, "bits": ["drivable", "vehicle"]},
        "boxes": {"categories": ["car"]},
    }
    (frames / "calibration.json").write_text(json.dumps(content))
    return folder


def run(base: Path, seed: int, cases: range, seconds: float) -> list[dict[str, Any]]:
    """Try cases in a process of their own; one that dies or waits for ever is a case's failure, and the next goes
    on."""
    results = base / "results.jsonl"
    results.unlink(missing_ok=True)
    first = cases.start
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tools", Path(__file__).parent)))
    environment = {
        **os.environ, "PYTHONPATH": paths, "HOME": str(base / "home"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline",
        "MPLBACKEND": "agg", "MPLCONFIGDIR": matplotlib.get_cachedir(), "TMPDIR": str(base / "cases"),
    }  # fmt: skip
    (base / "cases").mkdir(exist_ok=True)
    while first < cases.stop:
        worker = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        numbers = [str(seed), str(first), str(cases.stop), str(seconds)]
        try:
            ended = subprocess.run(
                [*worker, str(base), str(results), *numbers],
                env=environment, capture_output=True, text=True, timeout=seconds + WAITING_SECONDS, check=False,
            )  # fmt: skip
            failure = "crash", f"exit code {ended.returncode}: {ended.stderr[-2000:]}"
            if ended.returncode == 0:
                return read(results)[0]
        except subprocess.TimeoutExpired:
            failure = "hang", "no signal reached it"
        _, begun = read(results)
        if begun is None:
            raise AssertionError(f"the worker did not begin: {failure}")
        entry = {"case": begun, "kind": "?", "outcome": failure[0], "changes": ["?"], "notes": [], "detail": failure[1]}
        with results.open("a", encoding="utf-8") as file:
            print(json.dumps(entry), file=file)
        first = begun + 1
    return read(results)[0]


def read(results: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The outcomes so far, and the case that had begun last."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
    begun = [line["begun"] for line in lines if "begun" in line]
    return [line for line in lines if "begun" not in line], begun[-1] if begun else None


def summary(found: list[dict[str, Any]]) -> str:
    """How many cases of each kind had which outcome."""
    counts = Counter((one["kind"], one["outcome"]) for one in found)
    outcomes = sorted({outcome for _, outcome in counts}, key=lambda outcome: (outcome not in GOOD, outcome))
    lines = [f"{'':20}" + "".join(f"{outcome:>14}" for outcome in outcomes)]
    for kind in sorted({kind for kind, _ in counts}):
        lines.append(f"{kind:20}" + "".join(f"{counts[kind, outcome]:14}" for outcome in outcomes))
    totals = [sum(counts[kind, outcome] for kind, _ in {(kind, "") for kind, _ in counts}) for outcome in outcomes]
    lines.append(f"{len(found)} in all".ljust(20) + "".join(f"{total:14}" for total in totals))
    return "\n".join(lines)


def test_every_case_succeeds_or_reports_an_error(base: Path, pytestconfig: pytest.Config, capsys) -> None:
    seed = pytestconfig.getoption("--fuzz-seed")
    one, seconds = pytestconfig.getoption("--fuzz-case"), pytestconfig.getoption("--fuzz-seconds")
    longer = seconds is not None
    cases = range(one, one + 1) if one is not None else range(-len(UNCHANGED), 10**9 if longer else CASES)
    found = run(base, seed, cases, seconds if longer else SECONDS)
    table = summary(found)
    with capsys.disabled() if longer or one is not None else nullcontext():
        print(f"\n{table}")
    bad = [one for one in found if one["outcome"] not in GOOD]
    described = "\n\n".join(
        f"--fuzz-seed={seed} --fuzz-case={one['case']}: {one['outcome']} of {one['kind']} {' '.join(one['notes'])}\n  "
        + "\n  ".join(one["changes"])
        + f"\n{one['detail']}"
        for one in bad
    )
    assert not bad, f"\n{table}\n\n{described}"
