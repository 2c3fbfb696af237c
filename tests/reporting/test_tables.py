"""Test that tables are readable at any width, and printed in full in a pipe."""

import math
import random
import re
import sys

import pytest
from rich.cells import cell_len
from rich.table import Table

from bevreshape.config.sweep import print_summary
from bevreshape.reporting.tables import markdown_table, metrics_table, print_metrics, print_table, short_names

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys):
    """Make stdout a terminal of so many columns."""

    def of(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        for key, value in {"TERM": "xterm", "COLUMNS": str(columns)}.items():
            monkeypatch.setenv(key, value)

    return of


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Make stdout a pipe, whatever the test run's own is."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setenv("COLUMNS", "40")


def parsed(printed: str) -> list[list[list[str]]]:
    """Return blocks of rows of cells, headings first; broken and wrapped words are joined without spaces."""
    blocks: list[list[list[str]]] = []
    for line in ANSI.sub("", printed).splitlines():
        if line[0] == "┏":
            blocks.append([])
        if line[0] in "┏┡├":
            blocks[-1].append([])
        if line[0] in "┃│":
            cells = ["".join(cell.split()) for cell in re.split("[┃│]", line)[1:-1]]
            row = blocks[-1][-1]
            row[:] = [a + b for a, b in zip(row, cells, strict=True)] if row else cells
    return blocks


def joined(table: list[list[str]]) -> list[list[str]]:
    return [["".join(cell.split()) for cell in row] for row in table]


@pytest.mark.parametrize("columns", [24, 40, 80, 120])
@pytest.mark.parametrize("seed", range(6))
def test_every_cell_can_be_read_in_a_terminal_of_any_width(terminal, capsys, columns: int, seed: int) -> None:
    terminal(columns)
    draw = random.Random(seed)
    words = ["0.123", "±", "data.jitter.yaw_deg", "a-rather-long-name-of-a-run", "[red]", "[/]", ":car:", "é", "12"]
    headings = [" ".join(draw.choices(words, k=draw.choice((1, 1, 2, 9)))) for _ in range(draw.choice((1, 3, 9)))]
    given = [
        headings,
        *([f"{row} {draw.choice(words)}", *draw.choices(words, k=len(headings) - 1)] for row in range(4)),
    ]
    table = Table(*headings, show_lines=True)
    for row in given[1:]:
        table.add_row(*row)
    print_table(table)
    printed = capsys.readouterr().out
    assert all(cell_len(line) <= columns for line in ANSI.sub("", printed).splitlines())
    blocks = parsed(printed)
    keys = [row[:1] for row in joined(given)]
    assert all([row[:1] for row in block] == keys for block in blocks)
    together = [[*key, *(cell for block in blocks for cell in block[i][1:])] for i, key in enumerate(keys)]
    assert together == joined(given)


def test_wide_tables_in_a_pipe_and_in_blocks(terminal, pipe, capsys) -> None:
    table = Table("run", "lr", *(f"score{i}" for i in range(12)))
    for lr in ("0.1", "0.01"):
        table.add_row("mlp", lr, *["0.500 ± 0.012"] * 12)
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.count("0.500 ± 0.012") == 12 for line in lines[3:5])
    terminal(80)
    print_table(table)
    blocks = parsed(capsys.readouterr().out)
    assert [block[0][:2] for block in blocks] == [["run", "lr"]] * len(blocks)
    assert [heading for block in blocks for heading in block[0][2:]] == [f"score{i}" for i in range(12)]


def metrics(classes: list[str], bands: list[str]) -> dict[str, float]:
    found = {}
    for name in (*classes, "mean"):
        found |= {f"test/iou/{name}": 0.5, f"test/iou_at_val_threshold/{name}": 0.25}
        found |= {f"test/iou/{name}/{band}": 0.125 for band in bands}
    return found


