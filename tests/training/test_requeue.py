"""When SLURM is asked to start a stopped job again; its answers are those of SLURM 22.05."""

import os
import signal
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from bevreshape.config.command import run_command
from bevreshape.config.settings import Predict
from bevreshape.errors import TrainingInterrupted
from bevreshape.signals import STOPS
from bevreshape.training.processes import LAUNCHERS
from bevreshape.training.requeue import requeueing

STATE = "JobId=7 JobState={state} Reason={reason} Requeue=1 BatchFlag={batch} PreemptTime={preempted}"
RUNNING = {"state": "RUNNING", "reason": "None", "batch": "1", "preempted": "None"}
LIMIT = {**RUNNING, "state": "COMPLETING", "reason": "TimeLimit"}
PREEMPTED = {**RUNNING, "preempted": "2026-01-31T12:00:00"}
CANCELLED = {**RUNNING, "state": "COMPLETING"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job of SLURM in this state; ``asked`` has what was asked of it."""
    for launcher in LAUNCHERS:
        monkeypatch.delenv(launcher.marker, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def job(state: dict[str, str], code: int = 0) -> Path:
        scontrol = tmp_path / "scontrol"
        answer = f"echo '{STATE.format(**state)}'"
        asks = f"echo $* >> {tmp_path / 'asked'}; echo no such job >&2; exit {code}"
        scontrol.write_text(f"#!/bin/sh\ncase $1 in -o) {answer} ;; *) {asks} ;; esac\n")
        scontrol.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "asked"

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in handlers:
        signal.signal(number, lambda *_: None)
    yield job
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stop_by(*numbers: int, resumes: bool = True) -> str:
    """What a job says that saves after these signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # as in a new process
    try:
        with requeueing(resumes, "; set a folder"):
            for number in numbers:
                signal.raise_signal(number)
            raise TrainingInterrupted("stopped")
    except TrainingInterrupted as stop:
        return str(stop)


@pytest.mark.parametrize(
    ("state", "number", "again"),
    [
        (LIMIT, signal.SIGTERM, True),
        (PREEMPTED, signal.SIGTERM, True),
        (RUNNING, signal.SIGUSR1, True),
        (CANCELLED, signal.SIGTERM, False),
        (RUNNING, signal.SIGTERM, False),
    ],
)
def test_a_job_starts_again_unless_its_user_ends_it(slurm, state, number: int, again: bool) -> None:
    asked = slurm(state)
    said = stop_by(number)
    assert said == ("stopped; SLURM starts job 7 again" if again else "stopped")
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if again else "")


def test_it_is_asked_once_and_before_the_job_has_saved(slurm) -> None:
    asked = slurm(LIMIT)
    before: list[bool] = []
    with suppress(TrainingInterrupted), requeueing(True):
        signal.raise_signal(signal.SIGTERM)
        began = time.monotonic()
        while not asked.exists() and time.monotonic() - began < 30:
            time.sleep(0.01)
        before.append(asked.exists())
        signal.raise_signal(signal.SIGTERM)
        raise TrainingInterrupted("stopped")
    assert before == [True], "SIGKILL may come before the job has saved"
    assert asked.read_text() == "requeue 7\n"


def test_a_task_of_an_array_starts_again_alone(slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    asked = slurm(PREEMPTED)
    stop_by(signal.SIGTERM)
    assert asked.read_text() == "requeue 5_3\n"


def test_what_cannot_start_again_says_why(slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = slurm({**RUNNING, "batch": "0"})
    assert stop_by(signal.SIGUSR1) == "stopped; SLURM starts only batch jobs again (sbatch)"
    asked = slurm(RUNNING, code=1)
    assert stop_by(signal.SIGUSR1) == "stopped; SLURM does not start job 7 again (no such job)"
    asked.unlink()
    assert stop_by(signal.SIGUSR1, resumes=False) == "stopped; set a folder"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert stop_by(signal.SIGUSR1) == "stopped"
    assert not asked.exists()


def test_a_job_that_was_requeued_before_starts_again(slurm) -> None:
    slurm({**RUNNING, "batch": "2"})
    assert stop_by(signal.SIGUSR1) == "stopped; SLURM starts job 7 again"


def test_a_failed_request_is_repeated_when_the_job_has_saved(slurm) -> None:
    """As when the controller of SLURM is busy at SIGTERM."""
    asked = slurm(LIMIT, code=1)
    with suppress(TrainingInterrupted), requeueing(True):
        signal.raise_signal(signal.SIGTERM)
        began = time.monotonic()
        while not asked.exists() and time.monotonic() - began < 30:
            time.sleep(0.01)
        time.sleep(0.5)  # its answer is read
        slurm(LIMIT)
        raise TrainingInterrupted("stopped")
    assert asked.read_text() == "requeue 7\n" * 2


def test_without_scontrol_the_message_says_so(slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert stop_by(signal.SIGUSR1) == ("stopped; SLURM cannot be asked to start job 7 again: scontrol is not in PATH")


def test_an_error_ends_the_block_while_a_forked_worker_lives(slurm) -> None:
    """Workers of a loader have all sockets of the process."""
    slurm(RUNNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads
        began = time.monotonic()
        with requeueing(True):
            worker = os.fork()
            if worker == 0:
                time.sleep(5)
                os._exit(0)
    assert time.monotonic() - began < 4
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)


@pytest.mark.parametrize(
    ("arguments", "resumes", "said"),
    [
        (["hydra.run.dir=run"], True, "stopped; SLURM starts job 7 again"),
        (["hydra.run.dir=runs/${now:%Y}"], True, "stopped; set hydra.run.dir=FOLDER to let SLURM start it again"),
        (["-m"], True, "stopped"),
        (["hydra.run.dir=run"], False, "stopped"),
    ],
)
def test_a_command_starts_again_if_it_resumes_in_its_folder(
    slurm, arguments: list[str], resumes: bool, said: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    asked = slurm(RUNNING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["predict", "checkpoint=none", "input=none", *arguments])

    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    with pytest.raises(SystemExit):
        run_command(stopped, "predict", Predict, resumes=resumes)
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert asked.exists() == ("again" in said and "set" not in said)
