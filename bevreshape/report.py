"""``python -m bevreshape.report RUN_FOLDERS``: finished runs as one HTML page that opens from disk."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console

from bevreshape import __version__
from bevreshape.analysis.effective_weights import attention_weights, jacobian_norm
from bevreshape.analysis.permutation import PermutedReshaper
from bevreshape.config import cli
from bevreshape.config.stored import read_trust
from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.errors import InputError, suggest
from bevreshape.experiments.levels import PLAN_FILE, Study
from bevreshape.experiments.page import claims, sections
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.model import BEVModel
from bevreshape.reporting.explorer import Cells, Explorer, ExplorerEntry, Scene, View, choose_cells
from bevreshape.reporting.explorer_data import explorer_data
from bevreshape.reporting.overview import costs, curves, examples, results, sweeps
from bevreshape.reporting.page import FIGURE_STYLE, MOST_BYTES, Report, render, write
from bevreshape.reporting.progress import Progress
from bevreshape.reporting.reported_model import ReportedModel, comparable, first_batch, mean_iou
from bevreshape.reporting.runs import Run, grouped, read_runs
from bevreshape.reshapers import GeometricReshaper, Reshaper

ROOM_FOR_REMARKS = 20_000
"""Bytes of a page for what is said of that which was left out, and for signs that HTML spells out."""

OPTIONS = ("out", "samples", "cells", "probes", "trust")

HELP = """\
python -m bevreshape.report FOLDER... [key=value...]: finished runs as one HTML page that opens from disk.

Folders are those of runs, sweeps or studies, or hold them. Options:

out=report.html    the page
samples=3          test samples in the explorer
cells=20           cells along a side whose weights are shown
probes=2           random probes a cell
trust=[]           packages whose classes the checkpoints may call, beside bevreshape

Example:
  python -m bevreshape.report runs/2026-01-31 sweeps/2026-02-01 out=compared.html
"""

RUNS_TEXT = (
    "IoU is that of the test split at probability 0.5, the mean of the classes where none is named, ± the standard deviation of "
    "the seeds."
)

CLAIMS_TEXT = (
    "Rows of the study, those first that were named before anything was measured. Ratios are means over the seeds with the interval "
    "that holds the true mean with 95 % confidence; the rules stand below."
)


def main(
    folders: Sequence[Path],
    out: Path = Path("report.html"),
    samples: int = 3,
    cells: int = 20,
    probes: int = 2,
    trust: Sequence[str] = (),
) -> None:
    """Collect the runs, and of studies the claims and figures, and write the page."""
    for key, value in (("samples", samples), ("cells", cells), ("probes", probes)):
        if value < 1:
            raise InputError(f"{key}={value} must be an integer >= 1")
    trust = read_trust(trust)
    plans = [plan for folder in folders for plan in sorted(folder.rglob(PLAN_FILE))]
    studies = [Study.stored(plan.parent) for plan in plans]
    alone = [plan.parent for plan in plans]
    rows = grouped([run for folder in folders if folder not in alone for run in read_runs(folder)])
    rows.sort(key=lambda runs: -mean_iou(runs))
    style: Any = FIGURE_STYLE  # its keys are spelt out in types of their own
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
        write(page, out)
    for remark in remarks:
        Console(stderr=True).print(remark, markup=False, highlight=False, soft_wrap=True)
    Console().print(f"{out}", markup=False, highlight=False, soft_wrap=True)


def with_runs(
    page: Report, rows: Sequence[list[Run]], samples: int, cells: int, probes: int, trust: Sequence[str]
) -> tuple[Report, list[str]]:
    """A page with sections about runs, and as much of the explorer as fits on it.

    Returns:
        The page, and remarks about what was left out.
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
    fitted, left_out = fitting(whole, MOST_BYTES - around - ROOM_FOR_REMARKS)
    remarks += left_out
    return replace(page, explorer=fitted, source=" ".join([page.source, *remarks])), remarks


def _amounts(rows: Sequence[list[Run]], studies: Sequence[Study]) -> str:
    runs = [f"{sum(map(len, rows))} runs"] if rows else []
    return " and ".join([*runs, *(f"the study in {study.records.folder.name}" for study in studies)])


