"""Write the sections of a report on runs: learning curves, costs, sweeps and examples."""

import statistics
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bevreshape.analysis.costs import forward_flops, ring
from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.reporting.drawing import draw_sample
from bevreshape.reporting.labels import distinguishing_settings, figure_text, labels
from bevreshape.reporting.page import FIGURE_STYLE, Chart, Section, Table
from bevreshape.reporting.reported_model import IOU, ReportedModel, mean_iou
from bevreshape.reporting.runs import Run, differing, mean_spread, stopped_early
from bevreshape.reshapers import Reshaper

STYLES = ("-", "--", ":", "-.")
"""Styles of lines; the next one follows when all colors are used."""

COLORS = FIGURE_STYLE["axes.prop_cycle"].by_key()["color"]

LEGEND_CHARACTERS = 66
"""Characters in a line of a legend, for a figure of 4.6 inches, which a phone's screen shows at 80 %."""


def results(rows: Sequence[list[Run]]) -> Section:
    """Tabulate IoU of every configuration, and the settings in which it differs from the others."""
    found = dict.fromkeys(
        key for runs in rows for key in runs[0].metrics if key.startswith("test/iou/") and key.count("/") == 2
    )
    classes = sorted(found, key=lambda key: key != f"test/{IOU}")  # the mean first
    distinguishing = distinguishing_settings(rows)
    settings = any(distinguishing)
    headings = (
        "run",
        *(["settings that differ"] if settings else []),
        "seeds",
        *(c.rpartition("/")[2] for c in classes),
    )
    lines = [
        (label, *([words] if settings else []), str(len(runs)), *(mean_spread(runs, key) for key in classes))
        for label, words, runs in zip(labels(rows), distinguishing, rows, strict=True)
    ]
    return Section("Results", stopped_early(rows), table=Table(headings, tuple(lines)))


