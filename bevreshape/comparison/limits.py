"""Costs of candidates against the user's limits."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bevreshape.comparison.outcome import Candidate, Constraints, ModelCost


def fastest(cost: ModelCost) -> tuple[str, float] | None:
    """Return the measured form with the lowest latency and its milliseconds; ``None`` if no form was measured."""
    measured = {form: ms for form, ms in cost.latency_ms.items() if math.isfinite(ms)}
    return min(measured.items(), key=lambda one: one[1], default=None)


def latency_ms(cost: ModelCost) -> float | None:
    """Return the latency that counts, that of the fastest measured form."""
    found = fastest(cost)
    return None if found is None else found[1]


NOISE = 0.05
"""Share by which two latencies of a shared machine may differ without one of the models being faster."""


def clearly_below(value: float, other: float, name: str) -> bool:
    """Return whether a value of a limit is lower than another, a latency by more than it varies."""
    return value < other * (1 - NOISE if name == "latency_ms" else 1)


MEASURES: Mapping[str, Callable[[ModelCost], float | None]] = {
    "latency_ms": latency_ms,
    "memory_mb": lambda cost: cost.memory_mb if math.isfinite(cost.memory_mb) else None,
    "parameters": lambda cost: float(cost.parameters),
}
"""Measured value of every limit, by its name in ``Constraints``; ``None`` if it was not measured."""


@dataclass(frozen=True)
class Excess:
    """A limit that a candidate does not keep.

    Attributes:
        limit: its name in ``Constraints``.
        allowed: the limit.
        measured: the candidate's value; ``None`` if it was not measured.
    """

    limit: str
    allowed: float
    measured: float | None

    @property
    def ratio(self) -> float:
        """Return measured over allowed; infinite if it was not measured."""
        return math.inf if self.measured is None else self.measured / self.allowed


def given_limits(constraints: Constraints) -> dict[str, float]:
    """Return the limits that were given, by name."""
    return {name: value for name in MEASURES if (value := getattr(constraints, name)) is not None}


def measured(candidate: Candidate, name: str) -> float | None:
    """Return a candidate's value of a limit; ``None`` if it was not measured."""
    return None if candidate.cost is None else MEASURES[name](candidate.cost)


def costs_missing(candidates: Sequence[Candidate], constraints: Constraints) -> bool:
    """Return whether limits were given that nothing is known about: no candidate has costs, or a reason for none."""
    unknown = all(one.cost is None and one.unmeasured is None for one in candidates)
    return bool(candidates and given_limits(constraints)) and unknown


def excesses(candidate: Candidate, constraints: Constraints) -> tuple[Excess, ...]:
    """Return the limits that a candidate does not keep; a value that was not measured keeps none."""
    found = []
    for name, allowed in given_limits(constraints).items():
        value = measured(candidate, name)
        if value is None or value > allowed:
            found.append(Excess(name, allowed, value))
    return tuple(found)
