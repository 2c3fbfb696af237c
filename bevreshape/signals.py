"""Signals that stop a command."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""Signals by which terminals, batch systems and supervisors end a command. Batch systems send the last two before the
time limit."""

AGAIN_S = 0.05
"""Seconds until a dropped interrupt is raised again, when the function that dropped it has ended."""


@contextmanager
def stops_as_interrupts() -> Iterator[None]:
    """Treat every stop signal as Ctrl-C, so that partial work is cleaned up and other processes are stopped.

    Python drops an exception that a signal raises in a finalizer or a callback of a weak reference; it is raised again.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def raise_again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            again.append(threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)))  # also ends a sleep
            again[-1].daemon = True
            again[-1].start()
        else:
            hook(dropped)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in STOPS if number != signal.SIGINT and not ignores_hangup(number)]
    before = {number: signal.signal(number, interrupt) for number in taken}
    hook, sys.unraisablehook = sys.unraisablehook, raise_again
    again: list[threading.Timer] = []
    try:
        yield
        if any(timer.is_alive() for timer in again):
            raise KeyboardInterrupt
    finally:
        for timer in again:
            timer.cancel()  # later the signal would end the process
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def ignores_hangup(number: int) -> bool:
    """Return whether the signal is SIGHUP and ignored, as under ``nohup``."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
