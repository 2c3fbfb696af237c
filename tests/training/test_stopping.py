"""Stops by signals, and starts in a folder with a run: nothing is lost, and no two runs share a folder."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import TINY, finish, start, without
from lightning.pytorch import LightningModule, Trainer

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import TrainingInterrupted
from bevreshape.signals import AGAIN_S, STOPS, stops_as_interrupts
from bevreshape.training.callbacks import LastCheckpoint
from bevreshape.training.stopping import StopRequest, ignore_stop_signals
from bevreshape.training.task import BEVTask

pytestmark = pytest.mark.slow


def step_of(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def history_of(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def metrics_of(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {key: value for key, value in metrics.items() if not key.startswith("fit/") or key == "fit/steps"}


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not happened():
        time.sleep(0.02)


def trains_beyond_the_start(run: Path) -> Callable[[], bool]:
    """Whether ``last.ckpt`` has been replaced since it was first seen."""
    last, first = run / "checkpoints" / "last.ckpt", []

    def happened() -> bool:
        if last.exists():
            first.append(last.stat().st_ino)
        return len(set(first)) > 1

    return happened


@pytest.mark.parametrize("number", STOPS)
def test_every_stop_signal_is_handled_and_handlers_are_restored(number: signal.Signals) -> None:
    before = {stop: signal.getsignal(stop) for stop in STOPS}
    with StopRequest() as request:
        assert not request.asked
        signal.raise_signal(number)
        assert request.asked
        signal.raise_signal(number)  # a launcher passes it on once more
    assert {stop: signal.getsignal(stop) for stop in STOPS} == before


def test_ctrl_c_long_after_the_first_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        now[0] += 60
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nohup_ignores_sighup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request, stops_as_interrupts():
            signal.raise_signal(signal.SIGHUP)
            assert not request.asked
        with stops_as_interrupts(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


class StopsWhenItGoes:
    """An object whose finalizer meets a stop signal."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_in_a_finalizer_is_not_lost(number: signal.Signals) -> None:
    """Python drops what a finalizer raises."""

    def work() -> None:
        with stops_as_interrupts():
            going = StopsWhenItGoes(number)
            del going
            time.sleep(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 60


def test_a_stop_in_a_finalizer_at_the_end_is_raised_there() -> None:
    def work() -> None:
        with stops_as_interrupts():
            going = StopsWhenItGoes(signal.SIGTERM)
            del going

    with pytest.raises(KeyboardInterrupt):
        work()
    time.sleep(2 * AGAIN_S)  # no signal comes, which would end the process


def wait_for_stops(started) -> None:
    ignore_stop_signals()
    started.set()
    signal.pause()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who has sent a signal")
def test_workers_ignore_stops_except_their_parents() -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    worker = context.Process(target=wait_for_stops, args=(started,), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # as the loader does: libraries start threads of their own
    try:
        worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert started.wait(120)
    for number in STOPS:
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("step", [7, 10])
def test_processes_ask_each_other_at_every_step(tmp_path: Path, step: int) -> None:
    asked: list[bool] = []
    saved: list[Path] = []

    def decide(mine: bool, all: bool) -> bool:
        asked.append(mine)
        return True  # the other process was asked to stop

    (tmp_path / "checkpoints").mkdir()
    trainer = Mock(
        spec=Trainer, global_step=step, world_size=2, val_check_batch=1000, max_steps=1000, should_stop=False
    )
    trainer.accumulate_grad_batches, trainer.is_global_zero = 1, True
    trainer.fit_loop, trainer.strategy = Mock(total_batch_idx=step - 1), Mock(reduce_boolean_decision=decide)
    trainer.save_checkpoint = saved.append
    callback = LastCheckpoint(tmp_path / "checkpoints" / "last.ckpt", 100, trust=("theirs", "others"))
    with pytest.raises(TrainingInterrupted) as stopped:
        callback.on_train_batch_end(trainer, Mock(spec=LightningModule), None, Mock(spec=BEVBatch), step - 1)
    assert saved == [callback.path]
    assert not any(asked)
    assert str(stopped.value) == f"stopped; resume with resume={tmp_path} trust=[theirs,others]"


def test_sigterm_to_the_whole_group_saves_and_the_same_command_resumes(
    worlds: Path, tmp_path: Path, trained: Path
) -> None:
    """With workers, as batch systems and ``timeout`` send it; then as SLURM's requeue starts it again."""
    arguments = [
        *without("loader.num_workers", "trainer.max_steps", "trainer.val"), f"data.root={worlds}",
        "loader.num_workers=2",
        "trainer.max_steps=100000", "trainer.val_check_interval=100000", "hydra.run.dir=run",
    ]  # fmt: skip
    for _ in range(2):
        process = start("train", *arguments, cwd=tmp_path, session=True)
        wait_for(trains_beyond_the_start(tmp_path / "run"), process)
        before = step_of(tmp_path / "run")
        os.killpg(process.pid, signal.SIGTERM)
        ended = finish(process)
        assert ended.code == 130, ended.err
        assert "stopped; resume with resume=" in ended.err
        assert "Traceback" not in ended.err
        assert "killed" not in ended.err
        assert step_of(tmp_path / "run") > before
    assert "resumes from" in ended.err


@pytest.mark.parametrize(
    ("stage", "number", "message", "step"),
    [
        ("validation", signal.SIGTERM, "stopped in the validation; resume with", 3),
        ("test", signal.SIGHUP, "stopped in the test after training; resume with", 8),
        ("training", signal.SIGUSR1, "stopped; resume with", 1),
    ],
)
def test_a_stop_at_any_time_changes_nothing(
    command, worlds: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: int,
    message: str, step: int,
) -> None:  # fmt: skip
    method = f"{stage}_step"
    original = getattr(BEVTask, method)

    def stopped(task: BEVTask, batch: object, batch_idx: int) -> object:
        signal.raise_signal(number)
        return original(task, batch, batch_idx)

    arguments = [*TINY, f"data.root={worlds}", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(BEVTask, method, stopped)
        ended = command("train", *arguments)
    assert ended.code == 130, ended.err
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert step_of(tmp_path / "run") == step
    ended = command("train", *arguments)
    assert ended.code == 0, ended.err
    assert history_of(tmp_path / "run") == history_of(trained)
    assert metrics_of(tmp_path / "run") == pytest.approx(metrics_of(trained), abs=0, nan_ok=True)


def test_folder_with_a_run(
    command, worlds: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, f"data.root={worlds}", "hydra.run.dir=run"]
    run = tmp_path / "run"

    def power_cut(*_: object) -> None:
        raise OSError("the power is cut")

    with monkeypatch.context() as patch:
        patch.setattr(BEVTask, "on_train_batch_start", power_cut)
        command("train", *arguments)
    assert step_of(run) == 0, "the first checkpoint is written before the first step"
    (run / "checkpoints" / ".last.ckpt.abcd.part").write_bytes(b"half of a checkp")
    (run / ".metrics.json.efgh.part").write_bytes(b"{")

    ended = command("train", *arguments, "optimizer.lr=0.5", "trainer.max_steps=9")
    assert ended.code == 1
    assert "holds a run with optimizer.lr=" in ended.err or "holds a run with trainer.max_steps=8" in ended.err

    held = (
        f"import fcntl,sys; f=open({str(run / '.lock')!r},'w'); fcntl.lockf(f, fcntl.LOCK_EX); f.write('process 7 "
        f"on n1'); f.flush()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", f"{held}; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    other.stdout.readline()
    ended = command("train", *arguments)
    other.communicate()
    assert (ended.code, "is in use by process 7 on n1" in ended.err) == (1, True), ended.err

    shutil.rmtree(run / "checkpoints")  # as after a kill before there was anything to resume from
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".best.ckpt.abcd.part").write_bytes(b"half of a checkp")
    ended = command("train", *arguments, "loader.num_workers=1")
    assert ended.code == 0, ended.err
    assert history_of(run) == history_of(trained)
    assert not list(run.rglob("*.part"))


def test_folder_that_vanishes_or_cannot_be_written(
    command, worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*TINY, f"data.root={worlds}", "hydra.run.dir=run"]

    def moved(task: BEVTask, batch: object, batch_idx: int) -> None:
        if task.global_step == 2:
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(BEVTask, "on_train_batch_start", moved)
        ended = command("train", *arguments)
    assert (ended.code, "checkpoints has vanished" in ended.err) == (1, True), ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").write_text("a file in its place")
    for argument in ("hydra.run.dir=run", "hydra.run.dir=run/inner", "hydra.run.dir=/proc/nowhere"):
        ended = command("train", *arguments[:-1], argument)
        assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
        assert argument.removeprefix("hydra.run.dir=").split("/")[-1] in ended.err


def test_torchrun_starts_its_processes_again(worlds: Path, tmp_path: Path) -> None:
    """Two processes of torchrun are stopped, then started by the same command: they resume from the same step."""
    arguments = [
        *without("trainer.max_steps", "checkpoint_every"), f"data.root={worlds}", "trainer.max_steps=40",
        "trainer.devices=2", "trainer.strategy=ddp",
        "checkpoint_every_n_steps=2", "hydra.run.dir=run",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = start("train", *arguments, cwd=tmp_path, launcher=launcher)
    wait_for(trains_beyond_the_start(tmp_path / "run"), process)
    process.terminate()
    assert "stopped; resume with resume=" in finish(process).err
    assert 0 < step_of(tmp_path / "run") < 40
    ended = finish(start("train", *arguments, cwd=tmp_path, launcher=launcher))
    assert ended.code == 0, ended.err
    assert "resumes from" in ended.err
    assert metrics_of(tmp_path / "run")["fit/steps"] == 40


def test_torchrun_restarts_where_a_process_was_killed(worlds: Path, tmp_path: Path) -> None:
    """The agent starts both processes anew; they find each other, not the addresses of the killed ones, and resume."""
    arguments = [
        *without("trainer.max_steps", "checkpoint_every"), f"data.root={worlds}", "trainer.max_steps=40",
        "trainer.devices=2",
        "trainer.strategy=ddp", "checkpoint_every_n_steps=2", "hydra.run.dir=run",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = start("train", *arguments, cwd=tmp_path, launcher=launcher)
    wait_for(trains_beyond_the_start(tmp_path / "run"), process)
    (workers,) = [
        [int(pid) for pid in path.read_text().split()]
        for path in Path(f"/proc/{process.pid}/task").glob("*/children")
        if path.read_text()
    ]
    os.kill(workers[0], signal.SIGKILL)
    ended = finish(process)
    assert ended.code == 0, ended.err
    assert "resumes from" in ended.err
    assert metrics_of(tmp_path / "run")["fit/steps"] == 40


def test_torchrun_restarts_on_all_nodes_where_a_process_was_killed(worlds: Path, tmp_path: Path) -> None:
    """Only the agent of one of two nodes counts a restart; the processes of both find each other all the same."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [
        *without("trainer.max_steps", "checkpoint_every"), f"data.root={worlds}", "trainer.max_steps=80",
        "+trainer.num_nodes=2", "trainer.strategy=ddp", "checkpoint_every_n_steps=2", "hydra.run.dir=run",
    ]  # fmt: skip
    launcher = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test", "--max-restarts=1",
    ]  # fmt: skip
    nodes = [start("train", *arguments, cwd=tmp_path, launcher=launcher) for _ in range(2)]
    wait_for(trains_beyond_the_start(tmp_path / "run"), nodes[0])
    (worker,) = (
        int(path.read_text())
        for path in Path(f"/proc/{nodes[1].pid}/task").glob("*/children")
        if path.read_text().strip()
    )
    os.kill(worker, signal.SIGKILL)
    both = [finish(node) for node in nodes]
    assert [ended.code for ended in both] == [0, 0], both[0].err + both[1].err
    assert "resumes from" in both[0].err + both[1].err
    assert metrics_of(tmp_path / "run")["fit/steps"] == 80


def test_closed_terminal_stops_the_run_cleanly(worlds: Path, tmp_path: Path) -> None:
    """A closed terminal sends SIGHUP and can no longer be written to; the step is still saved."""
    master, slave = os.openpty()
    arguments = [
        *without("trainer.max_steps", "checkpoint_every"), f"data.root={worlds}", "trainer.max_steps=4000",
        "trainer.val_check_interval=4000", "checkpoint_every_n_steps=2", "hydra.run.dir=run",
    ]  # fmt: skip
    own_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, "
        "[sys.executable, *sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", own_terminal, "-m", "bevreshape.train", *arguments],
        stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True, text=True,
    )  # fmt: skip
    os.close(slave)
    wait_for(trains_beyond_the_start(tmp_path / "run"), process)
    os.close(master)  # the kernel sends SIGHUP, and every write fails from now on
    assert process.wait() == 130
    assert 0 < step_of(tmp_path / "run") < 4000


def test_closed_pipe_does_not_stop_the_run(worlds: Path, tmp_path: Path) -> None:
    """As with ``| tee``, which Ctrl-C ends first."""
    reader, writer = os.pipe()
    arguments = [*TINY, f"data.root={worlds}", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bevreshape.train", *arguments], stdout=writer, stderr=writer, cwd=tmp_path
    )
    os.close(writer)
    os.close(reader)
    assert process.wait() == 0
    assert (tmp_path / "run" / "metrics.json").exists()
