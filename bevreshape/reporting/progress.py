"""Report progress and remaining time of long work: a bar on a terminal, occasional lines elsewhere."""

import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

FIRST_S = 10.0
"""Seconds until the first line; the time until the next one doubles."""

LONGEST_S = 600.0
"""Longest time between lines, seconds."""

REDRAWN_S = 0.1
"""Shortest time between drawings of the bar, seconds."""

T = TypeVar("T")


class Progress:
    """Report the progress of work on stderr; used with ``with``.

    No thread draws it, since processes may be forked meanwhile; only :meth:`advance` prints. Work below ten seconds
    prints nothing where stderr is not a terminal.

    Args:
        what: the work, such as ``predicting``.
        total: number of steps, ``None`` if it is unknown.
        done: steps done by an earlier run, which this one resumes.
    """

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self._console = Console(stderr=True)
        self.what = what
        self.note = ""
        self.effort: tuple[float, float] | None = None
        """Relative time of the done and of the remaining steps, where some steps take longer than others."""
        self.total = total
        self.done = self._before = done
        self._began = self._drawn = time.monotonic()
        self._due = self._began + FIRST_S
        self._bar: Bar | None = None
        if self._console.file.isatty() and self._console.is_interactive:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[status]}", markup=False),
            )
            self._bar = Bar(*columns, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._task = self._bar.add_task(what, total=total, completed=done, status="")

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Show it."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.done += steps
        now = time.monotonic()
        if self._bar is not None:
            if now - self._drawn >= REDRAWN_S:
                self._draw(now)
        elif now >= self._due and (self.total is None or self.done < self.total):
            self.print(f"{self.what}: {self._status(now)}")
            self._due = now + min(now - self._began, LONGEST_S)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(line), soft_wrap=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the bar while other code prints."""
        self.stop()
        yield
        self.start()

    def _draw(self, now: float) -> None:
        assert self._bar is not None
        self._drawn = now
        status = self._status(now)
        self._bar.update(
            self._task, description=self.what, total=self.total, completed=self.done, status=status, refresh=True
        )

    def _status(self, now: float) -> str:
        here, spent = self.done - self._before, now - self._began
        note = f", {self.note}" if self.note else ""
        if self.total is None:
            return f"{self.done} in {duration(spent)}{note}"
        done, rest = self.effort or (here, max(self.total - self.done, 0))
        left = f", about {duration(spent / done * rest)} left" if done else ""
        return f"{self.done} of {self.total} in {duration(spent)}{left}{note}"


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and report progress on stderr.

    Args:
        items: a known number of them.
        what: the work on them.
        total: their number, if they have no length.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    with Progress(what, total) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float | int) -> str:
    """Format a duration in its two largest units: ``9 s``, ``2 min 30 s``, ``1 h 5 min``."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    size, large, small = (60, "min", "s") if whole < 3600 else (3600, "h", "min")
    rest = whole % size // (1 if small == "s" else 60)
    return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
