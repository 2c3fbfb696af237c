"""Whether this torch has what it promises to nobody: asked once a process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")

GONE = (AttributeError, ImportError, RuntimeError, TypeError, ValueError)
"""What a private function raises that is gone, has other arguments, or returns something else."""


def probed(try_it: Callable[[], T]) -> Callable[[], T | None]:
    """Return what ``try_it`` returns, or ``None`` where it raises one of :data:`GONE`; it is called once.

    It runs in a thread of its own, in which no counter of operations, autocast, gradient mode or default device of the
    caller is active.
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
