"""``python -m bevreshape.study``: MLP or attention, measured."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from bevreshape import report
from bevreshape.config import cli, settings
from bevreshape.config.compose import plain_config
from bevreshape.config.options import read_settings
from bevreshape.experiments.level import left, run
from bevreshape.experiments.levels import PLAN_FILE, Study, StudyPlan
from bevreshape.experiments.output import write_results
from bevreshape.experiments.readme import primary_table
from bevreshape.experiments.records import Entry, Records
from bevreshape.reporting.progress import Progress
from bevreshape.reporting.tables import print_table
from bevreshape.storage.files import write_text
from bevreshape.training.launch import quiet

WRITTEN_S = 600.0
"""Seconds from one writing of tables and chart to the next, while entries are done."""


def main(cfg: DictConfig) -> None:
    """Do the entries that are left, and write tables, chart and page now and then and at the end."""
    plain = read_settings(settings.Study, plain_config(cfg))
    quiet()
    folder = Path(plain["folder"])
    study = Study(StudyPlan.read(plain["plan"]), Records(folder))
    for level in study.levels:
        left(level)  # refuses records of another plan before anything is written
    write_text(folder / PLAN_FILE, OmegaConf.to_yaml(plain["plan"]))
    finish(study)
    write(study)
    if any(row.primary for row in study.rows):
        print_table(table(study))
    Console().print(f"{folder / 'README.md'}", markup=False, highlight=False, soft_wrap=True)


def finish(study: Study) -> None:
    """Do what is left and no other process has begun, until all is done.

    Raises:
        InputError: when an entry cannot be done.
    """
    planned, missing = study.planned, study.missing
    begun = effort = sum(planned[name] for name in missing)
    written = time.monotonic()
    with Progress("study", len(planned), len(planned) - len(missing)) as progress:
        for done in run(study.levels):
            effort = sum(planned[name] for name in done.left)
            progress.effort = begun - effort, effort
            progress.note = done.name
            progress.advance(len(planned) - len(done.left) - progress.done)
            if done.left and time.monotonic() - written > WRITTEN_S:
                write(study)
                written = time.monotonic()


def write(study: Study) -> None:
    """Tables, chart and page, unless another process is writing the same."""
    with study.records.claimed(Entry("results", {})) as ours:
        if ours:
            write_results(study)
            report.main([study.records.folder], study.records.folder / "report.html")


def table(study: Study) -> Table:
    """The primary rows for a console."""
    headings, rows = primary_table(study.rows)
    shown = Table(*headings, title="attention and MLP", show_lines=True)
    for row in rows:
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    cli.run(main, "study")
