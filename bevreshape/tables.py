"""Metrics as a table on the console and as a file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from bevreshape.files import write_text


def metrics_table(metrics: Mapping[str, float], classes: Sequence[str], title: str) -> Table:
    """IoU per class at 0.5, at the threshold best on the validation set where known, and per distance band."""
    bands = [key.rsplit("/", 1)[1] for key in metrics if key.startswith(f"test/iou/{classes[0]}/")]
    chosen = "test/iou_at_val_threshold"
    with_chosen = f"{chosen}/mean" in metrics
    table = Table(title=title)
    for heading in ("class", "IoU", *(["at val's threshold"] if with_chosen else ["best", "threshold"]), *bands):
        table.add_column(heading, justify="left" if heading == "class" else "right", no_wrap=heading == "class")
    for name in (*classes, "mean"):
        extra = [f"{chosen}/{name}"] if with_chosen else [f"test/best_iou/{name}", f"test/best_threshold/{name}"]
        keys = [f"test/iou/{name}", *extra, *(f"test/iou/{name}/{band}" for band in bands)]
        table.add_row(name, *(f"{metrics[key]:.3f}" if key in metrics else "" for key in keys))
    return table


def own_table(values: Mapping[str, float], title: str | None = None) -> Table:
    """Scalars named ``row/column``, where a row's name may have slashes of its own; a figure that does not exist is left blank."""
    cells = {tuple(key.rpartition("/")[::2]): value for key, value in values.items()}
    columns = list(dict.fromkeys(column for _, column in cells))
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in dict.fromkeys(row for row, _ in cells):
        found = [cells.get((row, column), math.nan) for column in columns]
        table.add_row(row, *("" if math.isnan(value) else f"{value:.3f}" for value in found))
    return table


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write ``metrics.json``; a figure that does not exist (NaN) is null."""
    known = {key: None if math.isnan(value) else value for key, value in metrics.items()}
    write_text(folder / "metrics.json", json.dumps(known, indent=2) + "\n")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with its line ends."""
    first, *others = (
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in (headings, *rows)
    )
    return first + "|" + "---|" * len(headings) + "\n" + "".join(others)
