"""The study's figure: the better method, over camera jitter, training samples and steps."""

import math

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bevreshape.experiments.intervals import Verdict
from bevreshape.experiments.plan import PAIRS
from bevreshape.experiments.tensor_results import Results
from bevreshape.experiments.world import Pose

TITLES: dict[Pose, str] = {
    "unknown": "pose\nunknown",
    "visible": "pose\nin X",
    "given": "pose\ngiven",
}

WIDTH_IN = 3.9
"""Inches. The width is that of a phone's screen, where letters keep their size."""

SMALL = 7
"""Points."""

MOST = math.log(20)
"""Limit of the color scale."""


def crossover_chart(results: Results) -> Figure:
    """Draw the log ratio of errors, MLP over attention, in a panel per source of the pose and budget of steps.

    A contour marks equal mean errors; a dot marks a cell whose verdict is open.
    """
    plan = results.plan
    sigmas, amounts, budgets = plan.sigma_deg, (*plan.samples, None), plan.budget.steps
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(WIDTH_IN, 0.95 * len(budgets) + 1.25), layout=layout)
    axes = figure.subplots(len(budgets), len(PAIRS), squeeze=False, sharex=True, sharey=True)
    norm = TwoSlopeNorm(0.0, -MOST, MOST)
    for row, steps in zip(axes, budgets, strict=True):
        for axis, pose in zip(row, PAIRS, strict=True):
            cells = [[results.advantage(pose, sigma, amount, steps) for sigma in sigmas] for amount in amounts]
            means = np.clip([[cell.interval()[0] for cell in line] for line in cells], -MOST, MOST)
            image = axis.imshow(means, cmap="PuOr", norm=norm, origin="lower", aspect="auto")
            if means.min() < 0 < means.max():
                axis.contour(means, levels=[0.0], colors="black", linewidths=1.2)
            for y, line in enumerate(cells):
                for x, cell in enumerate(line):
                    if cell.verdict() is Verdict.OPEN:
                        dark = abs(means[y, x]) > math.log(6)
                        axis.plot(x, y, ".", color="white" if dark else "black", markersize=3)
            every = 2 if len(sigmas) > 5 else 1  # otherwise labels overlap
            axis.set_xticks(
                range(0, len(sigmas), every), [f"{sigma:g}".lstrip("0") or "0" for sigma in sigmas[::every]]
            )
            axis.set_yticks(range(len(amounts)), [str(amount or "∞") for amount in amounts])
            axis.grid(visible=False)
            axis.tick_params(labelsize=SMALL, length=2, pad=1.5)
    for axis, pose in zip(axes[0], PAIRS, strict=True):
        axis.set_title(TITLES[pose], fontsize=SMALL + 1, pad=3)
    for axis, steps in zip(axes[:, 0], budgets, strict=True):
        axis.set_ylabel(f"samples\n({steps} steps)", fontsize=SMALL + 0.5, labelpad=2)
    figure.supxlabel("jitter of the camera: σ of yaw [°]", fontsize=SMALL + 1)
    ticks = [math.log(x) for x in (1 / 20, 1 / 5, 1, 5, 20)]
    bar = figure.colorbar(image, ax=axes, location="top", shrink=0.9, aspect=40, pad=0.02, ticks=ticks)
    bar.ax.set_xticklabels(["≥ 20×", "5×", "equal", "5×", "≥ 20×"], fontsize=SMALL)
    bar.set_label("← MLP’s error is lower · attention’s error is lower →", fontsize=SMALL)
    bar.ax.tick_params(length=2, pad=1.5)
    return figure
