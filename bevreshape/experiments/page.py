"""A study on the page of ``report``: its chart, rows, curves and rules."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from bevreshape.experiments import task_rows
from bevreshape.experiments.article import THEOREMS
from bevreshape.experiments.chart import crossover_chart
from bevreshape.experiments.independent import compared
from bevreshape.experiments.levels import Study
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.plan import PAIRS
from bevreshape.experiments.readme import (
    CHART_WORDS,
    COSTS_WORDS,
    RULES,
    costs_table,
    progress_words,
)
from bevreshape.experiments.row import Row
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.tensor_results import TO, Results
from bevreshape.reporting.page import Chart, Claim, Section, Table

CLAIMS_TEXT = (
    "The rows named before anything was measured come first. Ratios are means over the seeds with the 95 % confidence "
    "interval of the mean; the rules are given below."
)

METHODS = {"mlp": ("MLP", "C0"), "positional": ("attention, keys of place", "C2"), "attention": ("attention", "C1")}
"""Methods of the learning curves, with name and color."""


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
    """Return the sections of a study and its rows: first who is ahead, then all claims, and how they were judged."""
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
    return Section("Who is ahead", charts=(Chart(figure, CHART_WORDS, CHART_WORDS),))


def _curves(results: Results) -> Section | None:
    """Draw errors of a fixed camera over the steps, and of a moving camera over its jitter."""
    figure = Figure(figsize=(4.2, 6.4))
    learning, moving = figure.subplots(2, 1)
    try:
        for method, (name, color) in METHODS.items():
            for curve in results.outcome(Setting(method)).curves:
                alone = curve is results.outcome(Setting(method)).curves[-1]
                means = [statistics.geometric_mean(errors) for errors in curve.errors if math.inf not in errors]
                learning.plot(curve.steps[: len(means)], means, color=color, linewidth=1, label=name if alone else None)
        sigmas = results.plan.sigma_deg
        for (pose, pair), style in zip(PAIRS.items(), (":", "--", "-"), strict=True):
            for method, color in zip(pair, ("C0", "C1"), strict=True):
                errors = [results.errors(Setting(method, pose, sigma)) for sigma in sigmas]
                means = [statistics.geometric_mean(line) if math.inf not in line else math.nan for line in errors]
                moving.plot(
                    sigmas, means, style, color=color, label=f"{'MLP' if color == 'C0' else 'attention'}, pose {pose}"
                )
    except NotDoneError:
        return None
    learning.axhline(TO, color="#5c6370", linewidth=0.8, linestyle=":")
    learning.set(xscale="log", yscale="log", xlabel="steps", ylabel="error", title="fixed camera")
    moving.set(yscale="log", xlabel="jitter σ of yaw [°]", ylabel="error", title=f"after {results.longest} steps")
    for axes in (learning, moving):
        axes.legend(fontsize=7)
    text = (
        "Mean errors over the seeds, on samples never trained on; new samples in every step. Above, a line for every "
        f"recipe that is best for some number of steps; dotted: an error of {TO:g}."
    )
    return Section(
        "Curves", text, (Chart(figure, "Errors of MLP and attention over steps, and over the jitter of the camera."),)
    )


def _independent(results: Results) -> Section | None:
    headings, lines = compared(results)
    text = "Own geometry, own MLP, own attention, no line of this package."
    return (
        Section("Compared with an independent re-implementation", text, table=Table(headings, tuple(lines)))
        if lines
        else None
    )


def _table(headings: tuple[str, ...], lines: list[tuple[str, ...]]) -> Table:
    return Table(headings, tuple(lines))


def _paragraphs(text: str) -> str:
    return "\n\n".join(part.replace("\n", " ").replace("*", "") for part in text.split("\n\n"))
