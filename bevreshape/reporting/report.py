"""Report finished runs, sweeps and studies as one page."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from bevreshape import __version__
from bevreshape.config.allowed import read_trust
from bevreshape.experiments.levels import PLAN_FILE, Study
from bevreshape.experiments.page import claims, sections
from bevreshape.reporting.explore import explorer, fit_explorer
from bevreshape.reporting.explorer_data import explorer_data
from bevreshape.reporting.overview import costs, curves, examples, results, sweeps
from bevreshape.reporting.page import FIGURE_STYLE, MOST_BYTES, Report, render, write
from bevreshape.reporting.reported_model import comparable, first_batch, mean_iou
from bevreshape.reporting.runs import Run, grouped, read_runs

log = logging.getLogger(__name__)

ROOM_FOR_REMARKS = 20_000
"""Bytes of a page reserved for remarks on parts left out, and for escaped characters of HTML."""

RUNS_TEXT = (
    "IoU is that of the test split at probability 0.5, the mean of the classes where none is named, ± the standard "
    "deviation of the seeds."
)

CLAIMS_TEXT = (
    "Rows of the study; the rows named before the measurements come first. Ratios are means over the seeds with the "
    "95 % confidence interval of the mean; the rules are given below."
)


def write_report(
    folders: Sequence[Path],
    out: str | Path = Path("report.html"),
    samples: int = 3,
    cells: int = 20,
    probes: int = 2,
    trust: Sequence[str] = (),
) -> None:
    """Collect the runs, and the claims and figures of studies, and write the page."""
    trust = read_trust(trust)
    plans = [plan for folder in folders for plan in sorted(folder.rglob(PLAN_FILE))]
    studies = [Study.stored(plan.parent) for plan in plans]
    alone = [plan.parent for plan in plans]
    rows = grouped([run for folder in folders if folder not in alone for run in read_runs(folder)])
    rows.sort(key=lambda runs: -mean_iou(runs))
    style: Any = FIGURE_STYLE  # its keys have types of their own
    with matplotlib.rc_context(style):
        page = Report(
            title="View transformers compared",
            text=RUNS_TEXT if rows else "",
            claims_text=CLAIMS_TEXT,
            claims=[claim for study in studies for claim in claims(study)],
            sections=[section for study in studies for section in sections(study)],
            source=f"Made by bevreshape {__version__} of {_amounts(rows, studies)}.",
        )
        page, remarks = with_runs(page, rows, samples, cells, probes, trust) if rows else (page, [])
        write(page, Path(out))
    for remark in remarks:
        log.warning("%s", remark)


def with_runs(
    page: Report, rows: Sequence[list[Run]], samples: int, cells: int, probes: int, trust: Sequence[str]
) -> tuple[Report, list[str]]:
    """Return a page with sections on runs, and as much of the explorer as fits.

    Returns:
        The page, and remarks on the parts left out.
    """
    shown, remarks = comparable(rows, trust)
    reference = shown[0].runs[0]
    batch, exact = (first_batch(reference, samples, trust, **given) for given in ({}, {"calibration": "exact"}))
    found = [results(rows), curves(rows), costs(shown), *sweeps(rows), examples(shown, batch)]
    page = replace(page, sections=[*page.sections, *(section for section in found if section is not None)])
    whole = explorer(shown, batch, exact.cameras, cells, probes)
    least = replace(
        whole, scenes=whole.scenes[:1], entries=[replace(one, views=one.views[:1]) for one in whole.entries[:1]]
    )
    around = len(render(replace(page, explorer=least)).encode()) - len(json.dumps(explorer_data(least)))
    fitted, left_out = fit_explorer(whole, MOST_BYTES - around - ROOM_FOR_REMARKS)
    remarks += left_out
    return replace(page, explorer=fitted, source=" ".join([page.source, *remarks])), remarks


def _amounts(rows: Sequence[list[Run]], studies: Sequence[Study]) -> str:
    runs = [f"{sum(map(len, rows))} runs"] if rows else []
    return " and ".join([*runs, *(f"the study in {study.records.folder.name}" for study in studies)])
