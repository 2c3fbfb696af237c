"""Rows on what models of the task level have learned: dependence of A on the image, and the image's share."""

from bevreshape.experiments.row import Row, dependence
from bevreshape.experiments.task_plan import TaskSetting
from bevreshape.experiments.task_results import NAMED, TaskResults, mean

GIVEN = {"MLP, pose given": TaskSetting("mlp", True), "attention, pose given": TaskSetting("attention", True)}


def _a7(results: TaskResults) -> list[Row]:
    sigma, value, spread_of_a = results.plan.sigma_deg[-1], {}, {}
    moving = {f"attention, σ = {sigma:g}°": TaskSetting("attention", sigma_deg=sigma)}
    for name, setting in {**NAMED, **moving}.items():
        seeds = results.inspected(setting)
        spread_of_a[name] = mean([one.spread_of_a for one in seeds])
        parts = {
            "A": spread_of_a[name],
            "Jacobian": mean([one.spread_of_jacobian for one in seeds]),
            "with A held fixed": mean([one.spread_of_jacobian_held for one in seeds]),
        }
        value[name] = "W 0 by construction, " + ", ".join(f"{what} {spread:.2g}" for what, spread in parts.items())
    return [
        Row(
            "A7", "On the task: is the MLP's W fixed after training, and does the attention's change with X?",
            "fixed camera where no σ is named: spread over images of the parameters W, of A, and of the Jacobian, "
            "relative to their mean", value, dependence(spread_of_a["attention"]),
        )
    ]  # fmt: skip


def _permuted_after(results: TaskResults) -> list[Row]:
    value, verdicts = {}, []
    for name in ("MLP", "attention"):
        seeds = results.inspected(NAMED[name])
        permuted, unrelated = mean([one.iou_permuted for one in seeds]), mean([one.iou_unrelated for one in seeds])
        value[name] = (
            f"{mean(results.iou(NAMED[name])):.3f} in order, {permuted:.3f} permuted, {unrelated:.3f} with other images"
        )
        verdicts.append(f"{name}: {'destroyed' if permuted <= unrelated else 'not destroyed'}")
    return [
        Row(
            "A12", "On the task, does a permutation after training destroy the result?",
            "fixed camera: mean test IoU; destroyed is what is no better than with other images", value,
            "; ".join(verdicts),
        )
    ]  # fmt: skip


def _image(results: TaskResults) -> list[Row]:
    value = {}
    for name, setting in NAMED.items():
        shares = [one.image_share for one in results.inspected(setting)]
        value[name] = f"{mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%} by seed)"
    return [
        Row(
            "beyond", "On the task, how much of the bird's-eye view comes from the image, and how much is learned for "
                      "its cells?",
            "fixed camera: variance over images in a cell, of all variance over images and cells, in the reshaper's "
            "output; what IPM "
            "lacks of 100 % is what images have in common", value,
            "measured",
        )
    ]  # fmt: skip


def _costs(results: TaskResults) -> list[Row]:
    value = {}
    for name, setting in (*NAMED.items(), *GIVEN.items()):
        parameters, reshaper, whole = (
            results.cost(setting, what) for what in ("reshaper_parameters", "reshaper_flops", "flops")
        )
        value[name] = f"{parameters:,} parameters, {reshaper / 1e6:.3g} MFLOPs; whole model {whole / 1e6:.3g} MFLOPs"
    return [
        Row(
            "beyond", "On the task, what does each cost?",
            "reshaper and whole model, one sample forward", value, "measured",
        )
    ]  # fmt: skip


LEARNED = (_a7, _permuted_after, _image, _costs)
"""Functions that make the rows."""
