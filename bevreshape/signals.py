"""Signals that stop a command."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""Signals by which terminals, batch systems and supervisors end a command. Batch systems send the last two before the
time limit."""


@contextmanager
def stops_as_interrupts() -> Iterator[None]:
    """Treat every stop signal as Ctrl-C, so that partial work is cleaned up and other processes are stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in STOPS if number != signal.SIGINT and not ignores_hangup(number)]
    before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignores_hangup(number: int) -> bool:
    """Return whether the signal is SIGHUP and ignored, as under ``nohup``."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
