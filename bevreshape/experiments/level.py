"""What the levels of a study have in common: entries that are planned, done by whoever comes first, and made into rows.

A level is a dataclass ``XStudy(plan, records)``. All levels of a study write to the same records, so their entries have
different names: those of a level ``x`` but the tensor level begin with ``x-``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bevreshape.experiments.records import Entry, Records
from bevreshape.experiments.row import Row

PAUSE_S = 2.0
"""Between looks at what other processes have done."""


@dataclass(frozen=True)
class Work:
    """An entry, and how it is done.

    Attributes:
        entry: which.
        do: makes its result, plain values for a line of JSON. It is called once, by the process that has claimed the
            entry.
    """

    entry: Entry
    do: Callable[[], Mapping[str, Any]]


@runtime_checkable
class Level(Protocol):
    """One level of a study: ``tensor``, ``features`` or ``task``."""

    @property
    def name(self) -> str:
        """Of the level, and of its section in the plan."""
        ...

    @property
    def records(self) -> Records:
        """Where its results are kept."""
        ...

    def planned(self) -> Mapping[str, float]:
        """Names of all its entries, and about how many seconds each takes on one core."""
        ...

    def work(self, records: Mapping[str, dict[str, Any]]) -> Sequence[Work]:
        """All entries that can be begun, done ones too; one that needs the result of another is left out until that is
        there.

        Args:
            records: :meth:`Records.read`.
        """
        ...

    def rows(self) -> list[Row]:
        """Of what is done; a row one of whose entries is not done is left out."""
        ...


@dataclass(frozen=True)
class Done:
    """What was done, by this process.

    Attributes:
        name: of the entry.
        seconds: that it took.
        left: names of the entries of all levels that are not done.
    """

    name: str
    seconds: float
    left: tuple[str, ...]


def missing(levels: Sequence[Level]) -> tuple[str, ...]:
    """Names of the entries that are not done, begun or not."""
    return tuple(name for level in levels for name in level.planned().keys() - level.records.read().keys())


def left(level: Level) -> list[Work]:
    """Entries that can be begun and are not done.

    Raises:
        InputError: when one was made with other values.
    """
    records = level.records.read()
    return [work for work in level.work(records) if level.records.get(records, work.entry) is None]


def run(levels: Sequence[Level]) -> Iterator[Done]:
    """Do what is left, one entry at a time, and wait for what other processes and machines are doing.

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
