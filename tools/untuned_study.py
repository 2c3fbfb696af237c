"""Train methods of the study at one learning rate for all, without tuning, as a simple re-implementation would.

python tools/untuned_study.py --rate 0.01 --seeds 3
"""

import torch
from rich.table import Table

from bevreshape.config.arguments import Parser, integer
from bevreshape.console import run_script
from bevreshape.experiments.instruments import examine
from bevreshape.experiments.runs import EXAMINED, TUNING_SEED, Setting, held_out_of, train_runs
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.world import Batch
from bevreshape.reporting.tables import print_table

BATCH, HELD_OUT = 16, 256
"""Samples per step, and per seed to measure the error on."""

BUDGETS = (300, 1000)
"""Steps of separate trainings, after each of which the methods are examined."""

STEPS = (*range(5, 60, 5), *range(60, 300, 20), 300, 1000)
"""Steps after which errors are measured."""

THRESHOLD = 0.1
"""Error at 90 % of what is attainable."""

SIGMAS = (0.5, 2.0, 8.0)
"""Standard deviations of yaw in degrees, with the pose given."""


def main() -> None:
    """Print a table for a fixed camera and one for a moving camera whose pose is given."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--rate",
        type=float,
        choices=(0.003, 0.01, 0.03),
        default=0.01,
        help="of all (0.01)",
    )
    parser.add_argument("--seeds", type=integer(1, 100), default=3, help="number of seeds (3)")
    options = parser.parse_args()
    recipe, seeds = Recipe(options.rate), range(TUNING_SEED, TUNING_SEED + options.seeds)
    print_table(fixed_camera(recipe, seeds))
    print_table(moving_camera(recipe, seeds))


def fixed_camera(recipe: Recipe, seeds: range) -> Table:
    """Return steps to 90 %, and errors and spreads over inputs after each budget."""
    headings = [f"{what}, {steps} steps" for steps in BUDGETS for what in ("error", "spread of A", "of Jacobian")]
    table = Table("fixed camera", "steps to 90 %", *headings, title=f"rate {recipe.rate:g}, {recipe.query} Q")
    for method in ("mlp", "attention"):
        setting = Setting(method)
        held_out = held_out_of(setting, seeds, HELD_OUT)
        few = Batch(*(part[:, :EXAMINED] for part in held_out))
        cells: list[str] = []
        for budget in BUDGETS:
            at = [step for step in STEPS if step <= budget]
            errors, model = train_runs(setting, seeds, [recipe], held_out, BATCH, at)
            examined = examine(model, few)
            cells += [
                f"{_mean(errors[:, 0, -1]):.2g}",
                f"{_mean(torch.tensor([one.spread_of_a for one in examined])):.2g}",
                f"{_mean(torch.tensor([one.spread_of_jacobian for one in examined])):.2g}",
            ]
        first = [next((str(step) for step, x in zip(at, run, strict=True) if x <= THRESHOLD), "never")
                 for run in errors[:, 0].tolist()]  # fmt: skip
        table.add_row(method, ", ".join(first), *cells)
    return table


def moving_camera(recipe: Recipe, seeds: range) -> Table:
    """Return errors of the adaptive MLP and of attention with the pose, and their ratio, after each budget."""
    headings = [f"{what}, {steps} steps" for steps in BUDGETS for what in ("MLP", "attention", "ratio")]
    table = Table("σ of yaw", *headings, title=f"pose given, rate {recipe.rate:g}")
    for sigma in SIGMAS:
        pair = []
        for method in ("adaptive", "posed"):
            setting = Setting(method, pose="given", sigma_deg=sigma)
            held_out = held_out_of(setting, seeds, HELD_OUT)
            errors, _ = train_runs(setting, seeds, [recipe], held_out, BATCH, BUDGETS)
            pair.append([_mean(errors[:, 0, number]) for number in range(len(BUDGETS))])
        cells = [f"{x:.2g}" for mlp, attention in zip(*pair, strict=True) for x in (mlp, attention, mlp / attention)]
        table.add_row(f"{sigma:g}°", *cells)
    return table


def _mean(values: torch.Tensor) -> float:
    """Return the geometric mean."""
    return values.double().log().mean().exp().item()


if __name__ == "__main__":
    run_script(main)