def explorer(shown: Sequence[ReportedModel], batch: BEVBatch, true: Cameras, cells: int, probes: int) -> Explorer:
    """W of every model on every sample, and with tokens permuted where no calibration says where they are.

    Args:
        shown: the models.
        batch: the samples, with the calibration that the models are told.
        true: their cameras as they really are.
        cells: along a side.
        probes: of a cell.
    """
    samples, target = [batch[i : i + 1] for i in range(len(batch))], batch.targets[SEGMENTATION]
    scenes = [
        Scene(name, batch.images[i], true[i : i + 1], target.value[i].float(), target.valid[i])
        for i, name in enumerate(batch.names)
    ]
    entries = []
    with Progress("weights: samples", len(shown) * len(samples)) as progress:
        for one in shown:
            reshaper = one.reshaper
            assert isinstance(reshaper.grid, BEVGrid)
            chosen = choose_cells(reshaper.grid, cells)
            orders = {"in order": reshaper}
            if not isinstance(reshaper, GeometricReshaper) and len(reshaper.sources) == 1:
                permutation = torch.randperm(reshaper.source.tokens, generator=torch.Generator().manual_seed(0))
                orders["permuted"] = PermutedReshaper(reshaper, permutation)
            views = []
            for sample in samples:
                views.append(
                    {order: view(one.model, ordered, sample, chosen, probes) for order, ordered in orders.items()}
                )
                progress.advance()
            kinds = len(views[0]["in order"].heads)
            attention = ("attention, mean", *(f"attention, head {number + 1}" for number in range(kinds - 2)))
            heads = ("effective weights", *attention) if kinds > 1 else ("effective weights",)
            entries.append(ExplorerEntry(one.label, reshaper.source, chosen, views, heads))
    spec = shown[0].spec
    return Explorer(scenes, entries, spec.classes, spec.grid, spec.camera_names)


def view(model: BEVModel, reshaper: Reshaper, sample: BEVBatch, cells: Cells, probes: int) -> View:
    """Prediction and W with ``reshaper`` in the model; W is of tokens where they lie in the image: the Jacobian's norm, and
    of attention its matrix too, the mean of the heads and head by head."""
    cameras = sample.cameras
    with torch.no_grad():
        features = model.encoder(sample.images)
        bev = model.decode(features, cameras, reshaper).heads[SEGMENTATION].sigmoid()[0]
    at = [divmod(number, cells.grid.cols) for number in cells.queries.tolist()]
    weights = jacobian_norm(reshaper, features, cameras, cells=at, probes=probes)  # 1 q n h w
    if hasattr(reshaper, "attention_weights"):
        heads = attention_weights(reshaper, features, cameras, cells=at)[0].abs()  # a q n h w
        weights = torch.cat([weights, heads.mean(0, keepdim=True), heads])
    return View(bev, weights)


def fitting(whole: Explorer, most_bytes: int) -> tuple[Explorer, list[str]]:
    """As much of an explorer as fits: samples are left out first, then the reshapers of the lowest IoU.

    Returns:
        What is left, and remarks about what is not.

    Raises:
        InputError: when not even one reshaper on one sample fits.
    """
    found, remarks = whole, []
    while (size := len(json.dumps(explorer_data(found)))) > most_bytes:
        if len(found.scenes) > 1:
            count = len(found.scenes) - 1
            entries = [replace(one, views=one.views[:count]) for one in found.entries]
            found = replace(found, scenes=found.scenes[:count], entries=entries)
        elif len(found.entries) > 1:
            remarks.append(
                f"Not in the explorer, to keep the page below {MOST_BYTES / 1e6:.0f} MB: {found.entries[-1].name}."
            )
            found = replace(found, entries=found.entries[:-1])
        else:
            raise InputError(
                f"report: one reshaper on one sample takes {size / 1e6:.1f} MB and {most_bytes / 1e6:.1f} MB are left for it; set "
                "cells= to fewer, or name fewer folders"
            )
    if len(found.scenes) < len(whole.scenes):
        remarks.insert(
            0, f"The explorer has {len(found.scenes)} of {len(whole.scenes)} samples, to keep the page small."
        )
    return found, remarks


def read_arguments(arguments: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Folders, and the options of :func:`main` given as ``key=value``.

    Raises:
        InputError: when one is neither a folder nor an option, or there is no folder.
    """
    folders: list[Path] = []
    options: dict[str, Any] = {}
    for argument in arguments:
        key, given, value = argument.partition("=")
        if given and key in OPTIONS:
            options[key] = _value(key, value)
        elif Path(argument).is_dir():
            folders.append(Path(argument))
        elif argument.startswith("-"):
            raise InputError(f"{argument} is not understood; options are written as key=value: {', '.join(OPTIONS)}")
        elif given:
            raise InputError(f"{argument} is neither a folder nor an option; {suggest(key, OPTIONS)}")
        else:
            raise InputError(f"{argument}: there is no such folder; name folders of runs or sweeps")
    if not folders:
        raise InputError("report: no folder is named; name folders of runs or sweeps, such as runs/2026-01-31")
    return folders, options


def _value(key: str, value: str) -> Any:
    if key == "out":
        if not value:
            raise InputError("out= must name the file of the page, such as out=report.html")
        return Path(value)
    if key == "trust":
        return [name.strip() for name in value.strip("[]").split(",") if name.strip()]
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise InputError(f"{key}={value} must be an integer >= 1")
    return int(value)


def command(arguments: Sequence[str]) -> None:
    """The command line."""
    if {"-h", "--help"} & {*arguments}:
        print(HELP)
        return
    folders, options = read_arguments(arguments)
    main(folders, **options)


if __name__ == "__main__":
    cli.speaking(command, sys.argv[1:])
