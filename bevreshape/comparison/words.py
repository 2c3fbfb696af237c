"""Figures of a comparison as words."""

import math
from collections.abc import Sequence

from bevreshape.comparison.answer import Difference
from bevreshape.comparison.limits import Excess


def iou_words(value: float) -> str:
    """Return an IoU with three decimals and without the leading zero, such as ``.654``."""
    return "" if math.isnan(value) else f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """Return a difference in IoU with its sign, such as ``−.021``."""
    found = iou_words(abs(value))
    return found if found == ".000" else f"{'−' if value < 0 else '+'}{found}"


def difference_words(found: Difference) -> str:
    """Return a difference with half the width of its interval, such as ``−.021 ± .011``."""
    if found.interval is None:
        return signed(found.mean)
    return f"{signed(found.mean)} ± {iou_words((found.interval[1] - found.interval[0]) / 2)}"


def amount(value: int | float) -> str:
    """Return a number with three significant digits, such as ``11.2``, ``0.085`` or ``1,230``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int | float) -> str:
    """Return a count with three significant digits, such as ``525 k`` or ``2.3 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            return f"{amount(float(f'{value / size:.3g}'))}{unit}"
    return amount(value)


def limit_words(name: str, value: int | float) -> str:
    """Return a value of a limit with its unit, such as ``20 ms``, ``500 MB`` or ``5 M parameters``."""
    if name == "parameters":
        return f"{count(value)} parameters"
    return f"{amount(value)} {'ms' if name == 'latency_ms' else 'MB'}"


SUBJECTS = {"latency_ms": "latency", "memory_mb": "memory", "parameters": "number of parameters"}
"""Names of the limited quantities in sentences."""


def excess_words(excess: Excess) -> str:
    """Return by how much a limit is exceeded, such as ``24.1 ms are 4.1 ms above the limit of 20 ms``."""
    limit = limit_words(excess.limit, excess.allowed)
    if excess.measured is None:
        return f"its {SUBJECTS[excess.limit]} was not measured, and the limit is {limit}"
    over = limit_words(excess.limit, excess.measured - excess.allowed)
    value = limit_words(excess.limit, excess.measured).removesuffix(" parameters")
    return f"{value} is {over.removesuffix(' parameters')} above the limit of {limit}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """Return words as a list in a sentence, such as ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
