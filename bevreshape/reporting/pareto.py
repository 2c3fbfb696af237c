"""Charts of IoU against cost, with the Pareto front, the choice and the limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from bevreshape.comparison.answer import Answer
from bevreshape.comparison.limits import given_limits
from bevreshape.comparison.outcome import Outcome
from bevreshape.comparison.pareto import CostAxis, pareto_front
from bevreshape.comparison.words import count, iou_words, limit_words
from bevreshape.reporting.label_places import Box, leader, place_labels
from bevreshape.reporting.labels import figure_text

WIDTH_IN, HEIGHT_IN = 3.9, 3.5
"""Inches. The width is that of a phone's screen, where letters keep their size."""

SMALL = 7
"""Points."""

CHOICE, FRONT, DOMINATED = "#d55e00", "#0072b2", "#8a919c"
"""Colors of points after Okabe and Ito (2008), and grey; marker and size differ too."""

INK, QUIET = "#1c2026", "#5a616c"
"""Colors of labels: of the choice and the front, and of dominated points."""


@dataclass(frozen=True)
class Point:
    """A candidate in a chart.

    Attributes:
        name: of the candidate.
        cost: on the axis.
        seeds: test mean IoU of every seed.
        feasible: within the limits.
    """

    name: str
    cost: float
    seeds: tuple[float, ...]
    feasible: bool

    @property
    def iou(self) -> float:
        """Return the mean over the seeds."""
        return sum(self.seeds) / len(self.seeds)


def pareto_points(answer: Answer, axis: CostAxis) -> list[Point]:
    """Return the trained candidates whose cost is known."""
    trained = [(one, True) for one in ([] if answer.choice is None else [answer.choice])]
    trained += [(rival.candidate, not rival.excesses) for rival in answer.rivals]
    return [
        Point(one.name, cost, tuple(run.iou["mean"] for run in one.runs), feasible)
        for one, feasible in trained
        if (cost := axis.value(one)) is not None and cost > 0
    ]


def pareto_chart(outcome: Outcome, answer: Answer, axis: CostAxis) -> Figure | None:
    """Draw test mean IoU against a cost; ``None`` if no cost is known.

    Bars span the seeds. Points that another one dominates are grey, those over a limit hollow.
    """
    points = pareto_points(answer, axis)
    if not points:
        return None
    front = pareto_front({point.name: (point.cost, point.iou) for point in points})
    choice = None if answer.choice is None else answer.choice.name
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    limit = given_limits(outcome.constraints).get(axis.name)
    _scale(axes, points, limit)
    by_name = {point.name: point for point in points}
    axes.step(
        [by_name[name].cost for name in front], [by_name[name].iou for name in front], where="post", color=FRONT,
        linewidth=1, alpha=0.5, zorder=1,
    )  # fmt: skip
    for point in points:
        _draw(axes, point, point.name in front, point.name == choice)
    if limit is not None:
        _draw_limit(axes, limit, limit_words(axis.name, limit))
    axes.set_xlabel(axis.label, fontsize=SMALL + 1)
    axes.set_ylabel("test IoU, mean of classes", fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)
    _legend(figure, points, front, choice)
    order = sorted(points, key=lambda point: (point.name != choice, point.name not in front))
    _label(figure, axes, order, front, choice)
    return figure


def pareto_words(answer: Answer, axis: CostAxis) -> str:
    """Return a text alternative of the chart: the front from the cheapest to the best."""
    points = {point.name: (point.cost, point.iou) for point in pareto_points(answer, axis)}
    listed = ", ".join(f"{name} ({iou_words(points[name][1])})" for name in pareto_front(points))
    return f"Test IoU against {axis.label}. The Pareto front, the cheapest first: {listed}."


def _scale(axes: Axes, points: Sequence[Point], limit: float | None) -> None:
    """Set the limits of both axes; costs are on a logarithmic scale if they differ by more than a factor of 4."""
    costs = [point.cost for point in points] + ([] if limit is None else [limit])
    low, high = min(costs), max(costs)
    if high > 4 * low:
        room = (high / low) ** 0.08
        axes.set_xscale("log")
        axes.set_xlim(low / room, high * room)
        subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.1 * (high - low) or 0.2 * high
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    ends = [iou for point in points for iou in point.seeds]
    room = 0.08 * (max(ends) - min(ends)) or 0.02
    axes.set_ylim(min(ends) - room, max(ends) + room)
    decimals = 2 if max(ends) - min(ends) > 0.08 else 3
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{decimals}f}".replace("0.", ".", 1)))


