"""Locks, against a second process."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from bevreshape.errors import InputError
from bevreshape.storage.lock import locked, owned

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


def test_another_thread_of_the_process_does_not_get_the_lock(tmp_path: Path) -> None:
    """Nor does its attempt release the lock, as closing a file does with locks of POSIX."""
    with locked(tmp_path / "a") as first, locked(tmp_path / "a", wait=False) as second:
        assert (first, second) == (True, False)
    with locked(tmp_path / "a") as ours:
        with locked(tmp_path / "a", wait=False):
            pass
        other = subprocess.run(
            [sys.executable, "-c", TRIES, str(tmp_path / "a")], capture_output=True, text=True, check=True
        )
        assert (ours, other.stdout) == (True, "False\n")


TRIES = """
import sys; from pathlib import Path; from bevreshape.storage.lock import locked
with locked(Path(sys.argv[1]), wait=False) as held: print(held)
"""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)


def test_without_locks_an_owner_file_is_as_good(no_locks: None, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with locked(path) as first, locked(path, wait=False) as second:
        assert (first, second) == (True, False)
        assert (tmp_path / "a.owner").read_text().startswith("process ")
    with locked(path, wait=False) as again:
        assert again
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_of_many_processes_one_takes_over_a_dead_owners_file(tmp_path: Path) -> None:
    """As after ``kill -9``: nobody renews the file any more."""
    path = tmp_path / "a"
    (tmp_path / "a.owner").write_text("process 1 on gone")
    with_lock = [subprocess.Popen([sys.executable, "-c", OWNS, str(path)], stdout=subprocess.PIPE) for _ in range(4)]
    assert {process.communicate()[0] for process in with_lock} == {b"False\n"}, "it may still be alive"
    old = time.time() - 3600
    os.utime(tmp_path / "a.owner", (old, old))
    with_lock = [subprocess.Popen([sys.executable, "-c", OWNS, str(path)], stdout=subprocess.PIPE) for _ in range(4)]
    assert sorted(process.communicate()[0] for process in with_lock) == [b"False\n"] * 3 + [b"True\n"]


OWNS = """
import errno, fcntl, sys, time
from pathlib import Path
from bevreshape.storage.lock import locked

def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

fcntl.lockf = refuse
with locked(Path(sys.argv[1]), wait=False) as held:
    print(held, flush=True)
    time.sleep(3)
"""


def test_without_locks_two_processes_never_own_at_once(tmp_path: Path) -> None:
    """Also where one removes its file while another looks whether it is stale."""
    arguments = [sys.executable, "-c", ALTERNATES, str(tmp_path / "a"), str(tmp_path / "inside")]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [process.communicate()[0].split() for process in processes]
    assert [both for _, both in counts] == ["0"] * 4
    assert sum(int(times) for times, _ in counts) > 20


ALTERNATES = """
import errno, fcntl, os, sys, time
from pathlib import Path
from bevreshape.storage import lock

def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

fcntl.lockf, lock.PAUSE_S = refuse, 0.0005
times, both, inside = 0, 0, Path(sys.argv[2])
end = time.time() + 4
while time.time() < end:
    with lock.locked(Path(sys.argv[1])):
        times += 1
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            both += 1
            continue
        time.sleep(0.0003)
        inside.unlink(missing_ok=True)
print(times, both)
"""


def test_an_owner_that_was_held_up_leaves_the_file_of_the_next(
    no_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither removes nor renews it."""
    monkeypatch.setattr("bevreshape.storage.lock.RENEWED_S", 0.05)
    owner = tmp_path / "a.owner"
    with locked(tmp_path / "a") as held:
        assert held
        (tmp_path / "next").write_text("process 1 on another")
        os.utime(tmp_path / "next", (1e9, 1e9))
        (tmp_path / "next").replace(owner)
        time.sleep(0.3)
        assert owner.stat().st_mtime == 1e9
    assert owner.read_text() == "process 1 on another"


@pytest.mark.parametrize("posix", [True, False])
def test_threads_hold_the_lock_one_by_one(
    posix: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if not posix:
        request.getfixturevalue("no_locks")
    monkeypatch.setattr("bevreshape.storage.lock.PAUSE_S", 0.0005)
    inside, counts, end = threading.Lock(), Counter[bool](), time.time() + 2

    def alternate() -> None:
        while time.time() < end:
            with locked(tmp_path / "a"):
                alone = inside.acquire(blocking=False)
                counts[alone] += 1
                if alone:
                    time.sleep(0.0002)
                    inside.release()

    threads = [threading.Thread(target=alternate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts[True] > 20
    assert counts[False] == 0


@pytest.mark.parametrize("posix", ["True", "False"])
def test_a_forked_process_holds_no_lock(posix: str, tmp_path: Path) -> None:
    """It does not give its parent's lock back, and gets it after its parent."""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path / "a"), posix],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == "True\nFalse\nTrue\n"


FORKS = """
import errno, fcntl, os, sys, time
from contextlib import ExitStack
from pathlib import Path
from bevreshape.storage.lock import locked

def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

if sys.argv[2] == "False":
    fcntl.lockf = refuse
path, (after, tell) = Path(sys.argv[1]), os.pipe()
with ExitStack() as block:
    print(block.enter_context(locked(path)), flush=True)
    child = os.fork()
    if child == 0:
        os.close(tell)
        block.close()
        with locked(path, wait=False) as held:
            print(held, flush=True)
        os.read(after, 1)
        with locked(path, wait=False) as held:
            print(held, flush=True)
        os._exit(0)
    time.sleep(1)
os.close(tell)
os.waitpid(child, 0)
"""


OWNER = """
import os, sys; from pathlib import Path; from bevreshape.storage.lock import owned
with owned(Path(sys.argv[1]), "wait"): print("held", flush=True); sys.stdin.read()
"""


def test_an_owned_file_names_its_owner(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=rf"{tmp_path} is in use by process {owner.pid} on .*; wait$"),
        owned(path, "wait"),
    ):
        pass
    owner.communicate()
    with owned(path, "wait"):
        assert path.read_text().startswith("process ")


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with (
        pytest.raises(InputError, match=r"link is a link, which no run leaves there; remove it"),
        owned(tmp_path / "link", ""),
    ):
        pass
    assert (tmp_path / "target").read_text() == "precious"
