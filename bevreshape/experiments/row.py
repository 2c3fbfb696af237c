"""A row of a study's table, of any level."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bevreshape.experiments.intervals import Comparison
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
            f"{where}: {who} {one.verdict()}" if where else f"{who} {one.verdict()}" for where, one in found.items()
        ]
        value = {where: str(one) for where, one in found.items()}
        return cls(claim, question, measured, value, "; ".join(verdicts), absolute=absolute)


def available(*makers: Callable[[], Sequence[Row]]) -> list[Row]:
    """Return the rows of all makers whose entries are done."""
    found: list[Row] = []
    for make in makers:
        with suppress(NotDoneError):
            found += make()
    return found
