"""Planned entries, done once by any number of processes and machines that share a folder of records."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from bevreshape.reporting.progress import Progress
from bevreshape.storage.records import Entry, Records

PAUSE_S = 2.0
"""Seconds between checks for entries that other processes have done."""


@dataclass(frozen=True)
class Work:
    """An entry, or a part of it, and the function that does it.

    Attributes:
        entry: the entry.
        do: returns the entry's result, plain values for a line of JSON; ``None`` if further parts are missing. Only the
            process that has claimed the entry or the part calls it.
        part: name of the part in its entry; parts are claimed one by one. ``None``: the whole entry.
        needed: whether the part is still missing, asked once it is claimed.
    """

    entry: Entry
    do: Callable[[], Mapping[str, Any] | None]
    part: str | None = None
    needed: Callable[[], bool] = lambda: True

    @property
    def claim(self) -> Entry:
        """Return what to claim before the work is done."""
        return self.entry if self.part is None else Entry(f"{self.entry.name}: {self.part}", {})


@runtime_checkable
class Planned(Protocol):
    """Entries of one kind, in a folder of records."""

    @property
    def records(self) -> Records:
        """Records of the results."""
        ...

    def planned(self) -> Mapping[str, float]:
        """Return the names of all entries, with the approximate seconds on one core that remain for them."""
        ...

    def work(self, records: Mapping[str, dict[str, Any]]) -> Sequence[Work]:
        """Return all entries that can begin, including done ones, but not those that need a missing result.

        Args:
            records: :meth:`Records.read`.
        """
        ...


@dataclass(frozen=True)
class Done:
    """An entry that this process has done, or a part of it.

    Attributes:
        name: of the entry.
        seconds: duration.
        left: names of all entries that are not done.
    """

    name: str
    seconds: float
    left: tuple[str, ...]


def missing(planned: Sequence[Planned]) -> tuple[str, ...]:
    """Return the names of the entries that are not done, begun or not."""
    return tuple(name for one in planned for name in one.planned().keys() - one.records.read().keys())


def left(planned: Planned) -> list[Work]:
    """Return the work that can begin and is not done.

    Raises:
        InputError: when an entry was made with other values.
    """
    records = planned.records.read()
    return [work for work in planned.work(records) if planned.records.get(records, work.entry) is None]


def run(planned: Sequence[Planned]) -> Iterator[Done]:
    """Do the remaining work piece by piece, and wait for that of other processes and machines.

    Raises:
        InputError: when an entry was made with other values than the plan's, or cannot be done.
    """
    while waiting := [(one.records, work) for one in planned for work in left(one)]:
        for records, work in waiting:
            with records.claimed(work.claim) as ours:
                if not ours or records.get(records.read(), work.entry) is not None or not work.needed():
                    continue
                start = time.perf_counter()
                if (result := work.do()) is not None:
                    records.add(work.entry, result)
            yield Done(work.entry.name, time.perf_counter() - start, missing(planned))
            break
        else:
            time.sleep(PAUSE_S)


def finish(planned: Sequence[Planned], what: str, write: Callable[[], object], every_s: float) -> None:
    """Do the remaining work that no other process has begun, until all is done, and report the progress.

    Args:
        planned: the entries.
        what: the work, for the progress.
        write: updates the results, called at intervals but not at the end.
        every_s: seconds between updates.

    Raises:
        InputError: when an entry cannot be done.
    """
    begun, written = _remaining(planned), time.monotonic()
    total = _total(planned)
    with Progress(what, total, total - len(missing(planned))) as progress:
        for done in run(planned):
            rest = _remaining(planned)
            progress.effort = max(begun - rest, 0.0), rest
            progress.note, progress.total = done.name, _total(planned)
            progress.advance(progress.total - len(done.left) - progress.done)
            if done.left and time.monotonic() - written > every_s:
                write()
                written = time.monotonic()


def _total(planned: Sequence[Planned]) -> int:
    return sum(len(one.planned()) for one in planned)


def _remaining(planned: Sequence[Planned]) -> float:
    """Return the approximate seconds on one core of all that is not done."""
    found = 0.0
    for one in planned:
        done = one.records.read()
        found += sum(seconds for name, seconds in one.planned().items() if name not in done)
    return found
