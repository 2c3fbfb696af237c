"""Learning curves of a study: errors over the steps, and over the jitter of the camera."""

import math
import statistics

from matplotlib.figure import Figure

from bevreshape.experiments.plan import PAIRS
from bevreshape.experiments.rows import POSES
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.tensor_results import TO, Results

MLP, ATTENTION, PLACE = "#e08214", "#542788", "#1b9e77"
"""Colors, those of the crossover chart."""

METHODS = {
    "mlp": ("MLP", MLP),
    "positional": ("attention, keys of place", PLACE),
    "attention": ("attention", ATTENTION),
}
"""Methods of the learning curves, with name and color."""


CURVES_TITLE = "Errors of MLP and attention over steps, and over the jitter of the camera"

CURVES_WORDS = (
    "Mean errors over the seeds, on samples never trained on; new samples in every step. Above, a fixed camera: a line "
    f"for every recipe that is best for some number of steps; dotted, an error of {TO:g}. Below, a moving camera."
)


def learning_curves(results: Results) -> Figure:
    """Draw errors of a fixed camera over the steps, and of a moving camera over its jitter.

    Raises:
        NotDoneError: when an entry is missing.
    """
    figure = Figure(figsize=(4.2, 6.4))
    learning, moving = figure.subplots(2, 1)
    for method, (name, color) in METHODS.items():
        curves = results.outcome(Setting(method)).curves
        for curve in curves:
            means = [statistics.geometric_mean(errors) for errors in curve.errors if math.inf not in errors]
            label = name if curve is curves[-1] else None
            learning.plot(curve.steps[: len(means)], means, color=color, linewidth=1, label=label)
    sigmas = results.plan.sigma_deg
    for (pose, pair), style in zip(PAIRS.items(), (":", "--", "-"), strict=True):
        for method, side, color in zip(pair, ("MLP", "attention"), (MLP, ATTENTION), strict=True):
            errors = [results.errors(Setting(method, pose, sigma)) for sigma in sigmas]
            means = [statistics.geometric_mean(line) if math.inf not in line else math.nan for line in errors]
            moving.plot(sigmas, means, style, color=color, label=f"{side}, {POSES[pose]}")
    learning.axhline(TO, color="#5c6370", linewidth=0.8, linestyle=":")
    learning.set(xscale="log", yscale="log", xlabel="steps", ylabel="error", title="fixed camera")
    moving.set(yscale="log", xlabel="jitter: σ of yaw [°]", ylabel="error", title=f"after {results.longest} steps")
    for axes in (learning, moving):
        axes.legend(fontsize=7)
    return figure
