"""From the results of a study's task level to its rows: does it matter on the task?"""

from collections.abc import Sequence
from functools import partial

from bevreshape.experiments.intervals import Bounds, Comparison
from bevreshape.experiments.rows import Row, available
from bevreshape.experiments.task_plan import TaskSetting
from bevreshape.experiments.task_results import TaskResults, ahead, mean

SHARES = (0.5, 0.75, 0.9, 0.95)
"""Of IPM's IoU."""

TO = 0.9
"""The share that counts as having learned it, where one stands for all."""

MLP, ATTENTION, IPM = TaskSetting("mlp"), TaskSetting("attention"), TaskSetting("ipm")


def rows(results: TaskResults) -> list[Row]:
    """All of the task level whose entries are done."""
    makers = (
        _fixed, _steps, _history, _compute, _moving, _worth, _unseen_angles, _unseen_height, _a7, _a11, _a12, _permuted_after,
        _image, _costs,
    )  # fmt: skip
    return available(*(partial(make, results) for make in makers))


def _pair(sigma: float, pose: bool) -> tuple[TaskSetting, TaskSetting]:
    """Attention and MLP."""
    return TaskSetting("attention", pose, sigma), TaskSetting("mlp", pose, sigma)


def _absolute(results: TaskResults, setting: TaskSetting, steps: int | None = None) -> str:
    return f"{mean(results.iou(setting, steps)):.3f} ({mean(results.shares(setting, steps)):.0%} of IPM's)"


def _both(results: TaskResults, sigma: float, pose: bool) -> str:
    """What two methods get, and the ratio."""
    attention, mlp = _pair(sigma, pose)
    return (
        f"{results.advantage(attention, mlp)}: attention {_absolute(results, attention)}, MLP {_absolute(results, mlp)}"
    )


def _said(found: dict[str, Comparison], who: str) -> str:
    return "; ".join(f"{where}: {who} {comparison.verdict()}" for where, comparison in found.items())


def _fixed(results: TaskResults) -> list[Row]:
    found = results.advantage(ATTENTION, MLP)
    ipm = f"{mean(results.iou(IPM)):.3f}"
    return [
        Row(
            "A8", "On the task, fixed camera: who is better in the end?",
            f"mean test IoU after {results.plan.longest} steps, attention relative to MLP",
            {"": _both(results, 0.0, False), "IPM": ipm}, f"attention {found.verdict()}",
        )
    ]  # fmt: skip


def _steps(results: TaskResults) -> list[Row]:
    return _delay(
        results, {share: (results.steps_to(ATTENTION, share), results.steps_to(MLP, share)) for share in SHARES},
        "On the task, fixed camera: who learns faster?",
        f"steps of whole trainings ({', '.join(map(str, results.plan.steps))}) to so much of IPM's test IoU, MLP relative to attention",
    )  # fmt: skip


def _history(results: TaskResults) -> list[Row]:
    return _delay(
        results, {share: (results.history_to(ATTENTION, share), results.history_to(MLP, share)) for share in SHARES},
        "… and within one training",
        f"steps to so much of IPM's validation IoU, within one schedule of {results.plan.longest} steps, MLP relative to attention",
    )  # fmt: skip


def _delay(
    results: TaskResults,
    reached: dict[float, tuple[list[Bounds], list[Bounds]]],
    question: str,
    measured: str,
) -> list[Row]:
    compared = {f"{share:.0%}": Comparison.of(*bounds) for share, bounds in reached.items()}
    value = {
        f"{share:.0%}": f"{compared[f'{share:.0%}']}: attention {_range(attention)}, MLP {_range(mlp)}"
        for share, (attention, mlp) in reached.items()
    }
    return [Row("A8", question, measured, value, _said(compared, "attention"))]


def _range(bounds: Sequence[Bounds], unit: str = "g") -> str:
    """Where the seeds are."""
    low, high = min(one.low for one in bounds), max(one.high for one in bounds)
    return f"more than {low:{unit}}" if high == float("inf") else f"{low:{unit}} to {high:{unit}}"


