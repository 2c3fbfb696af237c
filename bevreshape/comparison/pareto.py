"""Pareto fronts of a comparison: candidates for which no other has a higher IoU at no higher cost."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bevreshape.comparison.limits import measured
from bevreshape.comparison.outcome import Candidate


@dataclass(frozen=True)
class CostAxis:
    """A cost against which IoU is drawn.

    Attributes:
        name: of the cost, the limit's name in ``Constraints`` if it has one.
        label: with the unit.
        value: of a candidate; ``None`` if it is unknown.
    """

    name: str
    label: str
    value: Callable[[Candidate], float | None]


def training_minutes(candidate: Candidate) -> float | None:
    """Return the median duration of a judged training; its machine may have been shared."""
    return statistics.median(run.seconds for run in candidate.runs) / 60 if candidate.runs else None


AXES = (
    CostAxis("latency_ms", "latency [ms]", lambda one: measured(one, "latency_ms")),
    CostAxis("memory_mb", "memory [MB]", lambda one: measured(one, "memory_mb")),
    CostAxis("parameters", "parameters", lambda one: measured(one, "parameters")),
    CostAxis("training", "training time [min]", training_minutes),
)
"""Costs of the charts."""


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points that no other dominates, the cheapest first.

    A point dominates another if it has no higher cost and no lower score, and differs in one of them.

    Args:
        points: cost and score by name.
    """
    front: list[str] = []
    best, at = float("-inf"), float("nan")
    for name in sorted(points, key=lambda one: (points[one][0], -points[one][1])):
        cost, score = points[name]
        if score > best or (score == best and cost == at):
            front.append(name)
            best, at = score, cost
    return front