def _draw_limit(axes: Axes, limit: float, words: str) -> None:
    """Draw a limit as a line with its value at the upper end, and shade what is over it."""
    low, high = axes.get_xlim()
    axes.axvline(limit, color=INK, linewidth=1, linestyle="--", zorder=0.5)
    axes.axvspan(limit, high, color="#e4e7ec", alpha=0.5, zorder=0, linewidth=0)
    axes.set_xlim(low, high)
    right = axes.transAxes.inverted().transform(axes.transData.transform((limit, 0)))[0] < 0.5
    axes.annotate(
        f" {words} ", (limit, 1), xycoords=("data", "axes fraction"), fontsize=SMALL, color=INK,
        ha="left" if right else "right", va="top",
    )  # fmt: skip


def _draw(axes: Axes, point: Point, on_front: bool, chosen: bool) -> None:
    color, marker, size = (CHOICE, "D", 6.0) if chosen else (FRONT, "o", 5.0) if on_front else (DOMINATED, "o", 3.5)
    order = 4 if chosen else 3 if on_front else 2
    axes.vlines(point.cost, min(point.seeds), max(point.seeds), color=color, linewidth=1.2, zorder=order - 0.5)
    filled = color if point.feasible else "white"
    axes.plot(
        point.cost, point.iou, marker, color=filled, markeredgecolor=color, markersize=size, markeredgewidth=1,
        zorder=order,
    )  # fmt: skip


def _legend(figure: Figure, points: Sequence[Point], front: Sequence[str], choice: str | None) -> None:
    """Explain the markers that occur, below the axes."""
    kinds = [
        (choice is not None, "the choice", CHOICE, CHOICE, "D"),
        (True, "Pareto front", FRONT, FRONT, "o"),
        (any(point.name not in front for point in points), "dominated", DOMINATED, DOMINATED, "o"),
        (any(not point.feasible for point in points), "over a limit", "white", QUIET, "o"),
    ]
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=fill, markeredgecolor=edge, markersize=4.5, label=label)
        for occurs, label, fill, edge, marker in kinds
        if occurs
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), fontsize=SMALL - 0.5, handletextpad=0.1,
        columnspacing=1.2, borderpad=0,
    )  # fmt: skip


def _label(figure: Figure, axes: Axes, points: Sequence[Point], front: Sequence[str], choice: str | None) -> None:
    """Write the names next to the points, as near as other names, markers and bars allow."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # labels do not move the axes
    unit, renderer = 72 / figure.dpi, canvas.get_renderer()  # places are in points

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (axes.transData.transform((x, y)) * unit).tolist()
        return across, up

    def extent(artist: Artist) -> Box:
        return Box(*(float(end) * unit for end in artist.get_window_extent(renderer).extents))

    texts = [
        axes.annotate(
            figure_text(point.name), (point.cost, point.iou), (0, 0), textcoords="offset points", fontsize=SMALL,
            color=INK if point.name in (*front, choice) else QUIET, va="bottom",
            fontweight="bold" if point.name == choice else "normal", zorder=5,
        )
        for point in points
    ]  # fmt: skip
    sizes = [(box.right - box.left + 1, box.top - box.bottom) for box in map(extent, texts)]
    obstacles, lines = [extent(text) for text in axes.texts[: -len(texts)]], []
    places = [place(point.cost, point.iou) for point in points]
    for point, (x, y) in zip(points, places, strict=True):
        low, high = (place(point.cost, end(point.seeds))[1] for end in (min, max))
        obstacles += [Box(x - 3, y - 3, x + 3, y + 3), Box(x - 0.8, low, x + 0.8, high)]
    for line in axes.lines:
        if line.get_linestyle() != "None":
            corners = [place(*axes.transData.inverted().transform(at)) for at in _corners(line)]
            lines += [_between(a, b) for a, b in pairwise(corners)]
    boxes = place_labels(places, sizes, obstacles, lines, _shrunk(extent(axes.patch)))
    for text, (x, y), box in zip(texts, places, boxes, strict=True):
        text.xyann = (box.left - x, box.bottom - y)
        if (end := leader((x, y), box)) is not None:
            ends = axes.transData.inverted().transform([(x / unit, y / unit), (end[0] / unit, end[1] / unit)])
            axes.plot(*ends.T, color=DOMINATED, linewidth=0.5, zorder=1.5)


def _corners(line: Line2D) -> NDArray[np.float64]:
    """Return the corners of a line in pixels."""
    x, y = line.get_xdata(), line.get_ydata()
    if line.get_drawstyle() == "steps-post":
        x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
    return line.get_transform().transform(np.stack([x, y], axis=-1))


def _between(a: tuple[float, float], b: tuple[float, float]) -> Box:
    (left, right), (bottom, top) = (sorted(ends) for ends in zip(a, b, strict=True))
    return Box(left - 0.5, bottom - 0.5, right + 0.5, top + 0.5)


def _shrunk(box: Box) -> Box:
    return Box(box.left + 1, box.bottom + 1, box.right - 1, box.top - 1)
