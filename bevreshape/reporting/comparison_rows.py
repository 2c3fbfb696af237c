"""The candidates of a comparison as rows: status, IoU, difference to the choice, and costs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bevreshape.comparison.answer import WORDS, Answer, Difference
from bevreshape.comparison.limits import fastest, measured
from bevreshape.comparison.outcome import Candidate
from bevreshape.comparison.pareto import training_minutes
from bevreshape.comparison.words import amount, count, difference_words, excess_words, iou_words


@dataclass(frozen=True)
class CandidateRow:
    """A candidate and what was found about it.

    Attributes:
        candidate: of the comparison.
        status: ``choice``, ``better``, ``alike``, ``worse``, ``open``, ``over limit``, ``not measured``,
            ``failed`` or ``not done``.
        difference: to the choice, if it is another trained candidate.
        notes: why it failed, or which limits it does not keep and by how much.
    """

    candidate: Candidate
    status: str
    difference: Difference | None = None
    notes: tuple[str, ...] = ()

    @property
    def iou(self) -> str:
        """Return test mean IoU, as mean ± standard deviation of the seeds."""
        return spread_words([run.iou["mean"] for run in self.candidate.runs])

    @property
    def to_choice(self) -> str:
        """Return the difference to the choice with half the width of its 95 % interval."""
        return "" if self.difference is None else difference_words(self.difference)

    @property
    def latency(self) -> str:
        """Return the milliseconds of the fastest form."""
        value = measured(self.candidate, "latency_ms")
        return "" if value is None else amount(value)

    @property
    def form(self) -> str:
        """Return the fastest form."""
        found = None if self.candidate.cost is None else fastest(self.candidate.cost)
        return "" if found is None else found[0]

    @property
    def memory(self) -> str:
        """Return the megabytes of a forward pass."""
        value = measured(self.candidate, "memory_mb")
        return "" if value is None else amount(value)

    @property
    def parameters(self) -> str:
        """Return the number of parameters."""
        return "" if self.candidate.cost is None else count(self.candidate.cost.parameters)

    @property
    def minutes(self) -> str:
        """Return the minutes of a judged training."""
        found = training_minutes(self.candidate)
        return "" if found is None else amount(found)


def candidate_rows(answer: Answer) -> list[CandidateRow]:
    """Return all candidates: the choice, the feasible ones by validation IoU, those over a limit, and the others."""
    rows = [] if answer.choice is None else [CandidateRow(answer.choice, "choice", notes=_unmeasured(answer.choice))]
    for rival in answer.rivals:
        one = rival.candidate
        if rival.excesses:
            status = "not measured" if all(excess.measured is None for excess in rival.excesses) else "over limit"
        else:
            status = "open" if rival.difference is None else WORDS[rival.verdict]
        notes = (*map(excess_words, rival.excesses), *_unmeasured(one))
        rows.append(CandidateRow(one, status, rival.difference, notes))
    rows += [CandidateRow(one, "failed", notes=(str(one.reason),)) for one in answer.failed]
    return rows + [CandidateRow(one, "not done") for one in answer.waiting]


def spread_words(values: Sequence[float]) -> str:
    """Return IoU over the seeds as mean ± standard deviation; the value alone for one seed."""
    if not values:
        return ""
    mean = iou_words(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {iou_words(statistics.stdev(values))}"


def _unmeasured(candidate: Candidate) -> tuple[str, ...]:
    return () if candidate.unmeasured is None else (f"its costs were not measured: {candidate.unmeasured}",)