def _compute(results: TaskResults) -> list[Row]:
    to = {
        what: [results.compute_to(setting, TO, what) for setting in (ATTENTION, MLP)]
        for what in ("flops", "reshaper_flops")
    }
    compared = {what: Comparison.of(*bounds) for what, bounds in to.items()}
    flops, own, other = results.at_equal_compute(ATTENTION, MLP)
    equal = ahead(own, other)
    names = {"flops": "whole model", "reshaper_flops": "reshaper alone"}
    value = {
        names[what]: f"{compared[what]}: attention {_range(bounds[0], '.2e')}, MLP {_range(bounds[1], '.2e')}"
        for what, bounds in to.items()
    }
    return [
        Row(
            "A8", "On the task, fixed camera: and for its compute?",
            f"FLOPs of the forward passes of all samples to {TO:.0%} of IPM's test IoU, MLP relative to attention", value,
            _said({names[what]: found for what, found in compared.items()}, "attention"),
        ),
        Row(
            "A8", "On the task, fixed camera: who is better at equal compute?",
            f"mean test IoU after {flops:.2e} FLOPs of forward passes of the whole model, attention relative to MLP",
            {"": f"{equal}: attention {mean(own):.3f}, MLP {mean(other):.3f}"}, f"attention {equal.verdict()}",
        ),
    ]  # fmt: skip


def _moving(results: TaskResults) -> list[Row]:
    found = []
    for pose in (True, False):
        compared = {f"σ = {s:g}°": results.advantage(*_pair(s, pose)) for s in results.plan.sigma_deg}
        value = {f"σ = {s:g}°": _both(results, s, pose) for s in results.plan.sigma_deg}
        found.append(
            Row(
                "A9", f"On the task, moving camera, pose {'given' if pose else 'not given'}: who is better?",
                f"mean test IoU after {results.plan.longest} steps, attention relative to MLP", value,
                _said(compared, "attention"),
            )
        )  # fmt: skip
    return found


def _worth(results: TaskResults) -> list[Row]:
    found = []
    for method, name in (("mlp", "MLP"), ("attention", "attention")):
        compared = {
            f"σ = {s:g}°": results.advantage(TaskSetting(method, True, s), TaskSetting(method, False, s))  # type: ignore[arg-type]
            for s in results.plan.sigma_deg
        }
        found.append(
            Row(
                "A9", f"On the task: what is the pose worth to {name}?",
                f"mean test IoU after {results.plan.longest} steps, with the pose relative to without it",
                {where: str(one) for where, one in compared.items()}, _said(compared, "with the pose"),
            )
        )  # fmt: skip
    return found


def _unseen_angles(results: TaskResults) -> list[Row]:
    return _unseen(results, "angles", f"cameras that move by σ = {results.plan.unseen_sigma_deg:g}°")


def _unseen_height(results: TaskResults) -> list[Row]:
    return _unseen(results, "height", f"cameras whose height varies by {results.plan.unseen_height_m:g} m")


def _unseen(results: TaskResults, what: str, cameras: str) -> list[Row]:
    found = []
    levels = [s for s in results.plan.sigma_deg if what in results.plan.unseen(TaskSetting("ipm", sigma_deg=s))]
    for pose in (True, False):
        compared, value = {}, {}
        for sigma in levels:
            own, other = (results.unseen(setting, what) for setting in _pair(sigma, pose))
            ipm = mean(results.unseen(TaskSetting("ipm", sigma_deg=sigma), what))
            compared[f"trained at {sigma:g}°"] = comparison = ahead(own, other)
            value[f"trained at {sigma:g}°"] = (
                f"{comparison}: attention {mean(own):.3f}, MLP {mean(other):.3f}, IPM {ipm:.3f}"
            )
        found.append(
            Row(
                "A9", f"On the task, {cameras} in the test alone, pose {'given' if pose else 'not given'}: who bears it?",
                "mean test IoU, attention relative to MLP", value, _said(compared, "attention"),
            )
        )  # fmt: skip
    return found


