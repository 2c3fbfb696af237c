"""A comparison as a table: on the console, in Markdown and as CSV."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bevreshape.comparison.answer import Answer, validation_iou
from bevreshape.comparison.limits import given_limits
from bevreshape.comparison.outcome import Candidate, Outcome
from bevreshape.comparison.words import limit_words
from bevreshape.reporting.comparison_rows import CandidateRow, candidate_rows
from bevreshape.reporting.tables import UNLIMITED, markdown_table

COLUMNS: dict[str, Callable[[CandidateRow], str]] = {
    "reshaper": lambda row: row.candidate.name,
    "IoU": lambda row: row.iou,
    "to choice": lambda row: row.to_choice,
    "verdict": lambda row: row.status,
    "ms": lambda row: row.latency,
    "form": lambda row: row.form,
    "MB": lambda row: row.memory,
    "params": lambda row: row.parameters,
    "train min": lambda row: row.minutes,
    "seeds": lambda row: str(len(row.candidate.runs)),
}

FEW = {
    "reshaper": COLUMNS["reshaper"],
    "IoU": lambda row: row.iou.partition(" ")[0],
    **{column: COLUMNS[column] for column in ("to choice", "verdict", "ms", "params")},
}
"""Columns where all would not fit: 80 characters for names of up to 22."""

STYLES = {"choice": "bold", "over limit": "dim", "not measured": "dim", "failed": "dim", "not done": "dim"}


def console_table(outcome: Outcome, answer: Answer, width: int) -> Table:
    """Return the table for a console of so many characters, with exceeded limits and reasons below."""
    whole = _table(outcome, answer, COLUMNS)
    console = Console(width=UNLIMITED)
    fits = Measurement.get(console, console.options, whole).maximum <= width
    return whole if fits else _table(outcome, answer, FEW)


def _table(outcome: Outcome, answer: Answer, columns: Mapping[str, Callable[[CandidateRow], str]]) -> Table:
    caption = [*_over(outcome, answer), *(f"{one.name} failed: {one.reason}" for one in answer.failed)]
    table = Table(title=f"{outcome.title}, {outcome.device}", caption="\n".join(caption) or None)
    for column in columns:
        left = column in ("reshaper", "verdict", "form")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in candidate_rows(answer):
        style = STYLES.get(row.status, "")
        table.add_row(*(Text(words(row), style=style) for words in columns.values()))
    return table


def _over(outcome: Outcome, answer: Answer) -> list[str]:
    """Return, for every limit, the candidates that do not keep it, and their values."""
    lines = []
    for name, allowed in given_limits(outcome.constraints).items():
        found = [
            f"{rival.candidate.name} " + limit_words(name, one.measured).removesuffix(" parameters")
            for rival in answer.infeasible
            for one in rival.excesses
            if one.limit == name and one.measured is not None
        ]
        if found:
            lines.append(f"over {limit_words(name, allowed)}: {', '.join(found)}")
    return lines


def markdown(rows: Sequence[CandidateRow]) -> str:
    """Return the table in Markdown."""
    return markdown_table(tuple(COLUMNS), [[column(row) for column in COLUMNS.values()] for row in rows])


def csv_rows(rows: Sequence[CandidateRow]) -> list[dict[str, Any]]:
    """Return a row for every candidate with all its figures; means over the seeds."""
    return [_values(row) for row in rows]


def _values(row: CandidateRow) -> dict[str, Any]:
    one, found = row.candidate, row.difference
    low, high = ("", "") if found is None or found.interval is None else map(_rounded, found.interval)
    values: dict[str, Any] = {
        "reshaper": one.name, "verdict": row.status, "notes": "; ".join(row.notes), "seeds": len(one.runs),
        "difference": "" if found is None else _rounded(found.mean), "low": low, "high": high,
        **{f"iou/{name}": value for name, value in means(one, "iou").items()},
        **{f"iou/mean/{name}": value for name, value in means(one, "bands").items()},
        **{f"iou/mean/{name}": value for name, value in means(one, "changed").items()},
        **{f"iou/mean/seed{run.seed}": _rounded(run.iou["mean"]) for run in one.runs},
    }  # fmt: skip
    if one.runs:
        values["val/iou/mean"] = _rounded(validation_iou(one))
        values["training_s"] = _rounded(statistics.mean(run.seconds for run in one.runs))
    if one.cost is not None:
        values |= {"parameters": one.cost.parameters, "flops": one.cost.flops, "memory_mb": one.cost.memory_mb}
        values |= {f"{form}_ms": ms for form, ms in one.cost.latency_ms.items()}
    return values | dict(one.tuned)


def means(candidate: Candidate, kind: Literal["iou", "bands", "changed"]) -> dict[str, float]:
    """Return the means over the seeds of what every seed has of a kind of test IoU."""
    by_seed = [getattr(run, kind) for run in candidate.runs]
    keys = [key for key in by_seed[0] if all(key in one for one in by_seed)] if by_seed else []
    return {key: _rounded(statistics.mean(one[key] for one in by_seed)) for key in keys}


def _rounded(value: float) -> float:
    return round(value, 5)
