"""Processes that a job starts, wherever the job itself runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

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
