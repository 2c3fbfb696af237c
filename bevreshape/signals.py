"""Signals that stop a command."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""What terminals, batch systems and supervisors send to end a command; batch systems announce with the last two that
its time runs out."""


@contextmanager
def interrupted_by_stops() -> Iterator[None]:
    """Take every stop as Ctrl-C, so that what is half done is cleaned up and what runs in other processes is stopped
    too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in STOPS if number != signal.SIGINT and not survives_hangups(number)]
    before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def survives_hangups(number: int) -> bool:
    """Whether it was started by ``nohup``, which is to outlive its terminal."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
