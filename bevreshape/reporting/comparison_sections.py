"""The sections of a comparison, for its README and its page alike."""

from collections.abc import Mapping, Sequence

from bevreshape.comparison.answer import Answer, mean_test_iou
from bevreshape.comparison.ends import ends
from bevreshape.comparison.limits import MEASURES, given_limits
from bevreshape.comparison.outcome import Candidate, Outcome, Trial
from bevreshape.comparison.pareto import AXES
from bevreshape.comparison.words import SUBJECTS, amount, count, iou_words, limit_words, listed, signed
from bevreshape.reporting.comparison_rows import CandidateRow, candidate_rows, spread_words
from bevreshape.reporting.comparison_table import means
from bevreshape.reporting.page import Chart, Section, Table
from bevreshape.reporting.pareto import pareto_chart, pareto_words
from bevreshape.reporting.tables import short_names

HOW_TO_READ = (
    "IoU is the mean of the classes on the test split at probability 0.5, ± the standard deviation of the seeds. The "
    "difference to the choice is paired seed by seed, ± half the width of its 95 % interval (Student's t)."
)

CHART_TEXT = (
    "A dominated view transformer costs more than another one without a higher IoU. Bars span the seeds, lowest to "
    "highest."
)

RULES = """\
All candidates share data, encoder, head, loss, optimizer, steps and samples. The learning rate, and what a view \
transformer declares as worth tuning, is found on the validation split by successive halving, with seeds that are not \
judged; a best rate at an end of those tried is extended. Then every candidate is trained once with each of the \
judged seeds, and its best checkpoint by validation IoU is tested once.

The choice is the candidate with the highest mean IoU on the validation split among those within the limits. The \
latency that counts is that of the fastest form that could be measured. The test split takes no part in the choice.

The verdict on another candidate follows from its difference in test IoU to the choice: better or worse if the whole \
interval lies beyond the margin, alike if it lies within the margin on both sides, open otherwise. Since several \
candidates are several chances to be wrong, and the choice may owe its place to luck, the intervals of the verdicts \
are widened by Holm's procedure over all pairs of candidates within the limits: the chance that any of the verdicts \
is wrong is at most 5 %. Thus a verdict may be open although its single interval lies beyond the margin; more seeds \
settle it. With one seed, all verdicts are open."""


def finding_sections(outcome: Outcome, answer: Answer) -> list[Section]:
    """Return the sections on what was found that have something in them, the most important ones first."""
    rows = candidate_rows(answer)
    trained = [row for row in rows if row.candidate.runs]
    found = [
        _candidates(rows, outcome.margin), _notes(rows), _charts(outcome, answer), _classes(outcome, trained),
        _bands(trained), _robustness(trained), _costs(rows), _tuning(rows),
    ]  # fmt: skip
    return [section for section in found if section is not None]


def method_sections(outcome: Outcome) -> list[Section]:
    """Return the sections on how it was found."""
    return [_protocol(outcome), Section("How it is judged", RULES)]


def _candidates(rows: Sequence[CandidateRow], margin: float) -> Section | None:
    if not rows:
        return None
    columns = ("reshaper", "IoU", "difference", "verdict", "latency", "memory", "parameters", "training")
    lines = [
        (
            row.candidate.name, row.iou, row.to_choice, row.status,
            f"{row.latency} ms {row.form}" if row.latency else "", f"{row.memory} MB" if row.memory else "",
            row.parameters, f"{row.minutes} min" if row.minutes else "",
        )
        for row in rows
    ]  # fmt: skip
    text = f"{HOW_TO_READ} View transformers within {margin:g} are alike."
    return Section("Candidates", text, table=Table(columns, tuple(lines)))


def _notes(rows: Sequence[CandidateRow]) -> Section | None:
    lines = [(row.candidate.name, "; ".join(row.notes)) for row in rows if row.notes]
    return Section("Not ranked", table=Table(("reshaper", "reason"), tuple(lines))) if lines else None


def _charts(outcome: Outcome, answer: Answer) -> Section | None:
    charts = []
    for axis in AXES:
        figure = pareto_chart(outcome, answer, axis)
        if figure is not None:
            charts.append(Chart(figure, pareto_words(answer, axis)))
    return Section("IoU against cost", CHART_TEXT, charts) if charts else None


def _classes(outcome: Outcome, rows: Sequence[CandidateRow]) -> Section | None:
    classes = [name for name in outcome.classes if any(name in means(row.candidate, "iou") for row in rows)]
    if not classes:
        return None
    lines = [
        (row.candidate.name, *(_spread(row.candidate, "iou", name) for name in (*classes, "mean"))) for row in rows
    ]
    return Section("Classes", "Test IoU of every class.", table=Table(("reshaper", *classes, "mean"), tuple(lines)))


def _bands(rows: Sequence[CandidateRow]) -> Section | None:
    bands = _keys([means(row.candidate, "bands") for row in rows])
    if not bands:
        return None
    lines = [(row.candidate.name, *(_spread(row.candidate, "bands", band) for band in bands)) for row in rows]
    text = "Test IoU by distance from the vehicle, mean of the classes."
    return Section("Distance", text, table=Table(("reshaper", *bands), tuple(lines)))


