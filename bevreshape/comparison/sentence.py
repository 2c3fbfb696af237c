"""The answer as one sentence: the choice, its margin to the next candidate, and what would change the choice."""

from bevreshape.comparison.answer import Answer, Difference, Rival, choose, difference, mean_test_iou, ranked, without
from bevreshape.comparison.limits import clearly_below, costs_missing, fastest, given_limits, measured
from bevreshape.comparison.outcome import Candidate, Constraints, Outcome
from bevreshape.comparison.words import (
    SUBJECTS,
    amount,
    difference_words,
    excess_words,
    iou_words,
    limit_words,
    listed,
    signed,
)
from bevreshape.experiments.intervals import Verdict

TOO_MUCH = {"latency_ms": "too slow", "memory_mb": "too much", "parameters": "too many"}
"""Words for a value that a stricter limit would exclude."""


def answer_sentence(outcome: Outcome, answer: Answer) -> str:
    """Return the answer as one sentence.

    Args:
        outcome: of the comparison, complete or not.
        answer: to it.
    """
    sentence = "; ".join(_clauses(outcome, answer)).rstrip(".")
    if outcome.missing:
        done = f"{outcome.planned - outcome.missing} of {outcome.planned} results are done"
        sentence = f"not complete ({done}), so far: {sentence}" if ranked(outcome) else f"no answer yet: {done}"
    named = any(sentence.startswith(one.name) for one in outcome.candidates)
    return f"{sentence}." if named else f"{sentence[0].upper()}{sentence[1:]}."


def _clauses(outcome: Outcome, answer: Answer) -> list[str]:
    if not ranked(outcome):
        return [_nothing_trained(outcome, answer)]
    if answer.choice is None:
        known = len(answer.infeasible) > 1 and not costs_missing(ranked(outcome), outcome.constraints)
        found = [_nothing_feasible(outcome, answer), *(_loosened(outcome, None) if known else [])]
    else:
        head, following = _head(outcome, answer, answer.choice), _following(outcome, answer)
        found = [f"{head}: {following}" if following else head]
        if not _all_alike(answer):
            found += _tightened(outcome, answer.choice)
        found += _loosened(outcome, answer.choice)
    return [*found, *_failed(outcome, answer)]


def _nothing_trained(outcome: Outcome, answer: Answer) -> str:
    if not answer.failed:
        return "no view transformer was compared"
    first = answer.failed[0]
    if len(answer.failed) == 1:
        return f"{first.name} could not be trained: {first.reason}"
    return f"none of {len(answer.failed)} view transformers could be trained, the first, {first.name}: {first.reason}"


def _nothing_feasible(outcome: Outcome, answer: Answer) -> str:
    trained = ranked(outcome)
    if costs_missing(trained, outcome.constraints):
        return (
            f"costs are missing, so nothing can be chosen within {_limits(outcome.constraints)} yet, and "
            f"{trained[0].name} has the highest IoU on the validation split"
        )
    nearest = min(answer.infeasible, key=lambda rival: max(one.ratio for one in rival.excesses))
    broken = listed([excess_words(one) for one in nearest.excesses])
    name, iou = nearest.candidate.name, iou_words(mean_test_iou(nearest.candidate))
    if len(answer.infeasible) == 1:
        return f"{name} (mean IoU {iou}) does not stay within {_limits(outcome.constraints)}: {broken}"
    return (
        f"none of {len(answer.infeasible)} view transformers stays within {_limits(outcome.constraints)}: the nearest "
        f"is {name} (mean IoU {iou}), where {broken}"
    )


def _head(outcome: Outcome, answer: Answer, choice: Candidate) -> str:
    """Name the choice, with its IoU and latency."""
    figures = f"mean IoU {iou_words(mean_test_iou(choice))} on the test split"
    if choice.cost is not None and (found := fastest(choice.cost)) is not None:
        figures += f", {amount(found[1])} ms {found[0]}"
    limits = f"within {_limits(outcome.constraints)}" if given_limits(outcome.constraints) else ""
    if answer.feasible or outcome.missing:
        return f"{f'{limits}, ' if limits else ''}take {choice.name} ({figures})"
    if answer.infeasible:
        return f"{limits}, only {choice.name} is left ({figures})"
    if answer.failed:
        return f"only {choice.name} could be trained ({figures}{f', {limits}' if limits else ''})"
    return f"{choice.name} was compared with no other ({figures}{f', {limits}' if limits else ''})"


def _following(outcome: Outcome, answer: Answer) -> str:
    """Compare the choice with the next candidate, and name others that are alike, better or not decided."""
    if not answer.feasible:
        return ""
    if _all_alike(answer):
        return _any_will_do(outcome, answer)
    following, *others = answer.feasible
    found = [] if following.verdict is Verdict.AHEAD else [_next(following, outcome.margin)]
    alike = [one.candidate.name for one in others if one.verdict is Verdict.ALIKE]
    if alike:
        found.append(f"{listed(alike)} {'is' if len(alike) == 1 else 'are'} alike")
    better = [f"{one.candidate.name} ({_words(one)})" for one in answer.feasible if one.verdict is Verdict.AHEAD]
    if better:
        first = [] if found else ["the validation split puts it first"]
        found += [*first, f"but on the test split {listed(better)} {'is' if len(better) == 1 else 'are'} better"]
    return ", ".join(found)


