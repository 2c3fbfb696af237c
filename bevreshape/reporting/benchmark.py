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


def _case_label(row: Mapping[str, Any]) -> str:
    return (
        f"{row['batch']}×{row['cameras']}×{row['channels']}×{row['height']}×{row['width']} → "
        f"{row['rows']}×{row['cols']}, {row['device']}, {row['precision']}"
    )


def write_figure(path: Path, rows: Sequence[Mapping[str, Any]], scaling: str | None) -> None:
    """Draw and write a PNG, see :func:`draw`."""
    figure = draw(rows, scaling)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))