def test_the_table_of_a_run_fits_a_log_of_80_columns(pipe, capsys) -> None:
    classes = ["drivable", "lane", "crossing", "vehicle"]
    bands = ["0-10m", "10-20m", "20-30m", "30-40m", "40-50m"]
    print_table(metrics_table(metrics(classes, bands), classes, "mlp-synthetic-seed0: test"))
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "mlp-synthetic-seed0: test"
    assert max(map(len, lines)) <= 80
    assert sum("│" in line for line in lines) == 5
    assert all(line.count("0.125") == 5 for line in lines if "│" in line)


def test_the_table_of_a_sweep_fits_a_log_of_80_columns(pipe, capsys) -> None:
    rows = [
        {
            "job": str(job), "status": "done", "reason": "", "reshaper": name, "optimizer.lr": "0.01",
            "data.root": "/a/path",
            "test/iou/drivable": 0.7, "test/iou/lane": 0.2, "test/iou/crossing": 0.1, "test/iou/vehicle": 0.3,
            "test/iou/mean": 0.325, "fit/seconds": 12.3, "fit/steps": 10, "fit/samples_per_second": 99.0,
        }
        for job, name in enumerate(("mlp", "cross_attention", "deformable_attention"))
    ]  # fmt: skip
    told = {"reshaper": "ipm", "optimizer.lr": "-1", "data.root": "/a/path"}
    rows.append({"job": "3", "status": "failed", "reason": "[/] optimizer.lr=-1 must be positive " * 9, **told})
    print_summary(rows)
    out = capsys.readouterr().out
    _, headings, _, *lines = out.splitlines()
    assert max(map(len, [headings, *lines[:4]])) <= 80
    assert headings.split() == ["job", "reshaper", "lr", "mean", "drivable", "lane", "crossing", "vehicle"]
    assert [line.split()[:4] for line in lines[:3]] == [
        [row["job"], row["reshaper"], "0.01", "0.325"] for row in rows[:3]
    ]
    assert lines[3].split() == ["3", "ipm", "-1"]
    assert f"job 3 failed: {rows[3]['reason']}" in out
    assert "data.root" not in out


def test_names_are_neither_markup_nor_emoji(pipe, capsys) -> None:
    classes = ["[red]", "[/]", ":car:"]
    print_table(metrics_table(metrics(classes, []), classes, "[/] of [bold]"))
    out = capsys.readouterr().out
    assert out.startswith("[/] of [bold]\n")
    assert all(f"│ {name} " in out for name in classes)


def test_every_metric_is_printed_below_the_iou(pipe, capsys) -> None:
    others = [(None, {"height/mean_error_m": 0.0001234, "height/cells": 123456.0}), ("protocol 2", {"flat": math.nan})]
    print_metrics(metrics(["lane"], []), ["lane"], "run: test", others)
    out = capsys.readouterr().out
    assert out.startswith("run: test\n")
    assert [line.split() for line in out.splitlines() if "height" in line] == [
        ["│", "height", "│", "0.000123", "│", "123456.000", "│"]
    ]
    assert out.index("0.500") < out.index("0.000123") < out.index("protocol 2") < out.index("flat")


def test_without_iou_the_first_other_table_has_the_title(pipe, capsys) -> None:
    print_metrics({"test/loss": 1.0}, ["lane"], "run: test", [(None, {"height/mean_error_m": 0.5})])
    out = capsys.readouterr().out
    assert out.startswith("run: test\n")
    assert "IoU" not in out
    assert "0.500" in out


def test_markdown_rows_are_lines() -> None:
    assert markdown_table(("a|b", "c"), [("1\n2", "3")]) == "| a\\|b | c |\n|---|---|\n| 1 2 | 3 |\n"


def test_short_names_distinguish_keys() -> None:
    assert short_names(["optimizer.lr", "reshaper", "seed"]) == ["lr", "reshaper", "seed"]
    assert short_names(["a.x", "b.x", "c.b.x", "x"]) == ["a.x", "b.x", "c.b.x", "x"]
