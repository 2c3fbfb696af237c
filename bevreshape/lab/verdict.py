"""From figures of several seeds to a verdict, by rules that do not know which way a claim expects them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from scipy.stats import t as student

from bevreshape.errors import InputError

CONFIDENCE = 0.95


class Known(StrEnum):
    """What is known of a figure; a run that never reached a threshold took *at least* as long as it ran."""

    EXACT = "exact"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Figure:
    """What one seed measured.

    Attributes:
        value: the figure.
        known: what is known of it.
        between: of one that was found on a grid, such as the steps at which the error is looked at, the last place where it
            was not there yet and the first where it was.
    """

    value: float | int
    known: Known = Known.EXACT
    between: tuple[float, float] | None = None

    @property
    def bracket(self) -> tuple[float, float]:
        """Lower and upper bound, as far as the figure is known at all."""
        return (float(self.value), float(self.value)) if self.between is None else self.between

    def over(self, other: "Figure") -> "Figure":
        """The ratio of two figures, both positive.

        Raises:
            InputError: when one is not positive.
        """
        if not (self.value > 0 and other.value > 0):
            raise InputError(f"verdict: the ratio of {self.value:g} to {other.value:g} needs two positive figures")
        turned = {Known.AT_LEAST: Known.AT_MOST, Known.AT_MOST: Known.AT_LEAST}
        known = {self.known, turned.get(other.known, other.known)} - {Known.EXACT}
        (low, high), (least, most) = self.bracket, other.bracket
        between = (low / most, high / least if least > 0 else math.inf) if self.between or other.between else None
        if not known:
            return Figure(self.value / other.value, between=between)
        return Figure(self.value / other.value, known.pop() if len(known) == 1 else Known.NOTHING, between)


@dataclass(frozen=True)
class Estimate:
    """Mean of several seeds, with the interval that holds the true mean with 95 % confidence, were seeds drawn anew.

    Attributes:
        mean: of the figures; geometric where it is of ratios.
        low: lower end, by Student's t; −∞ where figures are upper bounds.
        high: upper end; ∞ where they are lower bounds.
        seeds: how many.
        censored: how many of them are bounds alone.
    """

    mean: float
    low: float
    high: float
    seeds: int
    censored: int

    def __str__(self) -> str:
        if self.low == -math.inf and self.high == math.inf:
            return f"unknown ({self.censored} of {self.seeds} seeds beyond what was tried)"
        beyond = f" ({self.censored} of {self.seeds} seeds censored)" if self.censored else ""
        if self.high == math.inf:
            return f"at least {_short(self.low)}{beyond}"
        if self.low == -math.inf:
            return f"at most {_short(self.high)}{beyond}"
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]{beyond}"


class Verdict(StrEnum):
    """What came of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "undecided"


def estimate(figures: Sequence[Figure], *, ratios: bool = False) -> Estimate:
    """Mean and 95 % interval of independent seeds; of ratios both are taken of their logarithms.

    A figure that is a lower bound leaves the upper end open, and the other way round: bounds are used as such, not as if
    they had been measured, and the end that is left holds for every seed. Where figures were found on a grid, the lower
    end is that of their lower bounds and the upper end that of their upper ones.

    Raises:
        InputError: for fewer than two seeds, which have no spread, or figures that are not numbers.
    """
    if len(figures) < 2:
        raise InputError(f"verdict: {len(figures)} seed has no spread; run two or more")
    values = [math.log(figure.value) if ratios else figure.value for figure in figures]
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"verdict: figures {[figure.value for figure in figures]} must be finite numbers")
    mean = statistics.mean(values)
    back = math.exp if ratios else float
    known = {figure.known for figure in figures}
    bounds = known != {Known.EXACT}  # whose spread is not that of what they bound
    lows, highs = (
        [_log(bound) if ratios else bound for bound in side]
        for side in zip(*(figure.bracket for figure in figures), strict=True)
    )
    low, high = _mean(lows) - _half(lows), _mean(highs) + _half(highs)
    low, high = (min(low, *lows), max(high, *highs)) if bounds else (low, high)
    low = -math.inf if known & {Known.AT_MOST, Known.NOTHING} else back(low)
    high = math.inf if known & {Known.AT_LEAST, Known.NOTHING} else back(high)
    censored = sum(figure.known is not Known.EXACT for figure in figures)
    return Estimate(back(mean), low, high, len(figures), censored)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if all(map(math.isfinite, values)) else sum(values)


def _half(values: Sequence[float]) -> float:
    """Half the width of their 95 % interval, by Student's t; 0 of values that are not finite, whose mean says all."""
    if not all(map(math.isfinite, values)):
        return 0.0
    half = float(student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * statistics.stdev(values)
    return half / math.sqrt(len(values))


def above(found: Estimate, threshold: float | int) -> Verdict:
    """Whether it lies above a threshold: so if the whole interval does, not so if the whole interval lies below.

    An interval that begins at the threshold lies above it, since what was found on a grid lies beyond its lower bound.
    """
    if found.high <= threshold:
        return Verdict.FAILS
    return Verdict.HOLDS if found.low >= threshold else Verdict.OPEN


def below(found: Estimate, threshold: float | int) -> Verdict:
    """Whether it lies below a threshold, likewise."""
    if found.high < threshold:
        return Verdict.HOLDS
    return Verdict.FAILS if found.low >= threshold else Verdict.OPEN


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim with several parts: it holds if all do, and does not if one does not."""
    if Verdict.FAILS in verdicts:
        return Verdict.FAILS
    return Verdict.HOLDS if all(one is Verdict.HOLDS for one in verdicts) else Verdict.OPEN


def where(verdicts: Sequence[tuple[str, Verdict]]) -> str:
    """Of a claim looked at under several conditions: under which it holds, under which it does not, and which are open.

    Args:
        verdicts: condition and verdict.
    """
    if len({one for _, one in verdicts}) == 1:
        return str(verdicts[0][1])
    told = []
    for kind in Verdict:
        conditions = [condition for condition, one in verdicts if one is kind]
        if conditions:
            told.append(f"{kind} where {'; '.join(conditions)}")
    return " · ".join(told)


def crossover(levels: Sequence[float | int], differences: Sequence[float]) -> Figure:
    """At which level a difference turns from negative to positive for good: between which two, and linear in between.

    Args:
        levels: ascending, such as standard deviations of jitter.
        differences: at each of them, such as IoU of attention less that of the MLP.

    Returns:
        At most the lowest level where it is positive throughout, at least the highest where it never stays so.

    Raises:
        InputError: when levels do not ascend, or there are not as many differences.
    """
    values = list(differences)
    if len(levels) != len(values) or any(a >= b for a, b in pairwise(levels)):
        raise InputError(f"verdict: levels {list(levels)} must ascend, with a difference each; {len(values)} are given")
    if values[-1] <= 0:
        return Figure(float(levels[-1]), Known.AT_LEAST)
    last = max((i for i, value in enumerate(values) if value <= 0), default=None)
    if last is None:
        return Figure(float(levels[0]), Known.AT_MOST)
    share = values[last] / (values[last] - values[last + 1])
    between = float(levels[last]), float(levels[last + 1])
    return Figure(levels[last] + share * (levels[last + 1] - levels[last]), between=between)


def _short(value: float) -> str:
    return f"{value:.3g}"
