"""Sections of a report that any runs have: learning curves, costs, sweeps and examples."""

import statistics
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from bevreshape.costs import forward_flops, ring
from bevreshape.data.batch import Batch, cameras_of
from bevreshape.drawing import draw_sample
from bevreshape.lab.page.report import Chart, Section, Table
from bevreshape.lab.plan import is_number
from bevreshape.lab.runs import Run, differing, mean_spread
from bevreshape.lab.shown import IOU, Shown, label_of, mean_iou, one_sample
from bevreshape.reshapers import Reshaper


def curves(rows: Sequence[list[Run]]) -> Section | None:
    """IoU on the validation split while training."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    keys = differing(rows)
    drawn = 0
    for runs in rows:
        steps: dict[int, list[float]] = {}
        for run in runs:
            for step, value in run.curve(f"val/{IOU}"):
                steps.setdefault(step, []).append(value)
        whole = {step: values for step, values in sorted(steps.items()) if len(values) == len(runs)}
        if len(whole) < 2:
            continue
        drawn += 1
        means = [statistics.mean(values) for values in whole.values()]
        (line,) = axes.plot(list(whole), means, label=label_of(runs[0], keys))
        low, high = ([pick(values) for values in whole.values()] for pick in (min, max))
        axes.fill_between(list(whole), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    if not drawn:
        return None
    axes.set(xlabel="optimizer steps", ylabel="validation IoU, mean of classes", ylim=(0, None))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    alt = f"Validation IoU against optimizer steps for {drawn} configurations."
    return Section("Learning curves", "Bands span the seeds.", (Chart(figure, alt),))


def costs(shown: Sequence[Shown]) -> Section:
    """IoU against operations of the view transformer."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    lines = []
    for one in shown:
        flops = flops_of(one.reshaper) / 1e6
        parameters = sum(p.numel() for p in one.reshaper.parameters())
        axes.errorbar(flops, mean_iou(one.runs), yerr=_spread(one.runs), fmt="o", capsize=2)
        axes.annotate(one.label, (flops, mean_iou(one.runs)), xytext=(5, 3), textcoords="offset points", fontsize=7)
        lines.append((one.label, f"{parameters:,}", f"{flops:,.1f}", mean_spread(one.runs, f"test/{IOU}")))
    axes.set(xscale="log", xlabel="MFLOP of the view transformer, a sample", ylabel="test IoU, mean of classes")
    alt = "Test IoU against the operations that each view transformer takes."
    table = Table(("run", "parameters", "MFLOP", "mean IoU"), tuple(lines))
    return Section("Cost against IoU", "", (Chart(figure, alt),), table)


def sweeps(rows: Sequence[list[Run]]) -> list[Section]:
    """IoU against every number that was swept, such as calibration jitter or the number of training scenes; of numbers that
    were swept together against the first."""
    sections = []
    axes_of: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for key in differing(rows):
        values = [str(runs[0].settings.get(key)) for runs in rows]
        partition = sorted({tuple(i for i, value in enumerate(values) if value == own) for own in values})
        axes_of.setdefault(tuple(partition), []).append(key)
    for together in axes_of.values():
        swept = [key for key in together if all(is_number(runs[0].settings.get(key)) for runs in rows)]
        if not swept:
            continue
        key, others = swept[0], [other for other in differing(rows) if other not in together]
        groups: dict[str, dict[float, list[Run]]] = {}
        for runs in rows:
            groups.setdefault(label_of(runs[0], others), {})[float(runs[0].settings[key])] = runs
        lines = {label: dict(sorted(points.items())) for label, points in groups.items() if len(points) > 1}
        if not lines:
            continue
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
        for label, points in lines.items():
            means = [mean_iou(runs) for runs in points.values()]
            spread = [_spread(runs) for runs in points.values()]
            axes.errorbar(list(points), means, yerr=spread, fmt="o-", capsize=2, label=label)
        axes.set(xlabel=key, ylabel="test IoU, mean of classes")
        axes.legend(fontsize=7)
        alt = f"Test IoU against {key} for {', '.join(lines)}."
        text = "Bars are the standard deviation of the seeds."
        if len(together) > 1:
            text += f" With it went {', '.join(other for other in together if other != key)}."
        sections.append(Section(f"IoU against {key}", text, (Chart(figure, alt),)))
    return sections


def examples(shown: Sequence[Shown], batch: Batch) -> Section:
    """Picture, target and prediction of the first sample."""
    charts = []
    for one in shown:
        found = one_sample(batch, 0)
        with torch.no_grad():
            bev = one.model(found["image"], cameras_of(found)).sigmoid()[0]
        picture = draw_sample(
            batch["image"][0], batch["target"][0], bev, batch["valid"][0], one.frame.classes,
            ego_from_cam=batch["ego_from_cam"][0],
        )  # fmt: skip
        charts.append(Chart(picture, f"Input, target and prediction of {one.label}.", one.label))
    return Section("Example predictions", f"The first test sample, {batch['name'][0]}.", tuple(charts))


def flops_of(reshaper: Reshaper) -> int:
    """Operations of a forward pass of one sample."""
    source = reshaper.source
    size = (round(source.height * source.stride), round(source.width * source.stride))
    rig = ring(source.cameras, size, 1, torch.device("cpu"))
    features = [torch.randn(1, s.cameras, s.channels, s.height, s.width) for s in reshaper.sources]
    given = features if len(features) > 1 else features[0]
    return forward_flops(reshaper, lambda: reshaper.eval()(given, rig))


def _spread(runs: Sequence[Run]) -> float:
    return statistics.stdev(run.metrics[f"test/{IOU}"] for run in runs) if len(runs) > 1 else 0.0
