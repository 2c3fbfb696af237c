"""The study's figure: who is ahead, over the jitter of the camera, the training samples and the steps."""

import math

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from bevreshape.experiments.intervals import Verdict
from bevreshape.experiments.plan import PAIRS
from bevreshape.experiments.tensor_results import Results
from bevreshape.experiments.world import Pose

TITLES: dict[Pose, str] = {
    "unknown": "pose unknown (control)",
    "visible": "pose visible in X",
    "given": "pose given",
}

MOST = math.log(20)
"""Where the colors end."""


def crossover_chart(results: Results) -> Figure:
    """Log ratio of errors, MLP over attention, in a panel for each way in which the pose can be known and each budget of steps.

    A contour is where both are alike on the mean; a dot is a cell whose verdict is open.
    """
    plan = results.plan
    sigmas, amounts, budgets = plan.sigma_deg, (*plan.samples, None), plan.budget.steps
    figure = Figure(figsize=(3.1 * len(PAIRS) + 1.2, 1.9 * len(budgets) + 0.9), layout="constrained")
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
                        axis.plot(x, y, ".", color="black", markersize=2.5)
            axis.set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
            axis.set_yticks(range(len(amounts)), [str(amount or "new") for amount in amounts])
    for axis, pose in zip(axes[0], PAIRS, strict=True):
        axis.set_title(TITLES[pose], fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("jitter σ of yaw [°]")
    for axis, steps in zip(axes[:, 0], budgets, strict=True):
        axis.set_ylabel(f"{steps} steps\ntraining samples")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=[math.log(x) for x in (1 / 20, 1 / 5, 1, 5, 20)])
    bar.ax.set_yticklabels(["MLP ×20", "MLP ×5", "alike", "attention ×5", "attention ×20"])
    return figure
