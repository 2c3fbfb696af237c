"""Stop signals: how a command and its worker processes respond."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

from bevreshape.errors import data_errors
from bevreshape.signals import STOPS, ignores_hangup
from bevreshape.training.processes import rank

AGAIN_S = 2.0
"""Seconds. A launcher repeats a signal of the terminal at once; a later Ctrl-C was typed again."""


class StopRequest:
    """Record whether a signal has asked this process to stop.

    A second Ctrl-C, two seconds or more after the first, stops at once. Repetitions of other signals are ignored.
    """

    def __init__(self) -> None:
        self._asked_s: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Return whether a stop signal was received."""
        return self._asked_s is not None

    def listen(self) -> None:
        """Install the signal handlers, again if other code has replaced them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPS:
            handler = signal.getsignal(number)
            if handler != self._ask and not ignores_hangup(number):
                self._before.setdefault(number, handler)
                signal.signal(number, self._ask)

    def restore(self) -> None:
        """Restore the original handlers."""
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
            if rank() == 0:  # not by print, which the signal may have interrupted
                with suppress(OSError):  # the terminal may be closed
                    os.write(2, b"stopping after this step; Ctrl-C once more to stop at once\n")
        elif number == signal.SIGINT and now - self._asked_s > AGAIN_S:
            raise KeyboardInterrupt


class Loader(DataLoader):
    """A loader whose workers ignore a stop of the process group, since the current step still needs them.

    Errors of samples are of the class :class:`~bevreshape.errors.DataError`, without the traceback of a worker.
    """

    def __init__(self, dataset: Any, batch_size: int, **kwargs: Any) -> None:
        super().__init__(dataset, batch_size, **{**kwargs, "worker_init_fn": ignore_stop_signals})

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until a worker that starts has its own handlers
        try:
            return _read(super().__iter__())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with data_errors():
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


def ignore_stop_signals(worker: int = 0) -> None:
    """Ignore stop signals in a worker process, which its parent stops.

    SIGTERM from the parent still ends the worker, as torch sends it to workers that hang.
    """
    for number in STOPS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # otherwise the sender is unknown
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
