"""The budget of a comparison, the same for every view transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Len

from bevreshape.config.options import Count, Steps, read_value
from bevreshape.config.settings import Errors
from bevreshape.errors import InputError

TUNING_SEED = 1_000_000
"""Seeds from this one on are only for tuning."""


@dataclass(frozen=True)
class Budget:
    """The budget of every view transformer, group ``budget`` of the config.

    Attributes:
        steps: of a judged training.
        rungs: steps of tuning trainings, ascending and at most ``steps``.
        rates: initial grid of learning rates, ascending.
        trials: number of initial combinations of rate and options; ``None`` for the number of rates.
        tuning_seeds: number of seeds of every tuning training.
        seeds: number of judged seeds.
        validations: of a judged training, evenly spaced; one of tuning is validated at its end.
        errors: calibration errors in the test.
        repeats: timed rounds of the costs.

    Raises:
        InputError: when the values contradict each other.
    """

    steps: Steps
    rungs: Annotated[tuple[Steps, ...], Len(1)]
    rates: Annotated[tuple[Annotated[float, Gt(0), Le(10)], ...], Len(1)]
    trials: Count | None
    tuning_seeds: Count
    seeds: Annotated[int, Ge(1), Le(1000)]
    validations: Count
    errors: Errors
    repeats: Count

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Budget":
        """Build a budget from plain values.

        Raises:
            InputError: when a key is unknown, or a value has another type or is out of range.
        """
        budget: Budget = read_value("budget", cls, plain)
        return budget

    def __post_init__(self) -> None:
        for key in ("rungs", "rates"):
            values = getattr(self, key)
            if sorted(set(values)) != list(values):
                raise InputError(f"budget.{key}={list(values)} must be different numbers in ascending order")
        if self.rungs[-1] > self.steps:
            raise InputError(
                f"budget.rungs={list(self.rungs)} must end at budget.steps={self.steps} or before; lower the last one, "
                "or raise the steps"
            )
        if self.combinations < len(self.rates):
            raise InputError(
                f"budget.trials={self.trials} is less than the {len(self.rates)} rates of "
                f"budget.rates={list(self.rates)}; raise it, or leave rates out"
            )

    @property
    def combinations(self) -> int:
        """Return the number of initial combinations."""
        return len(self.rates) if self.trials is None else self.trials

    @property
    def judged(self) -> range:
        """Return the judged seeds."""
        return range(self.seeds)

    @property
    def tuning(self) -> range:
        """Return the seeds of tuning."""
        return range(TUNING_SEED, TUNING_SEED + self.tuning_seeds)
