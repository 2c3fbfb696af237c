"""Which errors are a view transformer's own: those of the machine are not."""

import errno

import pytest
import torch

from bevreshape.comparison import failures
from bevreshape.comparison.failures import attempt
from bevreshape.errors import InputError, RunError


@pytest.fixture(autouse=True)
def without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "RETRY_S", 0.0)


def often(*errors: Exception | None):
    """A function that raises one error after another; without one it returns 7."""
    left = list(errors)

    def do() -> int:
        if (error := left.pop(0)) is not None:
            raise error
        return 7

    return do


def chained() -> Exception:
    error = RuntimeError("training")
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ESTALE, "Stale file handle", "x"), OSError(errno.EMFILE, "Too many open files"), chained(),
        OSError("Caught OSError in DataLoader worker process 0."), RunError("x holds a run with seed=1 but this one"),
    ],
)  # fmt: skip
def test_faults_of_the_machine_are_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        attempt(often(error))


def test_a_killed_worker_of_the_loader_is_raised_as_a_message() -> None:
    with pytest.raises(InputError, match=r"is killed by signal.* the same command resumes"):
        attempt(often(RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_may_be_short_once(error: Exception) -> None:
    assert attempt(often(error, None)) == (7, None)
    assert attempt(often(error, error)) == (None, "out of memory")


def test_own_errors_are_reasons() -> None:
    assert attempt(often(ValueError("its option"))) == (None, "ValueError: its option")
    assert attempt(often(ValueError("Caught it in DataLoader worker process 0.")))[1] is not None
    assert attempt(often(FileNotFoundError(errno.ENOENT, "none", "g++")), machine=False)[1] is not None
