"""Requeueing: a batch job of SLURM that is stopped before its end starts again by itself, and then resumes."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from bevreshape.errors import TrainingInterrupted
from bevreshape.signals import STOPS
from bevreshape.training.processes import rank

WARNINGS = frozenset(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals by which ``sbatch --signal`` announces the time limit."""

TIMEOUT_S = 15.0
"""Seconds that SLURM's controller has to answer; it kills a job 30 s after SIGTERM, unless KillWait says otherwise."""


class Requeue:
    """Ask SLURM once to start the job of this process again.

    A job that reaches its time limit, or is preempted, gets SIGTERM and little time. It is requeued at once, by a
    thread that also runs while the process computes: whatever the process still saves, the job starts again. After a
    warning (SIGUSR1, SIGUSR2) there is more time, and the job is requeued when it has saved. A job that its user
    cancels stays cancelled.
    """

    def __init__(self) -> None:
        self.signals: set[int] = set()
        self.outcome = ""
        self._answered = False
        self._lock = threading.Lock()

    def receive(self, number: int) -> None:
        """Take note of a signal, and requeue if little time is left."""
        self.signals.add(number)
        if number == signal.SIGTERM:
            self.ask(_ends_job)

    def stopped(self) -> str:
        """Requeue after the process has saved; return what was done, for its last message."""
        self.ask(lambda job: _ends_job(job) or (job["JobState"] == "RUNNING" and bool(self.signals & WARNINGS)))
        return self.outcome

    def ask(self, wanted: Callable[[dict[str, str]], bool]) -> None:
        """Requeue the job if its state is as ``wanted``. What fails is tried again at the next call."""
        with self._lock:
            if self._answered:
                return
            try:
                job = read_job()
                if job is None or not wanted(job):
                    return
                if job.get("BatchFlag") == "0":  # it counts up when a job is requeued
                    self.outcome, self._answered = "; SLURM starts only batch jobs again (sbatch)", True
                    return
                asked = _scontrol("requeue", job_id())
                self.outcome, self._answered = f"; SLURM starts job {job_id()} again", asked.returncode == 0
                if asked.returncode:
                    self.outcome = f"; SLURM does not start job {job_id()} again ({' '.join(asked.stderr.split())})"
            except FileNotFoundError:
                self.outcome = f"; SLURM cannot be asked to start job {job_id()} again: scontrol is not in PATH"
            except (OSError, subprocess.SubprocessError) as error:
                self.outcome = f"; SLURM cannot be asked to start job {job_id()} again ({error})"


def job_id() -> str:
    """Return the id of this job, of one task in an array of jobs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def read_job() -> dict[str, str] | None:
    """Return what SLURM knows about this job, by ``scontrol``'s names; ``None`` if it does not know the job."""
    shown = _scontrol("-o", "show", "job", job_id())
    found = dict(re.findall(r"(\S+?)=(\S*)", shown.stdout))
    return found if shown.returncode == 0 and "JobState" in found else None


def _ends_job(job: dict[str, str]) -> bool:
    """Return whether SLURM ends a job that its user wants to go on."""
    return job.get("Reason") == "TimeLimit" or job.get("PreemptTime", "None") != "None"


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@contextmanager
def requeueing(resumes: bool, remedy: str = "") -> Iterator[None]:
    """Requeue the job of SLURM that this process belongs to if the block is stopped.

    Args:
        resumes: whether the same command, started again, resumes.
        remedy: end of the message if it does not.

    Raises:
        TrainingInterrupted: when the block was stopped; says what was asked of SLURM.
    """
    batch = "SLURM_JOB_ID" in os.environ and rank() == 0
    if not batch or threading.current_thread() is not threading.main_thread():
        yield
        return
    requeue = Requeue()
    try:
        with _watching_signals(requeue) if resumes else nullcontext():
            yield
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # this process ends now
        outcome = requeue.stopped() if resumes else remedy
        raise TrainingInterrupted(f"{str(stop) or 'stopped'}{outcome}") from None


@contextmanager
def _watching_signals(requeue: Requeue) -> Iterator[None]:
    """Pass every signal on at once, also while the main thread computes and Python's handlers have to wait."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(receiver, requeue), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.shutdown(socket.SHUT_WR)  # closing does not reach the thread while a forked process has the socket too
        sender.close()
        thread.join()
        receiver.close()


def _listen(receiver: socket.socket, requeue: Requeue) -> None:
    while numbers := receiver.recv(64):
        for number in numbers:
            requeue.receive(number)
