"""Locks, against a second process."""

import subprocess
import sys
from pathlib import Path

import pytest

from bevreshape.storage.lock import locked

HOLDER = """
import sys; from pathlib import Path; from bevreshape.storage.lock import locked
with locked(Path(sys.argv[1])): print("held", flush=True); sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_of_another_process_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a"
    holder = hold(path)
    with locked(path, wait=False) as held:
        assert not held
    holder.communicate()
    with locked(path, wait=False) as held:
        assert held


def test_a_killed_process_gives_its_lock_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = hold(tmp_path / "a")
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "a", waiting="waiting") as held:
        assert held
    assert capsys.readouterr().err == ""


def test_waiting_is_printed_and_ends_with_the_other_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = hold(tmp_path / "a")
    assert holder.stdin is not None
    ender = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({holder.pid}, 15)"])
    with locked(tmp_path / "a", waiting="another process writes") as held:
        assert held
        assert holder.poll() is not None or holder.wait(timeout=5) == -15
    assert capsys.readouterr().err == "another process writes\n"
    ender.wait()
    holder.communicate()


def test_an_error_in_the_block_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a"):
        raise KeyError
    with locked(tmp_path / "a", wait=False) as held:
        assert held
