"""The interface of a study's levels: planned entries, shared between processes, and the rows made of them.

A level is a dataclass ``XStudy(plan, records)``. All levels of a study write to the same records, so their entries have
different names: except in the tensor level, those of a level ``x`` begin with ``x-``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bevreshape.experiments.records import Entry, Records
from bevreshape.experiments.row import Row

PAUSE_S = 2.0
"""Seconds between checks for entries that other processes have done."""


@dataclass(frozen=True)
class Work:
    """An entry and the function that does it.

    Attributes:
        entry: the entry.
        do: returns its result, plain values for a line of JSON. Only the process that has claimed the entry calls it.
    """

    entry: Entry
    do: Callable[[], Mapping[str, Any]]


@runtime_checkable
class Level(Protocol):
    """One level of a study: ``tensor``, ``features`` or ``task``."""

    @property
    def name(self) -> str:
        """Name of the level and of its section in the plan."""
        ...

    @property
    def records(self) -> Records:
        """Records of the results."""
        ...

    def planned(self) -> Mapping[str, float]:
        """Return the names of all entries, with approximate seconds on one core."""
        ...

    def work(self, records: Mapping[str, dict[str, Any]]) -> Sequence[Work]:
        """Return all entries that can begin, including done ones, but not those that need a missing result.

        Args:
            records: :meth:`Records.read`.
        """
        ...

    def rows(self) -> list[Row]:
        """Return the rows whose entries are all done."""
        ...


@dataclass(frozen=True)
class Done:
    """An entry that this process has done.

    Attributes:
        name: of the entry.
        seconds: duration.
        left: names of the entries of all levels that are not done.
    """

    name: str
    seconds: float
    left: tuple[str, ...]


def missing(levels: Sequence[Level]) -> tuple[str, ...]:
    """Return the names of the entries that are not done, begun or not."""
    return tuple(name for level in levels for name in level.planned().keys() - level.records.read().keys())


def left(level: Level) -> list[Work]:
    """Return the entries that can begin and are not done.

    Raises:
        InputError: when one was made with other values.
    """
    records = level.records.read()
    return [work for work in level.work(records) if level.records.get(records, work.entry) is None]


def run(levels: Sequence[Level]) -> Iterator[Done]:
    """Do the remaining entries one at a time, and wait for entries of other processes and machines.

    Raises:
        InputError: when an entry was made with other values than the plan's, or cannot be done.
    """
    while waiting := [(level, work) for level in levels for work in left(level)]:
        for level, work in waiting:
            records = level.records
            with records.claimed(work.entry) as ours:
                if not ours or records.get(records.read(), work.entry) is not None:
                    continue
                start = time.perf_counter()
                records.add(work.entry, work.do())
            yield Done(work.entry.name, time.perf_counter() - start, missing(levels))
            break
        else:
            time.sleep(PAUSE_S)
