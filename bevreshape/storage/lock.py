"""File locks, held until they are released or the process ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for as long as it is open.

    Returns:
        ``False`` if another process holds the lock, or files cannot be locked.
    """
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


@contextmanager
def locked(path: Path, *, wait: bool = True, waiting: str = "") -> Iterator[bool]:
    """Lock a file while the block runs; create it if needed.

    Args:
        path: of the file; its content is lost.
        wait: wait for another process that holds the lock; otherwise the block runs without the lock.
        waiting: message printed before such a wait.

    Yields:
        Whether the lock is held.
    """
    import fcntl  # not on Windows, where only reading a cache works

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        if wait and not held:
            if waiting:
                print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        yield held
