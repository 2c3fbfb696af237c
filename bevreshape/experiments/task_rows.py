"""Rows of a study's task level."""

from collections.abc import Mapping
from functools import partial

from bevreshape.experiments.intervals import Bounds, Comparison
from bevreshape.experiments.row import Row, available
from bevreshape.experiments.rows import range_words
from bevreshape.experiments.task_learned_rows import LEARNED
from bevreshape.experiments.task_plan import TaskSetting
from bevreshape.experiments.task_results import ATTENTION, IPM, MLP, NAMED, TaskResults, ahead, mean

SHARES = (0.5, 0.75, 0.9, 0.95)
"""Fractions of IPM's IoU."""

TO = 0.9
"""The fraction of IPM's IoU in rows with a single threshold."""

RULES = """\
On the task, BEV segmentation of the synthetic world, `bevreshape.train` trains every method with its one-cycle schedule. Every budget
of steps is a training of its own, with its own rate; between budgets, IoU is taken to be linear in the logarithm of the steps. Every
seed has its own world. Rates are tuned in another world, with one seed; warm-up and weight decay are those of `bevreshape.train`.

Rows compare ratios of mean IoU, of which 10 % are as much of IPM's. Ratios of 1 − IoU are not used: what no image shows keeps it
high, so that different methods would look alike. IoU does not begin at 0 either, because streets resemble each other. The
*image-blind baseline* is the higher of two: IPM with the images of other samples, and the map of class frequencies. The *gain* is
the IoU above it, both with the best threshold of each class. Each row is judged by itself, so about one interval in twenty misses.

Where the pose is given, the MLP moves the rows and columns of its features by it, and attention adds the direction of each ray to
its keys: both know yaw, pitch and roll, which is all that varies in training. What is given but was constant in training is left
out where it varies only in the test: neither method could learn its effect, and only the MLP reads the height.
"""  # noqa: E501  # its lines are those of the committed page


def rows(results: TaskResults) -> list[Row]:
    """Return the rows of the task level whose entries are done."""
    makers = (
        _fixed, _steps, _history, _compute, _equal_compute, _moving, _ipm, _worth, _unseen_angles, _unseen_height, _a11,
        _a12, *LEARNED,
    )  # fmt: skip
    return available(*(partial(make, results) for make in makers))


def _compared(
    claim: str, question: str, measured: str, found: Mapping[str, Comparison], who: str, absolute: Mapping[str, str]
) -> Row:
    return Row.compared(claim, f"On the task, {question}", measured, found, who, absolute)


def _pair(sigma: float, pose: bool) -> dict[str, TaskSetting]:
    return {"attention": TaskSetting("attention", pose, sigma), "MLP": TaskSetting("mlp", pose, sigma)}


def _iou(results: TaskResults, setting: TaskSetting) -> str:
    share = "" if setting.method == "ipm" else f" ({mean(results.shares(setting)):.0%} of IPM's)"
    return f"{mean(results.iou(setting)):.3f}{share}"


def _advantages(results: TaskResults, sigma: float, pose: bool, where: str = "") -> dict[str, Comparison]:
    """Compare attention with the MLP, by IoU and by the gain in IoU."""
    pair = _pair(sigma, pose).values()
    gained = ahead(*(results.gain(setting) for setting in pair))
    return {f"IoU{where}": ahead(*map(results.iou, pair)), f"gain{where}": gained}


def _unseeing(results: TaskResults, sigma: float, where: str = "") -> dict[str, str]:
    return {f"image-blind baseline{where}": f"{mean(results.unseeing(sigma)):.3f}"}


def _fixed(results: TaskResults) -> list[Row]:
    best = map(results.best_iou, (ATTENTION, MLP))
    return [
        _compared(
            "A8", f"fixed camera: which is better after {results.plan.longest} steps?",
            "mean test IoU, and its gain over the image-blind baseline, attention relative to MLP; also with the "
            "threshold of each class that is best in the test",
            {**_advantages(results, 0.0, False), "IoU, best thresholds": ahead(*best)}, "attention",
            {name: _iou(results, setting) for name, setting in NAMED.items()} | _unseeing(results, 0.0),
        )
    ]  # fmt: skip


