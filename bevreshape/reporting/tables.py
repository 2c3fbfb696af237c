"""Write tables on the console and in Markdown, and metrics as tables and a file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bevreshape.storage.files import write_text

UNLIMITED = 100_000
"""Width of a console without a limit, characters."""

PROSE = 60
"""Characters in a line of a sentence, where there is room for more."""

SHORT = 16
"""Characters in a line of a sentence, where there is little room."""

USUAL = 80
"""Characters in a line of a log."""


def print_table(table: Table) -> None:
    """Print a table on stdout with every word readable, its title above and its caption below.

    In a file or a pipe every row is printed in full, whatever its length. Long sentences wrap, and headings do if 80
    characters a line then suffice. On a terminal that is too narrow, words wrap first. If that is not enough, the table
    continues in further blocks of columns, each beginning with the columns that distinguish the rows. Square brackets
    are not markup and colons not emoji; color is given as :class:`~rich.text.Text`.
    """
    console = Console()
    if table.title:
        console.print(_text(table.title), soft_wrap=True)
    on_terminal = console.file.isatty()  # not rich's is_terminal, which FORCE_COLOR changes in a pipe too
    columns = _columns(table, may_wrap=on_terminal)
    if not on_terminal:
        console = Console(width=USUAL if _fit(columns, USUAL, table) else UNLIMITED)
    for block in _blocks(columns, console.width, table):
        console.print(block)
    if table.caption:
        console.print(_text(table.caption), soft_wrap=True)


@dataclass(frozen=True)
class _Column:
    """Hold a column's words, its full width, and its least width without broken words, in characters."""

    heading: Text
    cells: list[Text]
    whole: int
    least: int
    right: bool


def _columns(table: Table, may_wrap: bool) -> list[_Column]:
    """Return the columns of a table; if cells may not wrap, as in a file, only headings and sentences do."""
    columns = []
    for column in table.columns:
        heading, cells = _text(column.header), [_text(cell) for cell in column.cells]
        longest, word = (max(map(size, cells), default=0) for size in (_line, _word))
        most = min(longest, max(word, PROSE))
        least = max(word, min(longest, SHORT)) if may_wrap and not column.no_wrap else most
        size = max(_line(heading), most), max(_word(heading), least)
        columns.append(_Column(heading, cells, *size, column.justify == "right"))
    return columns


def _fit(columns: list[_Column], width: int, style: Table) -> bool:
    return sum(column.least for column in columns) + _frame(len(columns), style) <= width


def _blocks(columns: list[_Column], width: int, style: Table) -> list[Table]:
    """Split a table into tables that are not wider than ``width``."""
    if _fit(columns, width, style):
        return [_fitted(columns, width, style)]
    keys = columns[: _distinguishing(columns)]
    blocks: list[list[_Column]] = []
    for column in columns[len(keys) :]:
        if blocks and _fit([*blocks[-1], column], width, style):
            blocks[-1].append(column)
        else:
            blocks.append([*keys, column])
    return [_fitted(block, width, style) for block in blocks or [keys]]


def _distinguishing(columns: list[_Column]) -> int:
    """Return how many of the first columns distinguish all rows; one if all columns do not."""
    rows = list(zip(*([cell.plain for cell in column.cells] for column in columns), strict=True))
    return next((n for n in range(1, len(columns)) if len({row[:n] for row in rows}) == len(rows)), 1)


def _fitted(columns: list[_Column], width: int, style: Table) -> Table:
    """Return a table whose wide columns share the available width; words are broken only as a last resort."""
    room = width - _frame(len(columns), style)
    least = [column.least for column in columns]
    if sum(least) > room:
        least = [1] * len(columns)
    most = max(column.whole for column in columns)
    while sum(widths := _widths(columns, least, most)) > room and most > 1:
        most -= 1
    table = _styled(style)
    for column, size in zip(columns, widths, strict=True):
        table.add_column(column.heading, justify="right" if column.right else "left", width=size, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def _widths(columns: list[_Column], least: list[int], most: int) -> list[int]:
    return [max(low, min(column.whole, most)) for low, column in zip(least, columns, strict=True)]


def _frame(count: int, style: Table) -> int:
    """Return the characters of a line between and around ``count`` columns."""
    table, console = _styled(style), Console(width=UNLIMITED)
    for _ in range(count):
        table.add_column(width=1)
    return Measurement.get(console, console.options, table).maximum - count


def _styled(style: Table) -> Table:
    return Table(
        box=style.box,
        show_lines=style.show_lines,
        show_edge=style.show_edge,
        pad_edge=style.pad_edge,
        collapse_padding=style.collapse_padding,
    )


def _line(text: Text) -> int:
    return max(map(cell_len, text.plain.splitlines()), default=0)


def _word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last part of every dotted key, or as many parts as distinguish it from the others."""
    names = []
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[first:]) for first in reversed(range(len(parts))))
        others = [f".{other}" for other in keys if other != key]
        names.append(next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key))
    return names


def print_metrics(
    metrics: Mapping[str, float],
    classes: Sequence[str],
    title: str,
    tables: Sequence[tuple[str | None, Mapping[str, float]]] = (),
) -> None:
    """Print the IoU of a test, if a metric gives it, and below it a table of every other metric.

    Args:
        metrics: of the test.
        classes: names of the classes.
        title: of the first table.
        tables: title and values of every other metric.
    """
    if any(key.startswith("test/iou/") for key in metrics):
        print_table(metrics_table(metrics, classes, title))
        title = ""
    for own, values in tables:
        print_table(dataset_metrics_table(values, own or title))
        title = ""


def metrics_table(metrics: Mapping[str, float], classes: Sequence[str], title: str) -> Table:
    """Tabulate IoU per class at 0.5, at the validation set's best threshold if known, and per distance band."""
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


def dataset_metrics_table(values: Mapping[str, float], title: str | None = None) -> Table:
    """Tabulate scalars named ``row/column``; a row's name may have slashes, and a missing figure is blank."""
    cells = {tuple(key.rpartition("/")[::2]): value for key, value in values.items()}
    columns = list(dict.fromkeys(column for _, column in cells))
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in dict.fromkeys(row for row, _ in cells):
        found = [cells.get((row, column), math.nan) for column in columns]
        table.add_row(row, *map(_figure, found))
    return table


def _figure(value: float) -> str:
    """Format a scalar of any size: with three decimals, or three digits if these would show less."""
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1e6 else f"{value:.3g}"


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write ``metrics.json``; an undefined figure (NaN) is null."""
    known = {key: None if math.isnan(value) else value for key, value in metrics.items()}
    write_text(folder / "metrics.json", json.dumps(known, indent=2) + "\n")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, with its line ends."""
    first, *others = (
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in (headings, *rows)
    )
    return first + "|" + "---|" * len(headings) + "\n" + "".join(others)
