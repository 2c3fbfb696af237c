"""One table over the runs of a sweep, kept as each ends."""

import csv
import fcntl
import io
import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bevreshape.cli import explain
from bevreshape.files import write_text

SHOWN = ("test/iou/", "fit/")


class Summary(Callback):
    """Hydra callback: ``summary.csv`` in the sweep's folder has a row per job that ended, the failed ones with their reason.

    Each job leaves ``job.json`` in its own folder and the table is made anew from all of these, so that jobs on other
    processes or machines (Hydra launchers) add to the same table.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode is None or config.hydra.mode.name != "MULTIRUN":
            return
        folder = Path(config.hydra.runtime.output_dir)
        row: dict[str, Any] = {"job": str(config.hydra.job.num), "status": "done", "reason": ""}
        if job_return.status is JobStatus.FAILED:
            error = job_return._return_value
            row |= {"status": "failed", "reason": explain(error) or f"{type(error).__name__}: {error}"}
        row |= dict(argument.split("=", 1) for argument in config.hydra.overrides.task if "=" in argument)
        metrics = folder / "metrics.json"
        if metrics.exists():
            row |= {
                key: value for key, value in json.loads(metrics.read_text(encoding="utf-8")).items() if _is_shown(key)
            }
        write_text(folder / "job.json", json.dumps(row))
        rows = write_summary(Path(config.hydra.sweep.dir))
        Console().print(summary_table(rows))


def write_summary(sweep: Path) -> list[dict[str, Any]]:
    """Write ``summary.csv`` from every ``job.json`` below a sweep's folder; its rows."""
    with (sweep / ".summary.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sweep.rglob("job.json")]
        rows.sort(key=lambda row: int(row["job"]) if row["job"].isdigit() else 0)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(sweep / "summary.csv", text.getvalue())
    return rows


def summary_table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a console: what differs between them, and their figures, short."""
    keys = dict.fromkeys(key for row in rows for key in row if key != "reason")
    columns = [k for k in keys if k in ("job", "status") or _is_shown(k) or len({row.get(k) for row in rows}) > 1]
    table = Table(title="sweep")
    for key in columns:
        table.add_column(key.removeprefix("test/"))
    table.add_column("reason")
    for row in rows:
        cells = [row.get(key, "") for key in (*columns, "reason")]
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


def _is_shown(key: str) -> bool:
    return key.startswith(SHOWN) and key.count("/") < 3
