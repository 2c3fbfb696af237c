"""Probes of private functions of torch, run once per process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")

GONE = (AttributeError, ImportError, RuntimeError, TypeError, ValueError)
"""Errors of a private function that was removed, or whose arguments or results have changed."""


def probed(try_it: Callable[[], T]) -> Callable[[], T | None]:
    """Return a function that calls ``try_it`` once and returns its result, or ``None`` if it raises :data:`GONE`.

    ``try_it`` runs in its own thread, so that no counter of operations, autocast, gradient mode or default device of
    the caller is active.
    """

    def attempt() -> T | None:
        try:
            return try_it()
        except GONE:
            return None

    @cache
    def answer() -> T | None:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(attempt).result()

    return answer
