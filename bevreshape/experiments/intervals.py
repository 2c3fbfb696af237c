"""Verdicts from paired measurements of several seeds, by rules that are symmetric in the two methods."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import pairwise
from typing import TypeVar

from scipy.stats import t as student

from bevreshape.errors import InputError

K = TypeVar("K")

ALPHA = 0.05
"""Significance level of two-sided intervals, and of all primary rows together (Holm 1979)."""

MARGIN = math.log(1.1)
"""Methods within 10 % of each other are alike, in a study."""


class Verdict(StrEnum):
    """The first of two methods, compared with the second."""

    AHEAD = "ahead"
    ALIKE = "alike"
    BEHIND = "behind"
    OPEN = "open"


@dataclass(frozen=True)
class Bounds:
    """The measurement of one seed: a value, or bounds if it was found on a grid or never reached."""

    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Bounds":
        """Return the bounds of a known value."""
        return cls(value, value)


@dataclass(frozen=True)
class Comparison:
    """Differences of two methods, seed by seed: of a score, or log ratios ``log(other / own)`` of needs or errors.

    Attributes:
        seeds: paired differences, above 0 where the first method is ahead.
        margin: difference up to which the methods are alike.
    """

    seeds: tuple[Bounds, ...]
    margin: float = MARGIN

    @classmethod
    def of(cls, own: Sequence[Bounds | float], other: Sequence[Bounds | float]) -> "Comparison":
        """Compare the needs or errors of two methods, in the same order of seeds.

        Raises:
            InputError: when the numbers of seeds differ or are below two, or a value is not positive.
        """
        if len(own) != len(other) or len(own) < 2:
            raise InputError(f"study: {len(own)} and {len(other)} seeds cannot be paired; run two or more of both")
        ratios = []
        for mine, theirs in zip(map(_bounds, own), map(_bounds, other), strict=True):
            if not (mine.low > 0 and theirs.low > 0):
                raise InputError(f"study: the ratio of {theirs} to {mine} needs two positive values")
            ratios.append(Bounds(_log(theirs.low / mine.high), _log(theirs.high / mine.low)))
        return cls(tuple(ratios))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float, float]:
        """Return the mean and its two-sided interval by Student's t; bounds widen it, perhaps to infinity."""
        return interval(self.seeds, alpha)

    @property
    def p(self) -> float:
        """Return the smallest α whose interval is within one of the regions: above, within, or below the margin.

        The probability of a wrong region is at most α, with α/2 at each end of the interval.
        """
        lows, highs = [one.low for one in self.seeds], [one.high for one in self.seeds]
        ahead = _beyond(lows, self.margin)
        behind = _beyond([-high for high in highs], self.margin)
        within = max(_beyond(lows, -self.margin), _beyond([-high for high in highs], -self.margin))
        return min(1.0, 2 * min(ahead, behind, within))

    def verdict(self, alpha: float = ALPHA) -> Verdict:
        """Return the verdict by the interval."""
        _, low, high = self.interval(alpha)
        if low > self.margin:
            return Verdict.AHEAD
        if high < -self.margin:
            return Verdict.BEHIND
        return Verdict.ALIKE if low >= -self.margin and high <= self.margin else Verdict.OPEN

    def __str__(self) -> str:
        """Return the ratio of needs or errors with its interval."""
        mean, low, high = (_power(x) for x in self.interval())
        if low == 0 and high == math.inf:
            return "unknown"
        if low == 0 or high == math.inf:
            return f"at most {high:.3g}" if low == 0 else f"at least {low:.3g}"
        return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def interval(seeds: Sequence[Bounds], alpha: float = ALPHA) -> tuple[float, float, float]:
    """Return the mean over seeds and its two-sided interval by Student's t; bounds widen it, perhaps to infinity."""
    lows, highs = [one.low for one in seeds], [one.high for one in seeds]
    middles = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    return _mean(middles), _mean(lows) - _half(lows, alpha), _mean(highs) + _half(highs, alpha)


