"""Render the page: answers, sections and the explorer, as one HTML file that opens from disk without a network.

Parts that are not given are left out.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from bevreshape.errors import InputError
from bevreshape.reporting.explorer import Explorer
from bevreshape.reporting.explorer_data import data_uri, explorer_data, image_uri
from bevreshape.storage.files import write_text

MOST_BYTES = 8_000_000
PNG_DPI = 200

FIGURE_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5c6370",
    "axes.labelcolor": "#2b2f36",
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#2b2f36"]),
    "grid.color": "#e4e7ec",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": "#5c6370",
    "ytick.color": "#5c6370",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.constrained_layout.use": True,
}
"""Style of the page's figures, for ``matplotlib.rc_context``; colors after Okabe and Ito (2008)."""


@dataclass(frozen=True)
class Claim:
    """Hold one row of the claims table, as formatted texts.

    Attributes:
        number: of the claim, such as ``A7``.
        claim: in words.
        measurement: the measured quantity and its data.
        value: the result with its interval.
        verdict: such as ``attention ahead``.
    """

    number: str
    claim: str
    measurement: str
    value: str
    verdict: str


@dataclass(frozen=True)
class Table:
    """Hold words and figures in columns; columns of figures alone are right-aligned.

    Raises:
        InputError: when a row has more or fewer entries than there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(
                    f"report: row {number} of a table has {len(row)} entries but there are {len(self.columns)} columns "
                    f"({', '.join(self.columns)}); give every column one"
                )

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Return, for each column, whether every entry begins with a figure or is empty."""
        return tuple(
            any(row[i] for row in self.rows)
            and all(row[i].lstrip("−-+±<≤>≥≈ .")[:1].isdigit() for row in self.rows if row[i])
            for i in range(len(self.columns))
        )


@dataclass(frozen=True)
class Chart:
    """Hold a figure of matplotlib, or an image (height, width, 3) in uint8.

    Attributes:
        figure: stored in the page as SVG or PNG, whichever is smaller, an image as JPEG or PNG.
        alt: text alternative.
        caption: the line below.

    Raises:
        InputError: when ``alt`` is empty, or the figure is neither.
    """

    figure: Any
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise InputError("report: a chart's alt text is empty; describe the chart in one sentence")
        if not isinstance(self.figure, Figure) and not _is_image(self.figure):
            what = f"{type(self.figure).__name__} of shape {getattr(self.figure, 'shape', None)}"
            raise InputError(
                f"report: a chart is {what}; give a matplotlib Figure, or a (height, width, 3) uint8 array"
            )


@dataclass(frozen=True)
class Section:
    """Hold a title, text with empty lines between paragraphs, charts, claims and a table.

    Raises:
        InputError: when it is empty.
    """

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    table: Table | None = None
    claims: Sequence[Claim] = ()

    def __post_init__(self) -> None:
        if not self.title.strip() or not (self.text.strip() or self.charts or self.claims or self.table):
            raise InputError(f"report: section {self.title!r} lacks a title or has nothing in it; leave it out")


@dataclass(frozen=True)
class Report:
    """Hold the content of the page, in this order.

    Attributes:
        title: of the page.
        text: introduction, below the title and the answers.
        sections: in order.
        explorer: the last part.
        source: origin, at the foot: command, runs, version.
        answers: sentences right below the title, such as that of a comparison.
    """

    title: str
    text: str = ""
    sections: Sequence[Section] = ()
    explorer: Explorer | None = None
    source: str = ""
    answers: Sequence[str] = ()


def render(report: Report) -> str:
    """Render the page as HTML.

    Raises:
        InputError: when it would exceed 8 MB.
    """
    data = None if report.explorer is None else explorer_data(report.explorer)
    charts = [[_embedded(chart) for chart in section.charts] for section in report.sections]
    style, script = _part("style.css"), _part("explorer.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["paragraphs"] = lambda text: [part for part in text.split("\n\n") if part.strip()]
    page = environment.from_string(_part("page.html.jinja")).render(
        report=report,
        sections=list(zip(report.sections, charts, strict=True)),
        data=data,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )
    size = len(page.encode())
    if size > MOST_BYTES:
        raise InputError(f"report: {_too_large(size, data, charts)}")
    return page


def write(report: Report, path: str | Path) -> None:
    """Write the page atomically; the file exists only when it is complete.

    Raises:
        InputError: when it would exceed 8 MB, or cannot be written.
    """
    write_text(path, render(report))


def _is_image(figure: object) -> bool:
    return isinstance(figure, np.ndarray) and figure.dtype == np.uint8 and figure.ndim == 3 and figure.shape[2] == 3


def _part(name: str) -> str:
    return resources.files("bevreshape.reporting").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that loads nothing and allows only this style and this script."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(chart: Chart) -> dict[str, Any]:
    """Return address, size in CSS pixels and texts of a chart."""
    if isinstance(chart.figure, Figure):
        width, height = (round(96 * inches) for inches in chart.figure.get_size_inches())
        address = _figure_uri(chart.figure)
    else:
        height, width = chart.figure.shape[:2]
        address = image_uri(chart.figure)
    return {"address": address, "width": width, "height": height, "alt": chart.alt, "caption": chart.caption}


def _figure_uri(figure: Figure) -> str:
    svg, png = io.BytesIO(), io.BytesIO()
    # the same figure always gives the same file
    with matplotlib.rc_context({"svg.hashsalt": "bevreshape"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=PNG_DPI)
    if len(svg.getvalue()) <= len(png.getvalue()):
        return data_uri("image/svg+xml", svg.getvalue())
    return data_uri("image/png", png.getvalue())


def _too_large(size: int, data: dict[str, Any] | None, charts: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return the size of the page, its parts, and the remedy."""
    remedies = {
        "weights": "show fewer scenes, reshapers, heads or orders, or choose_cells(grid, most=…) fewer cells",
        "images": "show fewer scenes",
        "figures": "leave some out, or draw them smaller",
    }
    parts = dict.fromkeys(remedies, 0)
    parts["figures"] = sum(len(chart["address"]) for section in charts for chart in section)
    if data is not None:
        parts["weights"] = sum(len(packed) for packed in data["weights"])
        parts["images"] = sum(len(camera["image"]) for scene in data["scenes"] for camera in scene["cameras"])
    largest = max(parts, key=lambda part: parts[part])
    listed = ", ".join(f"{part} {bytes_ / 1e6:.1f} MB" for part, bytes_ in parts.items())
    return (
        f"the page is {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.1f} MB ({listed}); of the {largest}, "
        f"{remedies[largest]}"
    )
