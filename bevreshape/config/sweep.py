"""Sweeps: the objective of a job, and a table of the jobs that is updated at the end of each."""

import contextlib
import io
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bevreshape.config.overrides import command_message
from bevreshape.console import print_line
from bevreshape.errors import InputError, suggest
from bevreshape.reporting.tables import print_table, short_names
from bevreshape.storage.files import write_csv, write_text
from bevreshape.storage.lock import locked
from bevreshape.storage.plain_values import read_json

log = logging.getLogger(__name__)

IOU = "test/iou/"

SHOWN = (IOU, "fit/")

GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""The sweeper that tries every combination and reads no objective."""


def sweep_objective(asked: str | None, score: str, metrics: Mapping[str, float]) -> float | None:
    """Return the objective of a run for a sweeper of Hydra's.

    Args:
        asked: ``sweep.metric``.
        score: the metric that selects the run's best checkpoint, which is the objective if none is asked for.
        metrics: of the run.

    Returns:
        The value; ``None`` if the metric is not asked for, is not a number, and the sweep is a plain grid or no sweep.

    Raises:
        InputError: when the metric is missing, NaN or infinite, but is asked for or optimized.
    """
    key = score if asked is None else asked
    value = metrics.get(key)
    if value is not None and math.isfinite(value):
        return float(value)
    if asked is None and not _optimizes():
        return None
    if value is None:
        raise InputError(f"sweep.metric={key} is not a metric of this run; {suggest(key, metrics)}")
    raise InputError(
        f"sweep.metric={key} is {value:g}, which cannot be optimized: no cell with a known label entered it, or the "
        "run has diverged; set sweep.metric to another key of metrics.json"
    )


def _optimizes() -> bool:
    hydra = HydraConfig.get()
    return hydra.mode is RunMode.MULTIRUN and hydra.sweeper.get("_target_") != GRID


class Summary(Callback):
    """Write ``summary.csv`` in the sweep's folder, as a Hydra callback: a row per finished or failed job.

    Each job writes ``job.json`` in its own folder, and the table is built from all of these. So jobs in other processes
    or on other machines (Hydra launchers) add to the same table.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode is None or config.hydra.mode.name != "MULTIRUN":
            return
        folder = Path(config.hydra.runtime.output_dir)
        row: dict[str, Any] = {"job": str(config.hydra.job.num), "status": "done", "reason": ""}
        if job_return.status is JobStatus.FAILED:
            error = _error_of(job_return)
            row |= {"status": "failed", "reason": command_message(error) or f"{type(error).__name__}: {error}"}
        row |= dict(argument.split("=", 1) for argument in config.hydra.overrides.task if "=" in argument)
        metrics = folder / "metrics.json"
        if metrics.exists():
            row |= {
                key: value for key, value in json.loads(metrics.read_text(encoding="utf-8")).items() if _is_shown(key)
            }
        write_text(folder / "job.json", json.dumps(row))
        print_summary(write_summary(Path(config.hydra.sweep.dir)))


def write_summary(sweep: Path) -> list[dict[str, Any]]:
    """Write ``summary.csv`` from every ``job.json`` below a sweep's folder; return its rows."""
    with locked(sweep / ".summary.lock"):
        rows = [row for path in sweep.rglob("job.json") if (row := _row(path)) is not None]
        rows.sort(key=lambda row: int(row["job"]) if row["job"].isdigit() else 0)
        write_csv(sweep / "summary.csv", rows)
    return rows


def _error_of(job_return: JobReturn) -> BaseException:
    """Return the error of a failed job, which Hydra's ``return_value`` raises again."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            _ = job_return.return_value
    except BaseException as error:
        return error
    raise ValueError("the job has not failed")


def _row(path: Path) -> dict[str, Any] | None:
    """Return the row of a job; ``None``, with a printed warning, if its file is damaged."""
    try:
        row = read_json(path)
    except InputError as error:
        reason = str(error)
    else:
        if all(isinstance(row.get(key), str) for key in ("job", "status", "reason")):
            return row
        reason = f"{path} is damaged: it has no texts job, status and reason"
    log.warning("left out of the sweep's table: %s", reason)
    return None


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Print a table of the differing settings and IoU of jobs, and a line for each failed job."""
    print_table(summary_table(rows))
    for row in rows:
        if row["reason"]:
            said = f"job {row['job']} failed: {row['reason']}"
            print_line((said, "red"))


def summary_table(rows: list[dict[str, Any]]) -> Table:
    """Build the console's table: differing settings, mean IoU and the IoU of classes."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in ("job", "status", "reason"))
    apart = [key for key in keys if not _is_shown(key) and len({row.get(key) for row in rows}) > 1]
    scores = sorted((key for key in keys if key.startswith(IOU)), key=lambda key: key != f"{IOU}mean")
    frame: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True}
    table = Table(
        "job", *short_names(apart), title="sweep: IoU on the test split", **frame
    )  # narrow, for the 80 columns of a log
    for key in scores:
        table.add_column(key.removeprefix(IOU), justify="right")
    for row in rows:
        found = (row.get(key) for key in scores)
        settings = (str(row.get(key, "")) for key in apart)
        table.add_row(str(row["job"]), *settings, *("" if value is None else f"{value:.3f}" for value in found))
    return table


def _is_shown(key: str) -> bool:
    return key.startswith(SHOWN) and key.count("/") < 3
