"""Processes that a job starts, wherever the job itself runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, finish, start
from slurm_cluster import PLAIN, history_of, metrics_of

JOBS = """
import os
from joblib import Parallel, delayed
from bevreshape.training.launch import launch_distributed

def job(number):
    return os.getpid(), launch_distributed(2, os.getenv, "RANK"), number

if __name__ == "__main__":
    print(*(answer for _, *answer in Parallel(n_jobs=2, backend="loky")(delayed(job)(number) for number in range(2))))
"""


@pytest.mark.slow
def test_jobs_of_joblib_start_processes_of_their_own(tmp_path: Path) -> None:
    """Hydra's launcher of joblib runs jobs so."""
    pytest.importorskip("joblib")
    (tmp_path / "jobs.py").write_text(JOBS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "jobs.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "['0', 0] ['0', 1]"), ended.stderr


FAILING = """
from bevreshape.errors import Divergence, RunError
from bevreshape.training.launch import launch_distributed

def fail(kind):
    raise kind("its reason: 1")

if __name__ == "__main__":
    for kind in (Divergence, RunError, KeyError):
        try:
            launch_distributed(2, fail, kind)
        except Exception as error:
            print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_errors_keep_their_kind(tmp_path: Path) -> None:
    """A comparison records a divergence as a result, and ends where the run is at fault."""
    (tmp_path / "failing.py").write_text(FAILING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "failing.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    lines = [re.sub("^([A-Za-z]+) [12] of", r"\1 n of", line) for line in ended.stdout.splitlines()]
    assert lines == [
        "Divergence n of 2 processes failed: its reason: 1",
        "RunError n of 2 processes failed: its reason: 1",
        "InputError n of 2 processes failed: KeyError: 'its reason: 1'",
    ], ended.stderr


@pytest.mark.slow
def test_two_processes_train_and_measure_as_one(worlds: Path, tmp_path: Path) -> None:
    """Of the same global batch, except for the order of sums of floats; validation has an odd number of samples."""
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "cluster")])}
    for folder, devices, batch in (("one", 1, 4), ("both", 2, 2)):
        own = ["logger=none", f"data.root={worlds}", f"trainer.devices={devices}", f"loader.batch_size={batch}"]
        found = finish(start("train", *PLAIN, *own, f"hydra.run.dir={folder}", cwd=tmp_path, environment=here))
        assert found.code == 0, found.err
    one, both = history_of(tmp_path / "one"), history_of(tmp_path / "both")
    for ours, alone in zip(both, one, strict=True):
        assert ours == pytest.approx(alone, rel=1e-4, abs=1e-5, nan_ok=True)
    assert metrics_of(tmp_path / "both") == pytest.approx(metrics_of(tmp_path / "one"), rel=1e-4, abs=1e-5, nan_ok=True)
