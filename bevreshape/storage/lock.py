"""File locks, held until they are released or the process ends, also over the network.

``locked`` uses POSIX locks (``fcntl``). They are what network file systems pass on to all machines: NFS 3 and later,
Lustre (mounted with ``flock``, its default since 2.13), GPFS, CephFS. BSD locks (``flock``) are not: an NFS client
may keep them to itself (``local_lock=flock``). A POSIX lock belongs to one process, is not inherited by a forked one,
and ends with the process, or when it closes any descriptor of the file; so only :func:`locked` opens lock files.

A file system without locks (Lustre with ``noflock``, NFS with ``nolock``) answers with an error. Then a second file,
created exclusively, says who holds the lock. Its holder renews its time while it lives, and others take over a file
that has not been renewed for :data:`STALE_S`.
"""

import errno
import logging
import os
import platform
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from bevreshape.errors import InputError, RunError

log = logging.getLogger(__name__)

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Errors of a file system without locks."""

BUSY = {errno.EACCES, errno.EAGAIN}
"""Errors for a lock that another process holds."""

PAUSE_S = 0.5
"""Seconds between attempts to get a lock."""

RENEWED_S = 10.0
"""Seconds between renewals of an owner's file."""

STALE_S = 60.0
"""Seconds after which an owner's file that was not renewed is taken over: its process has ended."""

_held: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked, which POSIX locks do not keep apart."""

_one_thread = threading.RLock()
"""Held while a lock is taken or given back, so that the threads of a process do so one by one."""


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file against other processes of this machine, for as long as it is open.

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
        path: of the file.
        wait: wait for another process or thread that holds the lock; otherwise the block runs without the lock.
        waiting: message logged before such a wait.

    Yields:
        Whether the lock is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    said = not waiting
    while True:
        with ExitStack() as held:
            ours = _take(path, held)
            if ours or not wait:
                yield ours
                return
        if not said:
            log.warning("%s", waiting)
            said = True
        time.sleep(PAUSE_S)


def _take(path: Path, held: ExitStack) -> bool:
    """Try to lock a file until ``held`` is closed."""
    import fcntl  # not on Windows, where only reading a cache works

    with _one_thread:
        if path.exists() and _inode(path) in _held:
            return False  # opening and closing it would release the lock
        with ExitStack() as opened:
            file = opened.enter_context(path.open("a"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    return _own(path.with_name(f"{path.name}.owner"), held)
                if error.errno not in BUSY:
                    raise
                return False
            status = os.fstat(file.fileno())
            inode = status.st_dev, status.st_ino
            _held.add(inode)
            opened.pop_all()
            held.callback(_release, file, inode)
    return True


def _release(file: IO[Any], inode: tuple[int, int]) -> None:
    with _one_thread:  # a lock that another thread takes between both would end with this file
        file.close()
        _held.discard(inode)


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _forget() -> None:
    """Hold nothing in a process that was just forked: locks stay with the process that took them."""
    _held.clear()
    _one_thread.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_one_thread.acquire, after_in_parent=_one_thread.release, after_in_child=_forget)


def _own(path: Path, held: ExitStack) -> bool:
    """Try to create the file of the lock's owner, and renew it until ``held`` is closed.

    Exclusive creation is atomic on all of these file systems.
    """
    owner = _new_owner()
    for _ in range(2):
        if _create(path, owner):
            over = threading.Event()
            thread = threading.Thread(target=_renew, args=(path, owner, over), daemon=True)
            held.callback(_remove, path, owner)
            held.callback(thread.join)
            held.callback(over.set)
            thread.start()
            return True
        if not _is_stale(path) or not _remove_stale(path):
            return False
    return False


def _new_owner() -> str:
    """Return the text of an owner's file, which no other has."""
    return f"process {os.getpid()} on {platform.node()}\n{uuid.uuid4().hex}\n"


def _create(path: Path, owner: str) -> bool:
    """Create an owner's file; return ``False`` if there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(owner)
    return True


def _owner(path: Path) -> str | None:
    """Return the text of an owner's file; ``None`` without one."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _remove(path: Path, owner: str) -> None:
    """Remove an owner's file, unless it was taken over; a process that was forked meanwhile leaves it."""
    if owner.startswith(f"process {os.getpid()} ") and _owner(path) == owner:
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> bool:
    """Remove the file of an owner that has ended, in one process at a time; return whether this one did."""
    guard, guarding = path.with_name(f"{path.name}.takeover"), _new_owner()
    if not _create(guard, guarding):
        found = _owner(guard)
        if _is_stale(guard) and _owner(guard) == found:  # of a process that was killed here
            guard.unlink(missing_ok=True)
        return False
    try:
        found = _owner(path)
        stale = _is_stale(path) and _owner(path) == found  # another process may have taken over meanwhile
        if stale:
            path.unlink(missing_ok=True)
        return stale
    finally:
        _remove(guard, guarding)


def _is_stale(path: Path) -> bool:
    """Return whether a file was not renewed for long, by the clock of its file system, which has just dated another.

    A missing file is not stale: its owner has just removed it, and the next may create it.
    """
    clock = path.with_name(f"{path.name}.{uuid.uuid4().hex}.clock")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False
    finally:
        clock.unlink(missing_ok=True)


def _renew(path: Path, owner: str, over: threading.Event) -> None:
    """Renew an owner's file until it is given back, or another process took it over: this one was held up too long."""
    while not over.wait(RENEWED_S):
        with suppress(OSError):
            if _owner(path) != owner:
                log.warning("%s was taken over by another process, since it was not renewed for long", path)
                return
            os.utime(path)


@contextmanager
def owned(path: Path, remedy: str) -> Iterator[None]:
    """Lock a file for this process alone, and write its number into it; create it if needed.

    Unlike :func:`locked`, it does not wait. On a file system without locks the block runs, with a warning.

    Args:
        path: of the file.
        remedy: end of the message when another process holds the lock.

    Raises:
        RunError: when another process holds the lock.
        InputError: when the path is a link or no file.
    """
    import fcntl  # not on Windows, where nothing is trained

    with _open_file(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise RunError(f"{path.parent} is in use by {owner}; {remedy}") from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s); start no second process there", path.parent, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _open_file(path: Path) -> TextIO:
    """Open a file for reading and writing; refuse a link, since its target would be overwritten."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path} is a link, which no run leaves there; remove it") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no file, which no run leaves there; remove it")
    return os.fdopen(descriptor, "r+", encoding="utf-8")
