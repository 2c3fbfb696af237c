"""The figures of a study: how fast, at which jitter, and with how many samples."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bevreshape.lab.claims import PAIRS
from bevreshape.lab.labels import figure_text
from bevreshape.lab.page.report import Chart, Section
from bevreshape.lab.plan import RIVALS, TOLD
from bevreshape.lab.results import Results, number_of
from bevreshape.lab.verdict import Figure as Measured
from bevreshape.lab.verdict import Known

SHOWN = {
    "mlp": ("MLP", "C0", "-"),
    "attention": ("attention", "C1", "-"),
    "mlp_told": ("MLP, told the calibration", "C0", "--"),
    "attention_told": ("attention, told the calibration", "C1", "--"),
    "ipm": ("IPM", "C2", "-"),
}
"""Name, colour and line of a contender."""


def sections(study: Results) -> list[Section]:
    """All figures, with what they say."""
    return [convergence(study), overtaking(study), amounts(study)]


def convergence(study: Results) -> Section:
    """Learning curves of the fixed camera, at tensor level and on the task."""
    figure = Figure(figsize=(9, 3.4))
    tensor, task = figure.subplots(1, 2)
    for role in (*RIVALS, *TOLD):
        curves = [study.tensor(role, seed)["curve"] for seed in study.plan.seeds]
        _band(tensor, role, [[(p["steps"], p["error"]) for p in curve] for curve in curves])
    threshold = study.plan.tensor["threshold"]
    tensor.axhline(threshold, color="#5c6370", linewidth=0.8, linestyle=":")
    tensor.set(yscale="log", xlabel="optimizer steps", ylabel="error", title="features onto the ground")
    for role in study.plan.task["contenders"]:
        if role not in TOLD:
            curves = [study.task(role, seed)["curve"] for seed in study.plan.seeds]
            _band(task, role, [[(p["steps"], p["iou"]) for p in curve] for curve in curves])
    task.axhline(study.iou_to_reach, color="#5c6370", linewidth=0.8, linestyle=":")
    task.set(xlabel="optimizer steps", ylabel="validation IoU", title="segmentation of the world", ylim=(0, None))
    for axes in (tensor, task):
        axes.legend(fontsize=7)
    alt = "Learning curves of MLP and attention for a fixed camera, at tensor level and on the task."
    words = {
        "fixed": "",
        "moving": " where it moves",
        "shown": " where X shows how",
        "encoder": " on an encoder's features",
    }
    rates = ", ".join(
        f"{SHOWN[role][0]} {rate:g}{words[camera]}" for (role, camera), rate in study.rates.items() if role in SHOWN
    )
    tried = study.plan.tensor["rates"]
    text = (
        f"A fixed camera. At tensor level the best of {len(tried)} learning rates from {tried[0]:g} to {tried[-1]:g} were: {rates}; "
        "few samples and permuted tokens take the same, variants have rates of their own. Bands span the seeds, runs that "
        f"diverged left out; dotted: an error of {threshold:g}, and {study.plan.task['share']:.0%} of IPM's IoU at the end."
    )
    text = " ".join([text, *study.doubts()])
    return Section("Convergence", text, (Chart(figure, alt),))


def overtaking(study: Results) -> Section:
    """Final error against the jitter of the cameras, and where attention overtakes the MLP."""
    levels = study.plan.tensor["jitter_deg"]
    sigmas = study.plan.task["jitter_deg"]
    on_task = len(sigmas) > 1
    figure = Figure(figsize=(12 if on_task else 9, 3.4))
    panels = figure.subplots(1, len(PAIRS) + on_task)
    for axes, (name, (roles, given)) in zip(panels, PAIRS.items(), strict=False):
        for role in roles:

            def error(seed: int, at: float | int, role: str = role, given: dict[str, Any] = given) -> float | int:
                return _measured(study.error(role, seed, jitter_deg=at, **(given if at else {})))

            _bars(axes, role, levels, study, error)
        found = study.over_seeds(partial(study.overtaken, rivals=roles, **given))
        if not found.censored:
            axes.axvline(found.mean, color="#5c6370", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel="σ of yaw [degrees]", ylabel="error", title=f"calibration {name}")
    if on_task:
        for role in study.plan.task["contenders"]:
            at_level = sigmas[1:] if role in TOLD else sigmas
            _bars(panels[-1], role, at_level, study, lambda seed, at, role=role: study.iou(role, seed, at))  # type: ignore[misc]
        panels[-1].set(xlabel="σ of yaw [degrees]", ylabel="test IoU", title="task", ylim=(0, None))
    for axes in panels:
        axes.legend(fontsize=7)
    alt = "Error of MLP and attention against the jitter of the cameras, by how they know where these look."
    text = (
        "Error after training by the jitter of the cameras. Not told, X says nothing of it either, and no fixed mapping can "
        "do well; shown, X has the direction of every feature. Dotted: where attention overtakes the MLP. Bars span the "
        "seeds, runs that diverged left out."
    )
    return Section("When cameras move", text, (Chart(figure, alt),))


def amounts(study: Results) -> Section:
    """Final error against the number of training samples."""
    tried = study.plan.tensor["training_samples"]
    unlimited = study.plan.tensor["steps"] * study.plan.tensor["batch"]
    scenes = study.plan.task["scenes"]
    on_task = len(scenes) > 1
    sigma = study.plan.tensor["told_jitter_deg"]
    figure = Figure(figsize=(9, 3.4))
    panels = figure.subplots(1, 2 + on_task)
    for axes, roles, jitter, title in (
        (panels[0], RIVALS, 0, "fixed camera, calibration not told"),
        (panels[1], TOLD, sigma, f"jitter of {sigma:g}°, calibration told"),
    ):
        for role in roles:

            def value(seed: int, at: float | int, role: str = role, jitter: float = jitter) -> float:
                amount = None if at == unlimited else int(at)
                return _measured(study.error(role, seed, jitter_deg=jitter, training_samples=amount))

            _bars(axes, role, [*tried, unlimited], study, value)
        axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="final error", title=title)
    if on_task:
        for role in RIVALS:
            _bars(panels[2], role, scenes, study, lambda seed, at, role=role: study.iou(role, seed, scenes=int(at)))  # type: ignore[misc]
        panels[2].set(xscale="log", xlabel="training scenes", ylabel="test IoU", title="task", ylim=(0, None))
    for axes in panels:
        axes.legend(fontsize=7)
    alt = "Final error of MLP and attention against the number of training samples."
    text = f"The last point has new samples in every step, {unlimited:,} in all. Bars span the seeds."
    return Section("What more data does", text, (Chart(figure, alt),))


def _measured(figure: Measured) -> float:
    return float(figure.value) if figure.known is Known.EXACT else math.nan


def _bars(axes: Axes, role: str, at: Sequence[float], study: Results, value: Callable[[int, float], float]) -> None:
    label, color, line = SHOWN.get(role, (role, "C3", "-"))
    means, low, high = _spans([[value(seed, level) for seed in study.plan.seeds] for level in at])
    spread = [
        [a - b for a, b in zip(means, low, strict=True)],
        [b - a for a, b in zip(means, high, strict=True)],
    ]
    axes.errorbar(at, means, yerr=spread, fmt=f"o{line}", color=color, capsize=2, label=figure_text(label))


def _band(axes: Axes, role: str, curves: Sequence[Sequence[tuple[int, float | None]]]) -> None:
    label, color, style = SHOWN.get(role, (role, "C3", "-"))
    steps = max(([step for step, _ in curve] for curve in curves), key=len)  # one that diverged may end early
    values = [dict(curve) for curve in curves]
    means, low, high = _spans([[number_of(one.get(step)) for one in values] for step in steps])
    axes.plot(steps, means, color=color, linestyle=style, label=figure_text(label))
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _spans(found: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Mean, least and greatest of those that are numbers, NaN where none is."""
    known = [[value for value in one if math.isfinite(value)] or [math.nan] for one in found]
    return [statistics.mean(one) for one in known], [min(one) for one in known], [max(one) for one in known]
