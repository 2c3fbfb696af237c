"""Signals that stop a command: what it does then, and what the processes that work for it do."""

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

from bevreshape.signals import STOPS, survives_hangups
from bevreshape.training.processes import rank

AGAIN_S = 2.0
"""A launcher passes on what the terminal has sent already; what comes later was typed again."""


class StopRequest:
    """Whether a signal has asked this process to stop, while it listens.

    A second Ctrl-C, two seconds or more after the first, stops at once. Other signals are sent repeatedly without
    meaning it.
    """

    def __init__(self) -> None:
        self._asked_s: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether one has come."""
        return self._asked_s is not None

    def listen(self) -> None:
        """Take the signals, also from a handler that was put in place of ours."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPS:
            handler = signal.getsignal(number)
            if handler != self._ask and not survives_hangups(number):
                self._before.setdefault(number, handler)
                signal.signal(number, self._ask)

    def restore(self) -> None:
        """Give them back to who had them first."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __enter__(self) -> "StopRequest":
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _ask(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now
            if rank() == 0:  # not by print, in the midst of which the signal may have come
                with suppress(OSError):  # the terminal may be what has gone
                    os.write(2, b"stopping after this step; Ctrl-C once more to stop at once\n")
        elif number == signal.SIGINT and now - self._asked_s > AGAIN_S:
            raise KeyboardInterrupt


class Loader(DataLoader):
    """A loader whose workers outlive a stop of the whole process group, since the step that is under way still needs
    them."""

    def __init__(self, dataset: Any, batch_size: int, **kwargs: Any) -> None:
        super().__init__(dataset, batch_size, **{**kwargs, "worker_init_fn": outlive_stops})

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until a worker that starts has its own handlers
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_stops(worker: int = 0) -> None:
    """In a process that works for another one: leave it to that one to stop.

    SIGTERM still ends it where the other process sends it, as torch does to workers that hang.
    """
    for number in STOPS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # else nothing tells who has sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