def _steps(results: TaskResults) -> list[Row]:
    steps = ", ".join(map(str, results.plan.steps))
    least = mean(results.unseeing(0.0)) / mean(results.best_iou(IPM))
    return _delay(
        {share: (results.steps_to(ATTENTION, share), results.steps_to(MLP, share)) for share in SHARES},
        "fixed camera: which learns faster?",
        f"steps of whole trainings ({steps}) to so much of IPM's test IoU, of which the image-blind baseline has "
        f"{least:.0%}, MLP relative to attention",
    )


def _history(results: TaskResults) -> list[Row]:
    return _delay(
        {share: (results.history_to(ATTENTION, share), results.history_to(MLP, share)) for share in SHARES},
        "fixed camera: which learns faster within one training?",
        f"steps to so much of IPM's validation IoU in one schedule of {results.plan.longest} steps, MLP relative to "
        "attention",
    )


def _delay(reached: Mapping[float, tuple[list[Bounds], list[Bounds]]], question: str, measured: str) -> list[Row]:
    found = {f"{share:.0%}": Comparison.of(*bounds) for share, bounds in reached.items()}
    absolute = {
        f"{name}, {share:.0%}": range_words(bounds[number])
        for share, bounds in reached.items()
        for number, name in enumerate(("attention", "MLP"))
    }
    return [_compared("A8", question, measured, found, "attention", absolute)]


def _compute(results: TaskResults) -> list[Row]:
    counted = {"whole model": "flops", "reshaper alone": "reshaper_flops"}
    to = {
        where: [results.compute_to(setting, TO, what) for setting in (ATTENTION, MLP)]
        for where, what in counted.items()
    }
    absolute = {
        f"{name}, {where}": range_words([Bounds(one.low / 1e9, one.high / 1e9) for one in bounds[number]])
        for where, bounds in to.items()
        for number, name in enumerate(("attention", "MLP"))
    }
    return [
        _compared(
            "A8", "fixed camera: which needs less computation?",
            f"GFLOPs of the forward passes of all samples to {TO:.0%} of IPM's test IoU, MLP relative to attention",
            {where: Comparison.of(*bounds) for where, bounds in to.items()}, "attention", absolute,
        )
    ]  # fmt: skip


def _equal_compute(results: TaskResults) -> list[Row]:
    flops, own, other = results.at_equal_compute(ATTENTION, MLP)
    return [
        _compared(
            "A8", "fixed camera: which is better at equal compute?",
            f"mean test IoU after {flops / 1e9:.3g} GFLOPs of forward passes of the whole model, attention relative to "
            "MLP",
            {"": ahead(own, other)}, "attention", {"attention": f"{mean(own):.3f}", "MLP": f"{mean(other):.3f}"},
        )
    ]  # fmt: skip


def _moving(results: TaskResults) -> list[Row]:
    found = []
    for pose in (True, False):
        compared: dict[str, Comparison] = {}
        absolute: dict[str, str] = {}
        for sigma in results.plan.sigma_deg:
            where = f", σ = {sigma:g}°"
            compared |= _advantages(results, sigma, pose, where)
            every = {**_pair(sigma, pose), "IPM": TaskSetting("ipm", sigma_deg=sigma)}
            absolute |= {f"{name}{where}": _iou(results, setting) for name, setting in every.items()}
            absolute |= _unseeing(results, sigma, where)
        found.append(
            _compared(
                "A9", f"moving camera, pose {'given' if pose else 'not given'}: which is better?",
                f"mean test IoU after {results.plan.longest} steps, and its gain over the image-blind baseline, "
                "attention relative to MLP", compared, "attention", absolute,
            )
        )  # fmt: skip
    return found


