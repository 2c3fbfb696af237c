"""How far a long piece of work is, and how long it still takes: a bar on a terminal, a line now and then elsewhere."""

import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

FIRST_S = 10.0
"""After which the first line is printed; the next comes after twice as long, and so on."""

LONGEST_S = 600.0
"""Most seconds from one line to the next."""

REDRAWN_S = 0.1
"""Least seconds from one drawing of the bar to the next."""

T = TypeVar("T")


class Progress:
    """Says on stderr how much of a piece of work is done, for ``with``.

    No thread of its own draws it: processes may be forked meanwhile, and nothing is printed but in :meth:`advance`.
    Work of less than ten seconds prints nothing where stderr is no terminal.

    Args:
        what: is being done, such as ``predicting``.
        total: steps of it.
        done: of these before, by an earlier run that this one goes on with.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._console = Console(stderr=True)
        self.what = what
        self.note = ""
        self.effort: tuple[float, float] | None = None
        """Of what this run has done and of what is left, where some steps take longer than others."""
        self.total = total
        self.done = self._before = done
        self._began = self._drawn = time.monotonic()
        self._due = self._began + FIRST_S
        self._bar: Bar | None = None
        if self._console.file.isatty() and self._console.is_interactive:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[said]}", markup=False),
            )
            self._bar = Bar(*columns, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._task = self._bar.add_task(what, total=total, completed=done, said="")

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
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count steps that are done."""
        self.done += steps
        now = time.monotonic()
        if self._bar is not None:
            if now - self._drawn >= REDRAWN_S:
                self._draw(now)
        elif now >= self._due and self.done < self.total:
            self.say(f"{self.what}: {self._said(now)}")
            self._due = now + min(now - self._began, LONGEST_S)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away while something else prints."""
        self.stop()
        yield
        self.start()

    def _draw(self, now: float) -> None:
        assert self._bar is not None
        self._drawn = now
        said = self._said(now)
        self._bar.update(
            self._task, description=self.what, total=self.total, completed=self.done, said=said, refresh=True
        )

    def _said(self, now: float) -> str:
        here, spent = self.done - self._before, now - self._began
        done, rest = self.effort or (here, self.total - self.done)
        left = f", about {duration(spent / done * rest)} left" if done else ""
        note = f", {self.note}" if self.note else ""
        return f"{self.done} of {self.total} in {duration(spent)}{left}{note}"


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, one after another, with their progress on stderr.

    Args:
        items: of a known number.
        what: is being done with them.
        total: how many there are, where they have no length.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    with Progress(what, total) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float | int) -> str:
    """As people say it, in its two largest units: ``9 s``, ``2 min 30 s``, ``1 h 5 min``."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    size, large, small = (60, "min", "s") if whole < 3600 else (3600, "h", "min")
    rest = whole % size // (1 if small == "s" else 60)
    return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
