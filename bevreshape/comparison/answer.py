"""Which candidate is best under the constraints, and what is known about the others.

The choice is made by the mean IoU on the validation split, over the seeds. No test label takes part in it, so that the
test IoU of the choice is not raised by choosing. A lucky training is lucky on both splits, though: among 15 candidates
of equal true IoU, the chosen one is ahead of another by a single 95 % interval in up to 11 % of the cases, instead of
2.5 %, where the seeds differ by more than the margin (simulated). Verdicts are therefore corrected over the pairs of
all feasible candidates by Holm's procedure (1979), which holds for whatever pair is looked at afterwards. An interval
is that of its pair alone.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from bevreshape.comparison.limits import Excess, excesses
from bevreshape.comparison.outcome import Candidate, Constraints, Outcome
from bevreshape.experiments.intervals import Bounds, Comparison, Verdict, holm

WORDS = {Verdict.AHEAD: "better", Verdict.ALIKE: "alike", Verdict.BEHIND: "worse", Verdict.OPEN: "open"}
"""Words for the verdict on a candidate compared with the choice."""


@dataclass(frozen=True)
class Difference:
    """Test mean IoU of a candidate minus that of the choice, over their common seeds.

    Attributes:
        seeds: number of common seeds.
        mean: over these seeds.
        interval: two-sided 95 % interval of Student's t; ``None`` for one seed.
    """

    seeds: int
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Rival:
    """A trained candidate that is not the choice.

    Attributes:
        candidate: compared with the choice.
        difference: to the choice; ``None`` without a choice or a common seed.
        verdict: by the difference and the margin, corrected over all pairs; open if it is not feasible.
        excesses: limits that it does not keep; empty if it is feasible.
    """

    candidate: Candidate
    difference: Difference | None
    verdict: Verdict = Verdict.OPEN
    excesses: tuple[Excess, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The answer of a comparison.

    Attributes:
        choice: the best feasible candidate; ``None`` if no candidate is feasible.
        feasible: the other feasible candidates, the best validation IoU first.
        infeasible: trained candidates that break a limit, the best validation IoU first.
        failed: candidates with a reason instead of results.
        waiting: candidates without results so far.
    """

    choice: Candidate | None
    feasible: tuple[Rival, ...]
    infeasible: tuple[Rival, ...]
    failed: tuple[Candidate, ...]
    waiting: tuple[Candidate, ...]

    @property
    def rivals(self) -> tuple[Rival, ...]:
        """Return all trained candidates but the choice."""
        return (*self.feasible, *self.infeasible)


def find_answer(outcome: Outcome) -> Answer:
    """Return the choice under the constraints, and every other candidate compared with it.

    Of candidates with equal validation IoU, the first one is chosen.
    """
    trained = ranked(outcome)
    broken = {one.name: excesses(one, outcome.constraints) for one in trained}
    feasible = [one for one in trained if not broken[one.name]]
    choice = feasible[0] if feasible else None
    verdicts = _verdicts(feasible, outcome.margin)
    rivals = {
        one.name: Rival(
            one,
            None if choice is None else difference(one, choice),
            verdicts.get(one.name, Verdict.OPEN),
            broken[one.name],
        )
        for one in trained
        if one is not choice
    }
    return Answer(
        choice,
        tuple(rivals[one.name] for one in feasible if one is not choice),
        tuple(rivals[one.name] for one in trained if broken[one.name]),
        tuple(one for one in outcome.candidates if one.reason is not None),
        tuple(one for one in outcome.candidates if one.reason is None and not one.runs),
    )


def ranked(outcome: Outcome) -> list[Candidate]:
    """Return the trained candidates, the highest mean validation IoU first."""
    trained = [one for one in outcome.candidates if one.reason is None and one.runs]
    return sorted(trained, key=lambda one: -validation_iou(one))


def choose(
    outcome: Outcome, constraints: Constraints, accept: Callable[[Candidate], bool] = lambda _: True
) -> Candidate | None:
    """Return the candidate that would be chosen under other constraints, among the accepted ones."""
    found = (one for one in ranked(outcome) if accept(one) and not excesses(one, constraints))
    return next(found, None)


def without(constraints: Constraints, *names: str) -> Constraints:
    """Return constraints without some limits."""
    return replace(constraints, **dict.fromkeys(names))


def validation_iou(candidate: Candidate) -> float:
    """Return mean IoU on the validation split, over the seeds."""
    return statistics.mean(run.validation for run in candidate.runs)


def mean_test_iou(candidate: Candidate, key: str = "mean") -> float:
    """Return IoU of a class, or of their mean, on the test split, over the seeds."""
    return statistics.mean(run.iou[key] for run in candidate.runs)


def difference(candidate: Candidate, choice: Candidate) -> Difference | None:
    """Return the difference in test mean IoU to the choice; ``None`` if they have no common seed."""
    found = _paired(candidate, choice)
    if not found:
        return None
    if len(found) == 1:
        return Difference(1, found[0], None)
    mean, low, high = _comparison(found, margin=0.0).interval()
    return Difference(len(found), mean, (low, high))


def _verdicts(feasible: Sequence[Candidate], margin: float) -> dict[str, Verdict]:
    """Return the verdicts on all but the first candidate compared with it, corrected over all pairs."""
    pairs = {
        (other.name, one.name): _comparison(found, margin)
        for one, other in combinations(feasible, 2)
        if len(found := _paired(other, one)) > 1
    }
    return {other: verdict for (other, one), verdict in holm(pairs).items() if one == feasible[0].name}


def _paired(candidate: Candidate, choice: Candidate) -> list[float]:
    """Return the differences in test mean IoU over the common seeds."""
    own, other = ({run.seed: run.iou["mean"] for run in one.runs} for one in (candidate, choice))
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def _comparison(differences: Sequence[float], margin: float) -> Comparison:
    return Comparison(tuple(map(Bounds.exactly, differences)), margin)
