"""Output of a study: README.md with tables, the crossover chart, and all rows for other programs."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bevreshape.experiments.chart import crossover_chart
from bevreshape.experiments.curves import learning_curves
from bevreshape.experiments.levels import Study
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.readme import BEGIN, END, FULL, block, study_readme
from bevreshape.experiments.row import Row
from bevreshape.experiments.tensor_results import Results
from bevreshape.reporting.page import FIGURE_STYLE
from bevreshape.storage.files import write_atomic, write_csv, write_text

CHART, CURVES = "crossover.png", "curves.png"
CHART_DPI = 200


def write_results(study: Study) -> None:
    """Write all files again."""
    folder = study.records.folder
    rows = study.rows
    chart = CHART if write_chart(study, crossover_chart, CHART) else None
    curves = CURVES if write_chart(study, learning_curves, CURVES) else None
    write_text(folder / "README.md", study_readme(study, rows, chart, curves))
    write_text(folder / "results.json", json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
    write_csv(folder / "results.csv", [line for row in rows for line in _values(row)])
    if folder.resolve() == FULL:
        update_readme(FULL.parents[3] / "README.md", study)


def write_chart(study: Study, draw: Callable[[Results], Figure], name: str) -> bool:
    """Write a chart if all of its entries are done; return whether it was."""
    if study.tensor is None:
        return False
    style: Any = FIGURE_STYLE  # matplotlib types its keys as literals
    with matplotlib.rc_context(style):
        try:
            figure = draw(study.tensor.results())
        except NotDoneError:
            return False
        write_atomic(study.records.folder / name, partial(figure.savefig, format="png", dpi=CHART_DPI))
    return True


def update_readme(path: Path, study: Study) -> None:
    """Replace the study's block between the markers of a README, if it exists and has them."""
    if not path.is_file() or BEGIN not in (text := path.read_text(encoding="utf-8")):
        return
    before, _, rest = text.partition(BEGIN)
    write_text(path, f"{before}{BEGIN}\n{block(study, study.rows)}{END}{rest.partition(END)[2]}")


def _values(row: Row) -> list[dict[str, Any]]:
    """Split a row into a line for every value, so that spreadsheets need not take it apart."""
    return [
        {
            "claim": row.claim, "question": row.question, "measured": row.measured, "condition": condition,
            "value": value,
            "verdict": row.verdict, "primary": row.primary,
        }
        for condition, value in [*row.value.items(), *row.absolute.items()]
    ]  # fmt: skip
