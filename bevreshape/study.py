"""``python -m bevreshape.study``: the article's claims A7 to A12, measured."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bevreshape import cli, report, settings
from bevreshape.build import load_model, plain_config
from bevreshape.data.batch import cameras_of
from bevreshape.errors import InputError
from bevreshape.files import write_atomic, write_text
from bevreshape.geometry import BEVGrid
from bevreshape.lab.charts import SHOWN, sections
from bevreshape.lab.claims import Row, claims
from bevreshape.lab.diagnosis import draw_weights
from bevreshape.lab.experiments import Place, task_run
from bevreshape.lab.page.report import FIGURE_STYLE
from bevreshape.lab.plan import PLAN_FILE, RIVALS, Plan, Records, Unit, task_unit, units
from bevreshape.lab.records import Study
from bevreshape.lab.results import Results
from bevreshape.lab.shown import first_batch
from bevreshape.lab.weights import cell_raster, jacobian_norm
from bevreshape.launch import quiet, read_device
from bevreshape.options import read_settings
from bevreshape.progress import duration
from bevreshape.reshapers import Reshaper
from bevreshape.stored import read_trust
from bevreshape.tables import markdown_table, print_table

PAUSE_SECONDS = 2.0

HEADINGS = ("", "claim", "measurement", "value [95 % interval]", "verdict")

SHOWN_CELLS = 6
"""Along a side of the map, of which a figure shows some."""


def main(cfg: DictConfig) -> None:
    """Do the runs that are left, then write the table, the figures and the page."""
    plain = read_settings(settings.Study, plain_config(cfg))
    quiet()
    folder = Path(HydraConfig.get().runtime.output_dir)
    study = Study(
        Plan.read(plain["plan"]), Place(folder, read_device(str(plain["device"])), read_trust(plain["trust"]))
    )
    console = Console()
    records = finish(study, console)
    rows = claims(study.plan, records)
    print_table(table(rows))
    for doubt in Results(study.plan, records).doubts():
        console.print(doubt, style="yellow", markup=False, highlight=False, soft_wrap=True)
    with study.claimed("results") as lock:
        if lock is not None:  # or another process of this study is writing the same
            write_results(study, records, rows)
            write_text(folder / PLAN_FILE, OmegaConf.to_yaml(plain["plan"]))
            report.main([folder], folder / "report.html", trust=study.place.trust)


def write_results(study: Study, records: Records, rows: Sequence[Row]) -> None:
    """The table as JSON and Markdown, and the figures as PNG."""
    text = json.dumps([row.to_plain() for row in rows], indent=2, ensure_ascii=False, allow_nan=False)
    write_text(study.place.folder / "claims.json", text + "\n")
    lines = [(row.number, row.claim, row.measurement, "<br>".join(row.lines), row.verdict) for row in rows]
    doubts = [f"\n{doubt}\n" for doubt in Results(study.plan, records).doubts()]
    write_text(study.place.folder / "claims.md", "".join([markdown_table(HEADINGS, lines), *doubts]))
    style: Any = FIGURE_STYLE  # its keys are spelt out in types of their own
    with matplotlib.rc_context(style):
        figures = {section.title: section.charts[0].figure for section in sections(Results(study.plan, records))}
        if (shown := mappings(study, records)) is not None:
            figures["weights"] = shown
        for name, figure in figures.items():
            path = study.place.folder / f"{name.lower().replace(' ', '_')}.png"
            write_atomic(path, partial(figure.savefig, format="png", dpi=150))


def finish(study: Study, console: Console) -> Records:
    """Do what nobody has done yet, and wait for what others are doing; the records of all.

    Raises:
        InputError: when runs have failed, after all others are done.
    """
    failed: dict[str, InputError] = {}
    seconds: dict[str, list[float]] = {}
    told = False
    while True:
        records = study.records()
        known = units(study.plan, records)
        left = [unit for unit in known if unit.name not in records]
        if not left:
            return records
        if failed and not any(unit.name not in failed for unit in left):
            name, error = next(iter(failed.items()))
            raise InputError(f"{len(failed)} of {len(known)} runs have failed, first {name}: {error}")
        number = f"{len(records) + 1} of {len(known)}"
        waiting = [unit for unit in left if unit.name not in failed]
        if not any(_done(study, unit, number, console, failed, seconds, waiting) for unit in waiting):
            if not told:
                console.print(
                    f"waiting for {len(left) - len(failed)} runs that another process has begun", highlight=False
                )
            told = True
            time.sleep(PAUSE_SECONDS)


def _done(
    study: Study,
    unit: Unit,
    number: str,
    console: Console,
    failed: dict[str, InputError],
    seconds: dict[str, list[float]],
    waiting: Sequence[Unit],
) -> bool:
    with study.claimed(unit.name) as lock:
        if lock is None or study.has(unit):
            return False
        start = time.perf_counter()
        try:
            found = study.run(unit, lock)
        except InputError as error:
            failed[unit.name] = error
            console.print(f"{number}  {unit.name}: failed, {error}", markup=False, highlight=False, soft_wrap=True)
            return True
        last = found["curve"][-1]
        value = last.get("iou", last.get("error"))
        score = "diverged" if value is None else f"{'IoU' if 'iou' in last else 'error'} {value:.3f}"
        spent = time.perf_counter() - start
        seconds.setdefault(unit.settings["level"], []).append(spent)
        left = time_left([other for other in waiting if other is not unit], seconds)
        console.print(
            f"{number}  {unit.name}: {score}, {duration(spent)}{left}", markup=False, highlight=False, soft_wrap=True
        )
        return True


def time_left(units: Sequence[Unit], seconds: Mapping[str, Sequence[float]]) -> str:
    """How long runs that are known of will take this process, by the mean of those of their level that it has done."""
    levels = [unit.settings["level"] for unit in units]
    if not levels or any(level not in seconds for level in levels):
        return ""
    return f"; about {duration(sum(statistics.mean(seconds[level]) for level in levels))} left"


def mappings(study: Study, records: Records) -> Figure | None:
    """W of a fixed camera after training, of MLP and attention beside the homography, on the first test sample, of the first
    seed of which none has diverged."""
    plan, place = study.plan, study.place
    roles = ("ipm", *RIVALS)
    whole = [seed for seed in plan.seeds if all(records[task_unit(plan, role, seed).name]["metrics"] for role in roles)]
    if not whole:
        return None
    seed = whole[0]
    runs = {role: task_run(place.run_folder(task_unit(plan, role, seed).name)) for role in roles}
    batch, exact = (first_batch(runs["ipm"], 1, place.trust, **given) for given in ({}, {"calibration": "exact"}))
    cameras, true = cameras_of(batch), cameras_of(exact)
    weights = {}
    for role, run in runs.items():
        model, *_ = load_model(str(run.checkpoint), place.trust)
        reshaper = model.reshaper
        assert isinstance(reshaper, Reshaper)
        assert isinstance(reshaper.grid, BEVGrid)
        grid, source = reshaper.grid, reshaper.source
        with torch.no_grad():
            features = model.encoder(batch["image"])
        cells = cell_raster(reshaper.target_shape, SHOWN_CELLS)
        weights[SHOWN[role][0]] = jacobian_norm(reshaper, features, cameras, cells=cells, probes=8)[0]
    return draw_weights(batch["image"][0], weights, true, grid, source, cells, shown=4)


def table(rows: Sequence[Row]) -> Table:
    """The results for a console."""
    shown = Table(*HEADINGS, title="claims", show_lines=True)
    for row in rows:
        color = {True: "green", False: "red", None: "yellow"}[row.holds]
        shown.add_row(row.number, row.claim, row.measurement, row.value, Text(row.verdict, color))
    return shown


if __name__ == "__main__":
    cli.run(main, "study")
