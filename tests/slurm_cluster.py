"""A cluster of SLURM, and jobs on it."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from commands import ROOT, without

TRAINING = [
    *without("trainer.max_steps", "trainer.val", "checkpoint_every", "logger"), "trainer.max_steps=240",
    "trainer.val_check_interval=80", "checkpoint_every_n_steps=20", "+trainer.enable_progress_bar=false",
    "logger=none",
]  # fmt: skip
"""A run that is long enough to be interrupted."""


PLAIN = [
    *without("encoder.", "head.", "trainer.max_steps", "trainer.val", "loader.batch", "logger"), "trainer.max_steps=6",
    "trainer.val_check_interval=3", "encoder=plain.Patches", "head=plain.PerCell", "objective=bce",
    "+trainer.enable_progress_bar=false", "trust=[plain]",
]  # fmt: skip
"""Without batch normalisation, and with a loss that is the mean over samples."""


def start_script() -> Path:
    """The script that starts two nodes; BEVRESHAPE_SLURM names its folder, by default one next to the checkout."""
    return Path(os.environ.get("BEVRESHAPE_SLURM", ROOT.parent / "shared" / "slurm")) / "start.sh"


class Cluster:
    """Two nodes, n1 and n2.

    Args:
        environment: with SLURM's programs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of SLURM."""
        ended = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert ended.returncode == 0 or not check, f"{' '.join(command)}: {ended.stderr}"
        return ended

    def submit(self, script: str, *options: str, cwd: Path) -> str:
        """Submit a batch script, whose output goes to ``out``; return the job's id."""
        text = f"#!/bin/bash\nexport PYTHONPATH={ROOT}\n{script.replace('python', sys.executable)}\n"
        (cwd / "job.sh").write_text(text)
        options = ("--parsable", "--mem=1000", "--output=out", "--open-mode=append", *options)
        return self.run("sbatch", *options, "job.sh", cwd=cwd).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What SLURM says about a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "-o", "show", "job", job).stdout))

    def until(self, job: str, done: Callable[[dict[str, str]], bool], seconds: float = 240) -> dict[str, str]:
        """Wait for a state of a job; one that was requeued is started at once, where SLURM would wait two minutes."""
        began = time.monotonic()
        while not done(state := self.job(job)):
            assert time.monotonic() - began < seconds, state
            if state["JobState"] == "PENDING" and state["Reason"] == "BeginTime":
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.2)
        return state


def ended(state: Mapping[str, str]) -> bool:
    """Whether a job is over."""
    return state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


def history_of(run: Path) -> list[dict[str, float]]:
    """The values of the validations of a run."""
    with (run / "history.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k.startswith("val/") and v} for row in csv.DictReader(file)]


def metrics_of(run: Path) -> dict[str, float]:
    """The metrics of a run, without its durations."""
    found = json.loads((run / "metrics.json").read_text())
    known = {key: float("nan") if value is None else value for key, value in found.items()}
    return {key: value for key, value in known.items() if not key.startswith("fit/") or key == "fit/steps"}
