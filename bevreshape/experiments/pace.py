"""Duration of a training step: all methods in turn in one process, so that other load affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bevreshape.experiments.models import Query, called
from bevreshape.experiments.runs import TRAINING, Setting, stream_of
from bevreshape.experiments.training import Recipe, RunningAverage, StackedAdamW, take_step
from bevreshape.training.hardware import processor_name

TURNS = 60
"""Turns of each method; the median ignores the first ones with cold caches."""

STEPS = 3
"""Steps in a turn, to reduce the effect of the caches that the previous method left."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a step.

    Attributes:
        processor: on which they were measured.
        threads: of torch.
        seconds: median over turns, by :func:`~bevreshape.experiments.models.called`.
    """

    processor: str
    threads: int
    seconds: Mapping[str, float]

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {**asdict(self), "seconds": {name: float(f"{one:.3g}") for name, one in self.seconds.items()}}


def measure_pace(methods: Sequence[tuple[str, Query]], batch: int) -> Pace:
    """Measure steps of a single run, on samples of a fixed camera that are drawn in advance.

    Args:
        methods: names and forms of Q.
        batch: samples per step.
    """
    return Pace(
        processor_name(),
        torch.get_num_threads(),
        median_seconds({called(*one): _step(*one, batch) for one in methods}),
    )


def median_seconds(steps: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each function, called in turn."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            taken[name].append((time.perf_counter() - start) / STEPS)
    return {name: statistics.median(found) for name, found in taken.items()}


def _step(method: str, query: Query, batch: int) -> Callable[[], None]:
    setting = Setting(method)
    model, lesson = setting.build([0], [query]), stream_of(setting, 0, TRAINING).next(batch)
    parameters = list(model.parameters())
    optimizer, average = StackedAdamW(parameters, [Recipe(1e-3)]), RunningAverage(parameters)
    return lambda: take_step(model, lesson, optimizer, average)