def _robustness(rows: Sequence[CandidateRow]) -> Section | None:
    """Tabulate IoU under calibration errors and without a camera, and what is lost."""
    changed = {row.candidate.name: means(row.candidate, "changed") for row in rows}
    changes = _keys(list(changed.values()))
    if not changes:
        return None
    lines = [
        (
            row.candidate.name,
            *(
                f"{iou_words(found[change])} ({signed(found[change] - mean_test_iou(row.candidate))})"
                if change in found else ""
                for change in changes
            ),
        )
        for row in rows for found in [changed[row.candidate.name]]
    ]  # fmt: skip
    best: dict[str, list[str]] = {}
    for change in changes:
        known = {name: found[change] for name, found in changed.items() if change in found}
        best.setdefault(max(known, key=lambda name: known[name]), []).append(_change(change))
    leaders = [f"{name} ({listed(own)})" if len(best) > 1 else name for name, own in best.items()]
    text = (
        "Test IoU, mean of the classes and seeds, with a calibration that is wrong by so much for all cameras, or "
        f"without a camera; in brackets, what that changes. Highest IoU: {listed(leaders)}."
    )
    return Section("Robustness", text, table=Table(("reshaper", *map(_change, changes)), tuple(lines)))


def _change(name: str) -> str:
    """Return a change of the input in words, such as ``yaw 1°`` or ``without front``."""
    error, _, size = name.partition("=")
    for end, unit in (("_deg", "°"), ("_m", " m")):
        if size and error.endswith(end):
            return f"{error.removesuffix(end)} {size}{unit}"
    return name


def _costs(rows: Sequence[CandidateRow]) -> Section | None:
    measured = [(row, row.candidate.cost) for row in rows if row.candidate.cost is not None]
    if not measured:
        return None
    forms = _keys([{**cost.latency_ms, **cost.unmeasured} for _, cost in measured])
    lines: list[tuple[str, ...]] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for row, cost in measured:
        latencies = [amount(cost.latency_ms[form]) if form in cost.latency_ms else "" for form in forms]
        lines.append((row.candidate.name, row.parameters, count(cost.flops), row.memory, *latencies, row.minutes))
        for form, reason in cost.unmeasured.items():
            reasons.setdefault((form, reason), []).append(row.candidate.name)
    missing = [
        f"Not measured, {form}{'' if len(names) == len(measured) else f' of {listed(names)}'}: {reason}."
        for (form, reason), names in reasons.items()
    ]
    text = (
        "Of the whole model and one sample: a multiply-add counts as two FLOP, memory is what a forward pass takes in "
        "addition to the model and its input. Training time is that of one seed; its machine may have been shared."
    )
    headings = ("reshaper", "parameters", "FLOP", "MB", *(f"{form} ms" for form in forms), "training min")
    return Section("Costs", "\n\n".join([text, *missing]), table=Table(headings, tuple(lines)))


def _tuning(rows: Sequence[CandidateRow]) -> Section | None:
    tuned = [row.candidate for row in rows if row.candidate.tried]
    if not tuned:
        return None
    lines = []
    for one in tuned:
        keys = dict.fromkeys(key for trial in one.tried for key in trial.values)
        names = dict(zip(keys, short_names(list(keys)), strict=True))
        at = [f"{names[key]} is the {end} tried" for key, end in ends(one).items()]
        ranked = sorted(one.tried, key=lambda trial: (-trial.steps, -(trial.validation or 0)))
        lines.append(
            (
                one.name,
                _values(one.tuned, names),
                listed(at) if at else "no",
                "; ".join(_trial(t, names) for t in ranked),
            )
        )
    text = (
        "Mean validation IoU over the tuning seeds, in brackets the steps of the last rung that a combination reached; "
        "the longest rung first."
    )
    return Section("Tuning", text, table=Table(("reshaper", "chosen", "at an end", "tried"), tuple(lines)))


def _trial(trial: Trial, names: Mapping[str, str]) -> str:
    score = "failed" if trial.validation is None else iou_words(trial.validation)
    return f"{_values(trial.values, names)}: {score} ({trial.steps})"


def _values(values: Mapping[str, object], names: Mapping[str, str]) -> str:
    return ", ".join(
        f"{names.get(key, key)}={value:g}" if isinstance(value, float) else f"{names.get(key, key)}={value}"
        for key, value in values.items()
    )


def _protocol(outcome: Outcome) -> Section:
    limits = given_limits(outcome.constraints)
    lines = [
        *outcome.protocol.items(),
        *((f"limit of {SUBJECTS[name]}", limit_words(name, limits[name])) for name in MEASURES if name in limits),
        ("costs measured on", outcome.device), ("alike within", f"{outcome.margin:g} of mean IoU"),
        ("results", f"{outcome.planned - outcome.missing} of {outcome.planned}"),
    ]  # fmt: skip
    text = f"To repeat or resume it:\n\n{outcome.command}"
    return Section("Protocol", text, table=Table(("shared by all", ""), tuple(lines)))


def _spread(candidate: Candidate, kind: str, key: str) -> str:
    return spread_words([found[key] for run in candidate.runs if key in (found := getattr(run, kind))])


def _keys(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(key for one in mappings for key in one))
