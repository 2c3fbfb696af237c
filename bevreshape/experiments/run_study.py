"""Running the entries of a study, and writing its tables, chart and page."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from bevreshape.experiments.levels import PLAN_FILE, Study, StudyPlan
from bevreshape.experiments.output import write_results
from bevreshape.experiments.readme import primary_table
from bevreshape.reporting.report import write_report
from bevreshape.sharing import finish, left
from bevreshape.storage.files import write_text
from bevreshape.storage.plain_values import to_yaml
from bevreshape.storage.records import Entry, Records
from bevreshape.training.trainer import silence_lightning

WRITTEN_S = 600.0
"""Seconds between updates of tables and chart."""


def run_study(plan: Mapping[str, Any], folder: Path) -> Study:
    """Do the remaining entries; write tables, chart and page at intervals and at the end.

    Args:
        plan: the ``plan`` group of the config.
        folder: of records, tables and page.

    Raises:
        InputError: when the folder holds records of another plan, or an entry cannot be done.
    """
    silence_lightning()
    study = Study(StudyPlan.read(plan), Records(folder))
    for level in study.levels:
        left(level)  # refuse records of another plan before anything is written
    write_text(folder / PLAN_FILE, to_yaml(plan))
    finish(study.levels, "study", partial(write, study), WRITTEN_S)
    write(study)
    return study


def write(study: Study) -> None:
    """Write tables, chart and page, unless another process is writing them."""
    with study.records.claimed(Entry("results", {})) as ours:
        if ours:
            write_results(study)
            write_report([study.records.folder], study.records.folder / "report.html")


def primary_rows(study: Study) -> Table:
    """Build the table of primary rows for the console."""
    headings, rows = primary_table(study.rows)
    shown = Table(*headings, title="attention and MLP", show_lines=True)
    for row in rows:
        shown.add_row(*row)
    return shown
