"""Report finished runs, sweeps, comparisons and studies as one page."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from bevreshape import __version__
from bevreshape.config.allowed import read_trust
from bevreshape.experiments.conclusion import CONCLUSION
from bevreshape.experiments.levels import PLAN_FILE, Study
from bevreshape.experiments.page import sections
from bevreshape.reporting.comparison_page import ReportedComparison, stored_comparisons, titled
from bevreshape.reporting.explore import explorer, fit_explorer
from bevreshape.reporting.explorer_data import explorer_data
from bevreshape.reporting.overview import costs, curves, examples, results, sweeps
from bevreshape.reporting.page import FIGURE_STYLE, MOST_BYTES, Report, Section, render, write
from bevreshape.reporting.reported_model import comparable, first_batch, mean_iou
from bevreshape.reporting.runs import Run, grouped, read_runs

log = logging.getLogger(__name__)

ROOM_FOR_REMARKS = 20_000
"""Bytes of a page reserved for remarks on parts left out, and for escaped characters of HTML."""

RUNS_TEXT = (
    "IoU is that of the test split at probability 0.5, the mean of the classes where none is named, ± the standard "
    "deviation of the seeds."
)


def write_report(
    folders: Sequence[Path],
    out: str | Path = Path("report.html"),
    samples: int = 3,
    cells: int = 20,
    probes: int = 2,
    trust: Sequence[str] = (),
) -> None:
    """Collect the runs, the comparisons with their answers, and the claims of studies, and write the page."""
    trust = read_trust(trust)
    plans = [plan for folder in folders for plan in sorted(folder.rglob(PLAN_FILE))]
    studies = [Study.stored(plan.parent) for plan in plans]
    judged = [(study, study.rows) for study in studies]
    comparisons = stored_comparisons(folders)
    alone = [*(plan.parent for plan in plans), *(one.folder for one in comparisons)]
    rows = grouped([run for folder in folders for run in other_runs(folder, alone)])
    rows.sort(key=lambda runs: -mean_iou(runs))
    compared = [runs for one in comparisons for runs in one.rows()]
    style: Any = FIGURE_STYLE  # its keys have types of their own
    with matplotlib.rc_context(style):
        concluded = [CONCLUSION.of(found).replace("`", "") for _, found in judged]  # which Markdown shows as code
        sentences = [*(one.sentence for one in comparisons), *concluded]
        page = Report(
            title="View transformers compared" if rows or comparisons else "MLP or attention?",
            answers=[sentence for sentence in sentences if sentence],
            text=RUNS_TEXT if rows else "",
            sections=[
                *titled(comparisons, [one.findings() for one in comparisons]),
                *(section for study, found in judged for section in sections(study, found)),
            ],
            source=f"Made by bevreshape {__version__} of {_amounts([*compared, *rows], comparisons, studies)}.",
        )
        last = titled(comparisons, [one.methods() for one in comparisons])
        page, remarks = with_runs(page, last, compared, rows, samples, cells, probes, trust)
        write(page, Path(out))
    for remark in remarks:
        log.warning("%s", remark)


def other_runs(folder: Path, apart: Sequence[Path]) -> list[Run]:
    """Return the finished runs below a folder that are in none of the folders of studies and comparisons.

    Raises:
        InputError: when one cannot be read, or there is nothing below the folder.
    """
    held = [one for one in apart if one.is_relative_to(folder)]
    if held and all(any(path.is_relative_to(one) for one in held) for path in folder.rglob("metrics.json")):
        return []
    return [run for run in read_runs(folder) if not any(run.folder.is_relative_to(one) for one in held)]


def with_runs(
    page: Report,
    last: Sequence[Section],
    compared: Sequence[list[Run]],
    rows: Sequence[list[Run]],
    samples: int,
    cells: int,
    probes: int,
    trust: Sequence[str],
) -> tuple[Report, list[str]]:
    """Return a page with sections on runs, and as much of the explorer as fits.

    Args:
        page: so far.
        last: sections that follow those on the runs.
        compared: rows of comparisons, whose results and costs are on the page already.
        rows: other rows.
        samples: test samples in the explorer.
        cells: along a side whose weights are shown.
        probes: for each cell.
        trust: packages whose classes the checkpoints may call.

    Returns:
        The page, and remarks on the parts left out.
    """
    whole = [*compared, *rows]
    if not whole:
        return replace(page, sections=[*page.sections, *last]), []
    shown, remarks = comparable(whole, trust)
    reference = shown[0].runs[0]
    batch, exact = (first_batch(reference, samples, trust, **given) for given in ({}, {"calibration": "exact"}))
    found = [curves(whole), examples(shown, batch)]
    if rows:
        found = [results(whole), curves(whole), costs(shown), *sweeps(whole), examples(shown, batch)]
    page = replace(page, sections=[*page.sections, *(section for section in found if section is not None), *last])
    explored = explorer(shown, batch, exact.cameras, cells, probes)
    least = replace(
        explored,
        scenes=explored.scenes[:1],
        entries=[replace(one, views=one.views[:1]) for one in explored.entries[:1]],
    )
    around = len(render(replace(page, explorer=least)).encode()) - len(json.dumps(explorer_data(least)))
    fitted, left_out = fit_explorer(explored, MOST_BYTES - around - ROOM_FOR_REMARKS)
    remarks += left_out
    return replace(page, explorer=fitted, source=" ".join([page.source, *remarks])), remarks


def _amounts(rows: Sequence[list[Run]], comparisons: Sequence[ReportedComparison], studies: Sequence[Study]) -> str:
    runs = [f"{sum(map(len, rows))} runs"] if rows else []
    compared = [f"the comparison in {one.folder.name}" for one in comparisons]
    return " and ".join([*runs, *compared, *(f"the study in {study.records.folder.name}" for study in studies)])
