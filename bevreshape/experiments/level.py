"""The interface of a study's levels: planned entries, shared between processes, and the rows made of them.

A level is a dataclass ``XStudy(plan, records)``. All levels of a study write to the same records, so their entries have
different names: except in the tensor level, those of a level ``x`` begin with ``x-``.
"""

from typing import Protocol, runtime_checkable

from bevreshape.experiments.row import Row
from bevreshape.sharing import Planned


@runtime_checkable
class Level(Planned, Protocol):
    """One level of a study: ``tensor``, ``features`` or ``task``."""

    @property
    def name(self) -> str:
        """Name of the level and of its section in the plan."""
        ...

    def rows(self) -> list[Row]:
        """Return the rows whose entries are all done."""
        ...