def _all_alike(answer: Answer) -> bool:
    return bool(answer.feasible) and all(one.verdict is Verdict.ALIKE for one in answer.feasible)


def _any_will_do(outcome: Outcome, answer: Answer) -> str:
    assert answer.choice is not None
    rivals = [one.candidate for one in answer.feasible]
    named = f"{rivals[0].name} is" if len(rivals) == 1 else f"all {len(rivals)} others are"
    found = f"{named} alike within {_margin(outcome.margin)}"
    latencies = {one.name: measured(one, "latency_ms") for one in (answer.choice, *rivals)}
    known = {name: value for name, value in latencies.items() if value is not None}
    if len(known) < len(latencies):
        return found
    quickest = min(known, key=lambda name: known[name])
    own = known[answer.choice.name]
    if quickest == answer.choice.name or not clearly_below(known[quickest], own, "latency_ms"):
        return f"{found} and {'no' if len(rivals) == 1 else 'none is'} faster"
    if len(rivals) == 1:
        return f"{found} and faster ({amount(known[quickest])} ms)"
    return f"{found}, and {quickest} is the fastest ({amount(known[quickest])} ms)"


def _next(rival: Rival, margin: float) -> str:
    """Compare the choice with the candidate of the second best validation IoU."""
    name, found = rival.candidate.name, rival.difference
    if found is None:
        return f"{name} is next, without a common seed so far"
    if found.interval is None:
        return f"{name} is next ({signed(found.mean)}), but one seed cannot tell"
    low, high = found.interval
    if rival.verdict is Verdict.BEHIND:
        return (
            f"it is {iou_words(-found.mean)} above the next, {name} (95 % interval {iou_words(-high)} to "
            f"{iou_words(-low)})"
        )
    if rival.verdict is Verdict.ALIKE:
        return f"the next, {name}, is alike ({difference_words(found)})"
    unsettled = "which is better" if low <= 0 <= high else f"whether that is more than {_margin(margin)}"
    return f"{name} is next ({difference_words(found)}), but {found.seeds} seeds do not settle {unsettled}"


def _margin(margin: float) -> str:
    return f"{margin:g}".replace("0.", ".", 1)


def _words(rival: Rival) -> str:
    return "" if rival.difference is None else difference_words(rival.difference)


def _tightened(outcome: Outcome, choice: Candidate) -> list[str]:
    """Name the candidate that a stricter limit would choose: on the first quantity with a limit, or on latency."""
    name = next(iter(given_limits(outcome.constraints)), "latency_ms")
    value = measured(choice, name)
    if value is None:
        return []

    def below(one: Candidate) -> bool:
        own = measured(one, name)
        return own is not None and clearly_below(own, value, name)

    other = choose(outcome, outcome.constraints, below)
    if other is None:
        return []
    verb = "are" if name == "parameters" else "is"
    return [f"if {limit_words(name, value)} {verb} {TOO_MUCH[name]}, {_alternative(other, name, choice)}"]


def _loosened(outcome: Outcome, choice: Candidate | None) -> list[str]:
    """Name the candidates that would be chosen without one of the limits, or without all of them."""
    limits, found = given_limits(outcome.constraints), {}
    for name, value in limits.items():
        other = choose(outcome, without(outcome.constraints, name))
        if other is not None and other is not choice:
            words = f"without the limit of {limit_words(name, value)}"
            found[other.name] = f"{words}, {_alternative(other, name, choice)}"
    best = ranked(outcome)[0]
    if len(limits) > 1 and best is not choice and best.name not in found:
        found[best.name] = (
            f"without {'both limits' if len(limits) == 2 else 'any limit'}, {_alternative(best, None, choice)}"
        )
    return list(found.values())


def _alternative(other: Candidate, name: str | None, choice: Candidate | None) -> str:
    """Return the name of another candidate, with the quantity that was limited and its IoU."""
    found: Difference | None = None if choice is None else difference(other, choice)
    iou = f"mean IoU {iou_words(mean_test_iou(other))}" if found is None else signed(found.mean)
    value = None if name is None else measured(other, name)
    if name is None:
        return f"{other.name} ({iou})"
    measure = f"{SUBJECTS[name]} not measured" if value is None else limit_words(name, value)
    return f"{other.name} ({measure}, {iou})"


def _failed(outcome: Outcome, answer: Answer) -> list[str]:
    names = [one.name for one in answer.failed]
    if not names:
        return []
    return [f"{listed(names)} failed" if len(names) < 3 else f"{len(names)} of {len(outcome.candidates)} failed"]


def _limits(constraints: Constraints) -> str:
    return listed([limit_words(name, value) for name, value in given_limits(constraints).items()])