def _ipm(results: TaskResults) -> list[Row]:
    compared: dict[str, Comparison] = {}
    absolute: dict[str, str] = {}
    for sigma in results.plan.sigma_deg:
        ipm, where = TaskSetting("ipm", sigma_deg=sigma), f", σ = {sigma:g}°"
        compared |= {
            f"{name}{where}": results.advantage(ipm, setting) for name, setting in _pair(sigma, pose=True).items()
        }
        absolute[f"IPM{where}"] = _iou(results, ipm)
    return [
        _compared(
            "beyond", "does either reach IPM, which knows the geometry and learns nothing of it?",
            f"mean test IoU after {results.plan.longest} steps, pose given, IPM relative to either", compared, "IPM",
            absolute,
        )
    ]  # fmt: skip


def _worth(results: TaskResults) -> list[Row]:
    found = []
    for name in ("MLP", "attention"):
        levels = {
            f"σ = {sigma:g}°": (_pair(sigma, True)[name], _pair(sigma, False)[name]) for sigma in results.plan.sigma_deg
        }
        found.append(
            _compared(
                "A9", f"what is the pose worth to {name}?",
                f"mean test IoU after {results.plan.longest} steps, with the pose relative to without it",
                {where: results.advantage(*pair) for where, pair in levels.items()}, "with the pose",
                {
                    f"{how}, {where}": _iou(results, pair[number])
                    for where, pair in levels.items()
                    for number, how in enumerate(("with", "without"))
                },
            )
        )  # fmt: skip
    return found


def _unseen_angles(results: TaskResults) -> list[Row]:
    return _unseen(results, "angles", f"cameras that move by σ = {results.plan.unseen_sigma_deg:g}°")


def _unseen_height(results: TaskResults) -> list[Row]:
    return _unseen(results, "height", f"cameras whose height varies by {results.plan.unseen_height_m:g} m")


def _unseen(results: TaskResults, what: str, cameras: str) -> list[Row]:
    found = []
    for pose in (True, False):
        compared, absolute = {}, {}
        levels = [s for s in results.plan.sigma_deg if what in results.plan.unseen(TaskSetting("mlp", pose, s))]
        if not levels:
            continue
        for sigma in levels:
            pair, where = _pair(sigma, pose), f"trained at {sigma:g}°"
            compared[where] = ahead(*(results.unseen(setting, what) for setting in pair.values()))
            for name, setting in {**pair, "IPM": TaskSetting("ipm", sigma_deg=sigma)}.items():
                seen, unseen = mean(results.iou(setting)), mean(results.unseen(setting, what))
                absolute[f"{name}, {where}"] = f"{unseen:.3f} (as in training {seen:.3f})"
        found.append(
            _compared(
                "A9", f"{cameras} only in the test, pose {'given' if pose else 'not given'}: which generalises better?",
                "mean test IoU, attention relative to MLP", compared, "attention", absolute,
            )
        )  # fmt: skip
    return found


def _a11(results: TaskResults) -> list[Row]:
    unplaced = TaskSetting("attention", encoding="none")
    return [
        _compared(
            "A11", "does attention need positional encoding?",
            "fixed camera: mean test IoU without it, relative to with it; the encoder's zero padding tells places too",
            {"": results.advantage(unplaced, ATTENTION)}, "without encoding",
            {"with it": _iou(results, ATTENTION), "without it": _iou(results, unplaced)},
        )
    ]  # fmt: skip


def _a12(results: TaskResults) -> list[Row]:
    learned = TaskSetting("attention", encoding="learned")
    pairs = {
        "attention, sinusoidal": (TaskSetting("attention", permuted=True), ATTENTION),
        "attention, learned": (TaskSetting("attention", encoding="learned", permuted=True), learned),
        "MLP": (TaskSetting("mlp", permuted=True), MLP),
    }
    return [
        _compared(
            "A12", "does a permutation that is fixed before training harm attention?",
            "fixed camera: mean test IoU with permuted tokens, relative to in order",
            {name: results.advantage(*pair) for name, pair in pairs.items()}, "permuted",
            {
                f"{name}, {how}": _iou(results, pair[number])
                for name, pair in pairs.items()
                for number, how in enumerate(("permuted", "in order"))
            },
        )
    ]  # fmt: skip
