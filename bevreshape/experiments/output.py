"""What a study writes into its folder: README.md with its tables, the crossover chart, and all rows for other programs."""

import csv
import io
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

from bevreshape.experiments.chart import crossover_chart
from bevreshape.experiments.levels import Study
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.readme import BEGIN, END, FULL, block, study_readme
from bevreshape.experiments.row import Row
from bevreshape.reporting.page import FIGURE_STYLE
from bevreshape.storage.files import write_atomic, write_text

CHART = "crossover.png"
CHART_DPI = 200


def write_results(study: Study) -> None:
    """Write all of it anew."""
    folder = study.records.folder
    rows = study.rows
    chart = write_chart(study)
    write_text(folder / "README.md", study_readme(study, rows, CHART if chart else None))
    write_text(folder / "results.json", json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "results.csv", _csv(rows))
    if folder.resolve() == FULL:
        update_readme(FULL.parents[3] / "README.md", study)


def write_chart(study: Study) -> bool:
    """The crossover chart, if all of its entries are done."""
    if study.tensor is None:
        return False
    style: Any = FIGURE_STYLE  # its keys are spelt out in types of their own
    with matplotlib.rc_context(style):
        try:
            figure = crossover_chart(study.tensor.results())
        except NotDoneError:
            return False
        write_atomic(study.records.folder / CHART, partial(figure.savefig, format="png", dpi=CHART_DPI))
    return True


def update_readme(path: Path, study: Study) -> None:
    """Put the study's block between the two markers of a README that has them; an installed package has none."""
    if not path.is_file() or BEGIN not in (text := path.read_text(encoding="utf-8")):
        return
    before, _, rest = text.partition(BEGIN)
    write_text(path, f"{before}{BEGIN}\n{block(study, study.rows)}{END}{rest.partition(END)[2]}")


def _csv(rows: list[Row]) -> str:
    """A line for every value, so that spreadsheets need not take rows apart."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("claim", "question", "measured", "condition", "value", "verdict", "primary"))
    for row in rows:
        for condition, value in [*row.value.items(), *row.absolute.items()]:
            lines.writerow((row.claim, row.question, row.measured, condition, value, row.verdict, row.primary))
    return text.getvalue()