def _a7(results: TaskResults) -> list[Row]:
    value = {}
    for name, setting in (("MLP", MLP), ("attention", ATTENTION), ("IPM", IPM)):
        seeds = results.inspected(setting)
        parts = {
            "A": [one.spread_of_a for one in seeds],
            "Jacobian": [one.spread_of_jacobian for one in seeds],
            "with A held fixed": [one.spread_of_jacobian_held for one in seeds],
        }
        value[name] = ", ".join(f"{what} {mean(values):.2g}" for what, values in parts.items())
    return [
        Row(
            "A7", "On the task: after training the MLP's W is fixed, the attention's changes with X",
            "fixed camera: spread of A and of the Jacobian over images, relative to their mean; parameters (W) are fixed in all",
            value, "measured",
        )
    ]  # fmt: skip


def _a11(results: TaskResults) -> list[Row]:
    found = results.advantage(TaskSetting("attention", encoding="none"), ATTENTION)
    without = mean(results.iou(TaskSetting("attention", encoding="none")))
    return [
        Row(
            "A11", "On the task, attention needs positional encoding",
            "fixed camera: mean test IoU without it, relative to with it; an encoder's padding tells places too",
            {"": f"{found}: without {without:.3f}, with {mean(results.iou(ATTENTION)):.3f}"}, f"without encoding {found.verdict()}",
        )
    ]  # fmt: skip


def _a12(results: TaskResults) -> list[Row]:
    pairs = {
        "attention, sinusoidal": (TaskSetting("attention", permuted=True), ATTENTION),
        "attention, learned": (
            TaskSetting("attention", encoding="learned", permuted=True), TaskSetting("attention", encoding="learned"),
        ),
        "MLP": (TaskSetting("mlp", permuted=True), MLP),
    }  # fmt: skip
    compared = {name: results.advantage(*pair) for name, pair in pairs.items()}
    value = {
        name: f"{compared[name]}: permuted {mean(results.iou(own)):.3f}, in order {mean(results.iou(other)):.3f}"
        for name, (own, other) in pairs.items()
    }
    return [
        Row(
            "A12", "On the task, a fixed permutation that is there in training already harms an attention",
            "fixed camera: mean test IoU with permuted tokens, relative to in order", value, _said(compared, "permuted"),
        )
    ]  # fmt: skip


def _permuted_after(results: TaskResults) -> list[Row]:
    value = {}
    for name, setting in (("MLP", MLP), ("attention", ATTENTION)):
        permuted = mean([one.iou_permuted for one in results.inspected(setting)])
        unrelated = mean([one.iou_unrelated for one in results.inspected(setting)])
        value[name] = (
            f"{mean(results.iou(setting)):.3f} in order, {permuted:.3f} permuted, {unrelated:.3f} with other images"
        )
    return [
        Row(
            "A12", "On the task, a permutation after training destroys the result",
            "fixed camera: mean test IoU", value, "measured",
        )
    ]  # fmt: skip


def _image(results: TaskResults) -> list[Row]:
    value = {}
    for name, setting in (("IPM", IPM), ("MLP", MLP), ("attention", ATTENTION)):
        seeds = results.inspected(setting)
        value[name] = (
            f"{mean([one.image_share for one in seeds]):.0%}, {min(one.image_share for one in seeds):.0%} at least"
        )
    return [
        Row(
            "beyond", "On the task: how much of the bird's-eye view comes from the image?",
            "fixed camera: variance of the reshaper's map over images, of its variance over images and cells", value,
            "measured",
        )
    ]  # fmt: skip


def _costs(results: TaskResults) -> list[Row]:
    value = {}
    for name, setting in (
        ("IPM", IPM), ("MLP", MLP), ("attention", ATTENTION), ("MLP, pose given", TaskSetting("mlp", True)),
        ("attention, pose given", TaskSetting("attention", True)),
    ):  # fmt: skip
        numbers = {what: results.cost(setting, what) for what in ("reshaper_parameters", "reshaper_flops", "flops")}
        value[name] = (
            f"{numbers['reshaper_parameters']:,} parameters, {numbers['reshaper_flops'] / 1e6:.3g} MFLOPs; whole model "
            f"{numbers['flops'] / 1e6:.4g} MFLOPs"
        )
    return [Row("beyond", "On the task: what does each cost?", "of one sample, forward", value, "measured")]
