"""Combinations of learning rate and options that tuning tries, the same number for every view transformer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, product

FACTOR = math.sqrt(10)
"""Ratio of neighbouring rates when a grid is extended."""

LOWEST, HIGHEST = 1e-8, 10.0
"""Rates beyond which no grid is extended."""

Values = dict[str, object]
"""A combination: values by config key."""


def combinations(
    key: str, rates: Sequence[float], number: int, options: Mapping[str, Sequence[object]]
) -> list[Values]:
    """Return the initial combinations: every rate with the defaults, then those that the number leaves room for.

    A view transformer that declares options spends them on these, one option changed at a time, the middle rates first.
    Any other spends them on rates in between.

    Args:
        key: of the rate in the config.
        rates: ascending.
        number: of combinations, at least that of the rates.
        options: other values of options than the default, by config key.
    """
    middle_first = sorted(rates, key=lambda rate: abs(rates.index(rate) - (len(rates) - 1) / 2))
    changes = [(option, value) for option, values in options.items() for value in values]
    declared: Iterator[Values] = (
        {key: rate, option: value} for rate, (option, value) in product(middle_first, changes)
    )
    further: Iterator[Values] = ({key: rate} for rate in _between(rates))
    found: list[Values] = [{key: rate} for rate in rates]
    for more in (declared, further):
        found += islice(more, number - len(found))
    return found


def _between(rates: Sequence[float]) -> Iterator[float]:
    """Yield the geometric means of neighbouring rates, then those of the denser grid, and so on."""
    grid = list(rates) if len(rates) > 1 else [rates[0] / FACTOR, rates[0], rates[0] * FACTOR]
    while True:
        means = [_rounded(math.sqrt(low * high), 4) for low, high in pairwise(grid)]
        yield from means
        grid = sorted([*grid, *means])


def beyond(best: Mapping[str, object], key: str, tried: Sequence[Mapping[str, object]]) -> Values | None:
    """Return the best combination with the next rate, if its rate is the highest or lowest tried with its options.

    Args:
        best: a combination.
        key: of the rate in the config.
        tried: all combinations so far, including the best and those that diverged.
    """
    options = {name: value for name, value in best.items() if name != key}
    rates = [_rate(one, key) for one in tried if {k: v for k, v in one.items() if k != key} == options]
    rate = _rate(best, key)
    for end, following in ((max(rates), rate * FACTOR), (min(rates), rate / FACTOR)):
        if rate == end and LOWEST <= following <= HIGHEST:
            return {**best, key: _rounded(following, 2)}
    return None


def _rate(values: Mapping[str, object], key: str) -> float:
    rate = values[key]
    assert isinstance(rate, float | int)
    return float(rate)


def _rounded(value: float, digits: int) -> float:
    """Return a number with some significant digits."""
    return float(f"{value:.{digits}g}")