def holm(comparisons: Mapping[K, Comparison], alpha: float = ALPHA) -> dict[K, Verdict]:
    """Return verdicts of several rows; any is wrong with a probability of at most ``alpha`` (Holm 1979)."""
    verdicts = dict.fromkeys(comparisons, Verdict.OPEN)
    found = sorted(((comparison.p, name) for name, comparison in comparisons.items()), key=lambda one: one[0])
    for done, (p, name) in enumerate(found):
        level = alpha / (len(found) - done)
        if p > level:
            break  # and so are all after it
        verdicts[name] = comparisons[name].verdict(level)
    return verdicts


def reached(steps: Sequence[int], values: Sequence[float], threshold: float) -> Bounds:
    """Return the measured steps between which a falling curve first reaches a threshold."""
    before = 0.0
    for step, value in zip(steps, values, strict=True):
        if value <= threshold:
            return Bounds(max(before, 1.0), float(step))
        before = float(step)
    return Bounds(before, math.inf)


def crossover(levels: Sequence[float], advantages: Sequence[float]) -> Bounds:
    """Return the level from which an advantage stays positive, interpolated in the level's logarithm.

    Args:
        levels: ascending; the first may be 0.
        advantages: log ratio at each level.

    Returns:
        The level at which it turns positive: below the lowest positive level if it is always positive, above the
        highest if it is not positive there.

    Raises:
        InputError: when levels do not ascend, or there are not as many advantages.
    """
    if len(levels) != len(advantages) or any(a >= b for a, b in pairwise(levels)):
        raise InputError(
            f"study: levels {list(levels)} must ascend, with an advantage each; {len(advantages)} are given"
        )
    last = max((i for i, value in enumerate(advantages) if not value > 0), default=None)
    if last is None:
        return Bounds(0.0, float(levels[0]))
    if last == len(levels) - 1:
        return Bounds(float(levels[-1]), math.inf)
    share = advantages[last] / (advantages[last] - advantages[last + 1])
    low, high = levels[last], levels[last + 1]
    if low == 0:
        return Bounds.exactly(share * high)
    return Bounds.exactly(low * (high / low) ** share)


def exponent(sizes: Sequence[float], amounts: Sequence[Bounds | float]) -> Bounds:
    """Fit e in ``amount ∝ sizeᵉ`` by least squares of logarithms; return its bounds."""
    x = [math.log(size) for size in sizes]
    middle = statistics.mean(x)
    weights = [(one - middle) / sum((each - middle) ** 2 for each in x) for one in x]
    low = high = 0.0
    for weight, amount in zip(weights, map(_bounds, amounts), strict=True):
        if abs(weight) > 1e-12:  # the middle of three sizes has none
            ends = weight * _log(amount.low), weight * _log(amount.high)
            low, high = low + min(ends), high + max(ends)
    return Bounds(low, high)


def _bounds(value: Bounds | float) -> Bounds:
    return value if isinstance(value, Bounds) else Bounds.exactly(value)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if all(map(math.isfinite, values)) else sum(values)


def _half(values: Sequence[float], alpha: float) -> float:
    """Return half the width of an interval; 0 if values are not finite, since the mean is then infinite."""
    if not all(map(math.isfinite, values)):
        return 0.0
    return _quantile(alpha, len(values)) * statistics.stdev(values) / math.sqrt(len(values))


@cache
def _quantile(alpha: float, count: int) -> float:
    return float(student.ppf(1 - alpha / 2, count - 1))


def _beyond(values: Sequence[float], bound: float) -> float:
    """Return the one-sided p of the hypothesis that the mean is above the bound."""
    if not all(map(math.isfinite, values)):
        return 0.0 if _mean(values) > bound else 1.0
    difference, error = statistics.mean(values) - bound, statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return 0.0 if difference > 0 else 1.0
    return float(student.sf(difference / error, len(values) - 1))


def _power(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
