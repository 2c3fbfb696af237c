"""A study on the page of ``report``: its chart, rows, curves and rules."""

import re
from collections.abc import Sequence

from bevreshape.experiments import task_rows
from bevreshape.experiments.article import THEOREMS
from bevreshape.experiments.chart import crossover_chart
from bevreshape.experiments.curves import CURVES_TITLE, CURVES_WORDS, learning_curves
from bevreshape.experiments.independent import compared
from bevreshape.experiments.levels import Study
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.readme import (
    CHART_TITLE,
    CHART_WORDS,
    COSTS_WORDS,
    INDEPENDENT_WORDS,
    RULES,
    costs_table,
    progress_words,
)
from bevreshape.experiments.row import Row
from bevreshape.experiments.tensor_results import Results
from bevreshape.reporting.page import Chart, Claim, Section, Table

CLAIMS_TEXT = (
    "The rows named before anything was measured come first. Ratios are means over the seeds with the 95 % confidence "
    "interval of the mean; the rules are given below."
)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return rows as claims, the primary ones first."""
    return [
        Claim(
            row.claim,
            f"{row.question} (primary)" if row.primary else row.question,
            row.measured,
            "\n".join(
                f"{name}: {value}" if name else value for name, value in [*row.value.items(), *row.absolute.items()]
            ),
            row.verdict.replace("; ", "\n"),
        )
        for row in sorted(rows, key=lambda row: not row.primary)
    ]


def sections(study: Study, rows: Sequence[Row]) -> list[Section]:
    """Return the sections of a study and its rows: first the chart, then all claims, and how they were judged."""
    tensor = None if study.tensor is None else study.tensor.results()
    found = [Section("Not complete", words) if (words := progress_words(study)) else None]
    found += [] if tensor is None else [_chart(tensor)]
    if rows:
        found.append(Section("Claims", CLAIMS_TEXT, claims=claims(rows)))
    found += [] if tensor is None else [_curves(tensor)]
    rules = f"{RULES}\n{task_rows.RULES}" if study.plan.task else RULES
    found.append(Section("Rules", _paragraphs(f"{rules}\n{THEOREMS}")))
    if tensor is not None:
        found += [
            Section("Costs", COSTS_WORDS, table=_table(*costs_table(tensor))),
            _independent(tensor),
        ]
    return [section for section in found if section is not None]


def _chart(results: Results) -> Section | None:
    try:
        figure = crossover_chart(results)
    except NotDoneError:
        return None
    return Section("Which has the lower error", charts=(Chart(figure, CHART_TITLE, CHART_WORDS),))


def _curves(results: Results) -> Section | None:
    try:
        figure = learning_curves(results)
    except NotDoneError:
        return None
    return Section("Curves", CURVES_WORDS, (Chart(figure, CURVES_TITLE),))


def _independent(results: Results) -> Section | None:
    headings, lines = compared(results)
    title = "Compared with an independent re-implementation"
    return Section(title, INDEPENDENT_WORDS, table=Table(headings, tuple(lines))) if lines else None


def _table(headings: tuple[str, ...], lines: list[tuple[str, ...]]) -> Table:
    return Table(headings, tuple(lines))


def _paragraphs(text: str) -> str:
    return "\n\n".join(re.sub("[*`]", "", part.replace("\n", " ")) for part in text.split("\n\n"))
