"""Draw costs of view transformers as tables and figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from bevreshape.analysis.benchmark import size_of
from bevreshape.analysis.benchmark_cases import Case
from bevreshape.analysis.costs import Cost
from bevreshape.reporting.labels import figure_text
from bevreshape.storage.files import write_atomic


def cost_table(case: Case, costs: Mapping[str, Cost], full_model: bool = False) -> Table:
    """Return the table of one case: medians ± half the interquartile range."""
    rate = next(iter(costs.values())).matmul_flops_per_s
    table = Table(title=f"{case.title}; matrix products {rate / 1e9:.0f} GFLOP/s")
    table.add_column("reshaper", no_wrap=True)
    headings = ["params", "MFLOP", "forward ms", "fwd+bwd ms", "MiB", "fwd+bwd MiB", "of matmul", "fwd+bwd of it"]
    for heading in [*headings[:6], "frames/s"] if full_model else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cost in costs.items():
        measured = not math.isnan(cost.step_s)
        shares = [f"{cost.of_matmul:.0%}", f"{cost.step_of_matmul:.0%}" if measured else ""]
        table.add_row(
            name,
            f"{cost.parameters / 1e3:,.1f}k",
            f"{cost.flops / 1e6:,.1f}",
            f"{cost.forward_s * 1e3:.2f} ± {cost.forward_spread_s * 1e3:.2f}",
            f"{cost.step_s * 1e3:.2f} ± {cost.step_spread_s * 1e3:.2f}" if measured else "",
            f"{cost.forward_bytes / 2**20:.1f}",
            f"{cost.step_bytes / 2**20:.1f}" if measured else "",
            *([f"{case.batch / cost.forward_s:.1f}"] if full_model else shares),
        )
    return table


def floor_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return one page, see :func:`floor_table`, for every shape that was measured in several ways."""
    shapes: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        shapes.setdefault(_shape_label(row), []).append(row)
    return [floor_table(shape, found) for shape, found in shapes.items() if len({_way(row) for row in found}) > 1]


def floor_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a page of times in every way, and the share of the least time in the forward pass.

    Args:
        title: of the page.
        rows: costs with a ``reshaper``, and a way: ``device``, ``precision`` and ``form``.
    """
    ways = list(dict.fromkeys(_way(row) for row in rows))
    rates = {
        f"{row['device']} {row['precision']}": f"{row['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s in products, "
        f"{row['copy_bytes_per_s'] / 1e9:.3g} GB/s in copies"
        for row in rows
    }
    table = Table(
        title=f"{title}; ms forward · forward and backward; floor: least time / forward",
        caption="; ".join(f"{way}: {rate}" for way, rate in rates.items()),
    )
    table.add_column("", no_wrap=True)
    table.add_column("MFLOP", justify="right")
    table.add_column("MiB", justify="right")
    for way in ways:
        table.add_column(way, justify="right")
        table.add_column("floor", justify="right")
    for name in dict.fromkeys(row["reshaper"] for row in rows):
        own = {_way(row): row for row in rows if row["reshaper"] == name}
        first = next(iter(own.values()))
        cells = [f"{first['flops'] / 1e6:,.1f}", f"{first['least_bytes'] / 2**20:.1f}"]
        for way in ways:
            cells += _times(own[way]) if way in own else ["", ""]
        table.add_row(name, *cells)
    return table


def _times(row: Mapping[str, Any]) -> list[str]:
    both = "" if math.isnan(row["step_s"]) else f" · {row['step_s'] * 1e3:.3g}"
    return [f"{row['forward_s'] * 1e3:.3g}{both}", f"{row['floor_s'] / row['forward_s']:.0%}"]


def _way(row: Mapping[str, Any]) -> str:
    return f"{row['device']} {row['precision']} {row['form'].replace('_', ' ')}"


def scaling_table(key: str, exponents: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the table of scaling exponents."""
    table = Table(title=f"scaling with {key}: exponent e of size^e")
    columns = {"forward_s": "forward", "step_s": "fwd+bwd", "forward_bytes": "memory", "step_bytes": "fwd+bwd memory"}
    for heading in ("reshaper", *columns.values()):
        table.add_column(heading, justify="left" if heading == "reshaper" else "right")
    for name, found in exponents.items():
        table.add_row(name, *(f"{found[what]:.2f}" if what in found else "" for what in columns))
    return table


def draw(rows: Sequence[Mapping[str, Any]], scaling: str | None) -> Figure:
    """Draw bars of time and memory, one panel for each case; with scaling, lines over the size."""
    names = list(dict.fromkeys(row["reshaper"] for row in rows))
    panels = [("step_s", "forward and backward [ms]", 1e3), ("step_bytes", "its memory [MiB]", 2**-20)]
    if any(math.isnan(row["step_s"]) for row in rows):
        panels = []
    panels = [("forward_s", "forward [ms]", 1e3), ("forward_bytes", "its memory [MiB]", 2**-20), *panels]
    figure = Figure(figsize=(4 * len(panels), 1.5 + 0.35 * len(names) if not scaling else 4), layout="constrained")
    for axes, (what, label, unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if scaling:
            for name in names:
                own = [row for row in rows if row["reshaper"] == name]
                axes.plot(
                    [size_of(row, scaling) for row in own],
                    [row[what] * unit for row in own],
                    "o-",
                    label=figure_text(name),
                )
            axes.set(xscale="log", yscale="log", xlabel=scaling, ylabel=label)
        else:
            cases = list(dict.fromkeys(_case_label(row) for row in rows))
            for number, case in enumerate(cases):
                bars = {row["reshaper"]: row[what] * unit for row in rows if _case_label(row) == case}
                places = [i + (number - (len(cases) - 1) / 2) * 0.8 / len(cases) for i in range(len(names))]
                axes.barh(places, [bars.get(name, math.nan) for name in names], 0.8 / len(cases), label=case)
            axes.set(xlabel=label, yticks=range(len(names)), yticklabels=[*map(figure_text, names)])
            axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _shape_label(row: Mapping[str, Any]) -> str:
    return "{batch}×{cameras}×{channels}×{height}×{width} → {rows}×{cols}".format(**row)


def _case_label(row: Mapping[str, Any]) -> str:
    return f"{_shape_label(row)}, {row['device']}, {row['precision']}, {row['form'].replace('_', ' ')}"


def write_figure(path: Path, rows: Sequence[Mapping[str, Any]], scaling: str | None) -> None:
    """Draw and write a PNG, see :func:`draw`."""
    figure = draw(rows, scaling)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))
