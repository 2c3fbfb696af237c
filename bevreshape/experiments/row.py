"""One line of a study's table, whatever level it is of."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from bevreshape.experiments.intervals import Comparison
from bevreshape.experiments.outcomes import NotDoneError


@dataclass(frozen=True)
class Row:
    """A measurement and what follows from it.

    Attributes:
        claim: of the article, such as ``A8``.
        question: what is asked.
        measured: what was measured, with its unit.
        value: by condition, in words and numbers.
        verdict: in words.
        primary: named in advance; its verdict is by Holm over all of these.
        absolute: what each side came to, where the value is a ratio: by method, in words and numbers.
        sentence: the finding of a primary row, for a reader who reads nothing else.
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
        """A row of one comparison, under an empty name, or of several, each with a verdict of its own.

        Args:
            claim: see the attributes.
            question: likewise.
            measured: likewise.
            found: comparisons by condition.
            who: is ahead or behind, for the verdicts.
            absolute: see the attributes.
        """
        verdicts = [
            f"{where}: {who} {one.verdict()}" if where else f"{who} {one.verdict()}" for where, one in found.items()
        ]
        value = {where: str(one) for where, one in found.items()}
        return cls(claim, question, measured, value, "; ".join(verdicts), absolute=absolute)


def available(*makers: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of those that do not lack an entry."""
    found: list[Row] = []
    for make in makers:
        with suppress(NotDoneError):
            found += make()
    return found
