"""A row of a study's table, of any level."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bevreshape.experiments.intervals import Comparison, Verdict
from bevreshape.experiments.outcomes import NotDoneError


@dataclass(frozen=True)
class Row:
    """A measurement and its verdict.

    Attributes:
        claim: number of the article's claim, such as ``A8``.
        question: the question.
        measured: what was measured, with its unit.
        value: by condition, in words and numbers.
        verdict: in words.
        primary: named in advance; the verdict is by Holm's procedure over all primary rows.
        absolute: if the value is a ratio, the result of each method, in words and numbers.
        sentence: the finding of a primary row, in one sentence.
    """

    claim: str
    question: str
    measured: str
    value: Mapping[str, str]
    verdict: str
    primary: bool = False
    absolute: Mapping[str, str] = field(default_factory=dict)
    sentence: str = ""

    @classmethod
    def compared(
        cls,
        claim: str,
        question: str,
        measured: str,
        found: Mapping[str, Comparison],
        who: str,
        absolute: Mapping[str, str],
    ) -> "Row":
        """Build a row of one comparison, with an empty name, or of several, each with its own verdict.

        Args:
            claim: see the attributes.
            question: likewise.
            measured: likewise.
            found: comparisons by condition.
            who: the method that is ahead or behind, for the verdicts.
            absolute: see the attributes.
        """
        verdicts = [
            f"{where}: {judged(who, one.verdict())}" if where else judged(who, one.verdict())
            for where, one in found.items()
        ]
        value = {where: str(one) for where, one in found.items()}
        return cls(claim, question, measured, value, "; ".join(verdicts), absolute=absolute)


def judged(who: str, verdict: Verdict) -> str:
    """Format the verdict about a method; an open one is about neither."""
    return str(verdict) if verdict is Verdict.OPEN else f"{who} {verdict}"


def dependence(spread: float) -> str:
    """Say whether attention's A depends on X, by its spread over inputs relative to its mean."""
    change = "changes" if spread > 0.1 else "hardly changes" if spread > 0.01 else "does not change"
    return f"attention: A {change} with X"


def spread_words(of_a: float, of_jacobian: float) -> str:
    """Format the spreads of a method over inputs, relative to their mean."""
    return f"W 0 by construction, A {of_a:.2g}, Jacobian {of_jacobian:.2g}"


def available(*makers: Callable[[], Sequence[Row]]) -> list[Row]:
    """Return the rows of all makers whose entries are done."""
    found: list[Row] = []
    for make in makers:
        with suppress(NotDoneError):
            found += make()
    return found