def curves(rows: Sequence[list[Run]]) -> Section | None:
    """Draw IoU on the validation split during training."""
    lines: dict[str, dict[int, list[float]]] = {}
    for runs, label in zip(rows, labels(rows), strict=True):
        steps: dict[int, list[float]] = {}
        for run in runs:
            for step, value in run.curve(f"val/{IOU}"):
                steps.setdefault(step, []).append(value)
        whole = {step: values for step, values in sorted(steps.items()) if len(values) == len(runs)}
        if len(whole) > 1:
            lines[label] = whole
    if not lines:
        return None
    figure, axes = _figure()
    for number, (label, points) in enumerate(lines.items()):
        means = [statistics.mean(values) for values in points.values()]
        (line,) = axes.plot(list(points), means, STYLES[number // len(COLORS) % len(STYLES)], label=figure_text(label))
        low, high = ([pick(values) for values in points.values()] for pick in (min, max))
        axes.fill_between(list(points), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="optimizer steps", ylabel="validation IoU, mean of classes", ylim=(0, None))
    _legend(figure, list(lines))
    alt = f"Validation IoU against optimizer steps for {len(lines)} configurations."
    return Section("Learning curves", "Bands span the seeds.", (Chart(figure, alt),))


def costs(shown: Sequence[ReportedModel]) -> Section:
    """Draw IoU against operations of the view transformer."""
    figure, axes = _figure()
    lines = []
    for number, one in enumerate(shown, 1):
        flops = flops_of(one.reshaper) / 1e6
        parameters = sum(p.numel() for p in one.reshaper.parameters())
        axes.errorbar(flops, mean_iou(one.runs), yerr=_spread(one.runs), fmt="o", capsize=2)
        at = (flops, mean_iou(one.runs))
        axes.annotate(str(number), at, xytext=(5, 3), textcoords="offset points", fontsize=9)
        iou = mean_spread(one.runs, f"test/{IOU}")
        lines.append((str(number), one.label, f"{parameters:,}", f"{flops:,.1f}", iou))
    axes.set(xscale="log", xlabel="MFLOP of the view transformer, a sample", ylabel="test IoU, mean of classes")
    axes.margins(x=0.1)
    alt = "Test IoU against the operations that each view transformer takes."
    table = Table(("", "run", "parameters", "MFLOP", "mean IoU"), tuple(lines))
    text = "The numbers next to the points are the table's rows."
    return Section("Cost against IoU", text, (Chart(figure, alt),), table)


def sweeps(rows: Sequence[list[Run]]) -> list[Section]:
    """Draw IoU against every swept number, such as calibration jitter or the number of training scenes.

    Of numbers that were swept together, the first is the axis.
    """
    sections = []
    axes_of: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for key in differing(rows):
        values = [str(runs[0].settings.get(key)) for runs in rows]
        partition = sorted({tuple(i for i, value in enumerate(values) if value == own) for own in values})
        axes_of.setdefault(tuple(partition), []).append(key)
    for together in axes_of.values():
        swept = [key for key in together if all(_is_number(runs[0].settings.get(key)) for runs in rows)]
        if not swept:
            continue
        key = swept[0]
        groups: dict[str, dict[float, list[Run]]] = {}
        for runs, label in zip(rows, labels(rows, together), strict=True):
            groups.setdefault(label, {})[float(runs[0].settings[key])] = runs
        lines = {label: dict(sorted(points.items())) for label, points in groups.items() if len(points) > 1}
        if not lines:
            continue
        figure, axes = _figure()
        for number, (label, points) in enumerate(lines.items()):
            means = [mean_iou(runs) for runs in points.values()]
            spread = [_spread(runs) for runs in points.values()]
            style = f"o{STYLES[number // len(COLORS) % len(STYLES)]}"
            axes.errorbar(list(points), means, yerr=spread, fmt=style, capsize=2, label=figure_text(label))
        axes.set(xlabel=figure_text(key), ylabel="test IoU, mean of classes")
        _legend(figure, list(lines))
        alt = f"Test IoU against {key} for {', '.join(lines)}."
        text = "Bars are the standard deviation of the seeds."
        if len(together) > 1:
            text += f" Swept together with it: {', '.join(other for other in together if other != key)}."
        sections.append(Section(f"IoU against {key}", text, (Chart(figure, alt),)))
    return sections


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """Draw a legend below the axes, in as many columns as fit the longest name; the figure grows."""
    columns = max(1, LEGEND_CHARACTERS // (max(map(len, names)) + 6))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(names) // columns))
    figure.legend(loc="outside lower left", ncols=columns, fontsize=8)


def examples(shown: Sequence[ReportedModel], batch: BEVBatch) -> Section:
    """Show image, target and prediction of the first sample."""
    charts, first = [], batch[:1]
    target = first.targets[SEGMENTATION]
    for one in shown:
        with torch.no_grad():
            bev = one.model(first.images, first.cameras).heads[SEGMENTATION].sigmoid()[0]
        image = draw_sample(
            first.images[0], target.value[0], bev, target.valid[0], one.spec.classes,
            ego_from_cam=first.cameras.ego_from_cam[0],
        )  # fmt: skip
        charts.append(Chart(image, f"Input, target and prediction of {one.label}.", one.label))
    return Section("Example predictions", f"The first test sample, {batch.names[0]}.", tuple(charts))


def flops_of(reshaper: Reshaper) -> int:
    """Count operations of a forward pass of one sample."""
    source = reshaper.source
    size = (round(source.height * source.stride), round(source.width * source.stride))
    rig = ring(source.cameras, size, 1, torch.device("cpu"))
    features = [torch.randn(1, s.cameras, s.channels, s.height, s.width) for s in reshaper.sources]
    given = features if len(features) > 1 else features[0]
    return forward_flops(reshaper, lambda: reshaper.eval()(given, rig))


def _spread(runs: Sequence[Run]) -> float:
    return statistics.stdev(run.metrics[f"test/{IOU}"] for run in runs) if len(runs) > 1 else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
