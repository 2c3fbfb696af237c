"""From the records of a study to the article's claims A7 to A12: measurement, value, interval and verdict.

A figure is taken of every seed; the verdict follows from their interval by the rule that stands beside the measurement
(:mod:`bevreshape.lab.verdict`), whichever way the article expects it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bevreshape.lab.experiments import RIVALS, TOLD, Plan, Records, best_rates, final_error, task_unit, tensor_unit
from bevreshape.lab.verdict import (
    Estimate,
    Figure,
    Known,
    Verdict,
    above,
    all_of,
    below,
    crossover,
    estimate,
    where,
)

EXACT_TO = 1e-5
"""What counts as unchanged in float32."""

EXACT_TO_DOUBLE = 1e-12
"""What counts as unchanged in float64."""

Rule = Callable[[Estimate], Verdict]


@dataclass(frozen=True)
class Row:
    """A claim and what became of it.

    Attributes:
        number: of the claim, such as ``A7``; ``Q1`` and ``Q2`` are the questions that the article leaves open.
        claim: what is said.
        measurement: what was measured, and by which rule it holds.
        values: by condition, an estimate or several parts with names of their own.
        verdict: in words.
        holds: ``None`` where it holds in part, or cannot be told.
    """

    number: str
    claim: str
    measurement: str
    values: Mapping[str, Mapping[str, Estimate]]
    verdict: str
    holds: bool | None

    @property
    def value(self) -> str:
        """All estimates in a line."""
        told = []
        for condition, parts in self.values.items():
            shown = ", ".join(f"{name} {found}".strip() for name, found in parts.items())
            told.append(f"{condition}: {shown}" if condition else shown)
        return "; ".join(told)


class Study:
    """What the claims ask of a plan's records."""

    def __init__(self, plan: Plan, records: Records) -> None:
        rates = best_rates(plan, records)
        assert rates is not None
        self.plan, self.records, self.rates = plan, records, rates

    def tensor(self, role: str, seed: int, **given: Any) -> Mapping[str, Any]:
        """Record of a tensor-level run."""
        return self.records[tensor_unit(self.plan, role, self.rates[role], seed, **given).name]

    def task(self, role: str, seed: int, jitter_deg: float | int = 0, scenes: int | None = None) -> Mapping[str, Any]:
        """Record of a task-level run."""
        return self.records[task_unit(self.plan, role, seed, jitter_deg, scenes).name]

    def over_seeds(self, measure: Callable[[int], Figure | float], *, ratios: bool = False) -> Estimate:
        """Estimate of a figure that every seed has."""
        found = [measure(seed) for seed in self.plan.seeds]
        return estimate([one if isinstance(one, Figure) else Figure(one) for one in found], ratios=ratios)

    # tensor level

    def examined(self, role: str, key: str) -> Estimate:
        """What an instrument found."""
        return self.over_seeds(lambda seed: self.tensor(role, seed)["examined"][key])

    def error(self, role: str, seed: int, **given: Any) -> Figure:
        """Final error; of a run that diverged at least that of the mean."""
        found = final_error(self.tensor(role, seed, **given))
        return Figure(found) if math.isfinite(found) else Figure(1.0, Known.AT_LEAST)

    def error_ratio(self, over: str, under: str, **given: Any) -> Estimate:
        """Final error of one contender in parts of another's, the same seeds beside each other."""
        return self.over_seeds(
            lambda seed: self.error(over, seed, **given).over(self.error(under, seed, **given)), ratios=True
        )

    def reached(self, role: str, seed: int, what: str, **given: Any) -> Figure:
        """How many ``steps``, ``samples``, ``seconds`` or ``flops`` it took to the threshold; at least all, if it never did."""
        record = self.tensor(role, seed, **given)
        hit = (p for p in record["curve"] if p["error"] is not None and p["error"] <= self.plan.tensor["threshold"])
        point = next(hit, None)
        at = record["curve"][-1] if point is None else point
        value = 3 * record["flops"] * at["samples"] if what == "flops" else at[what]  # backward is twice forward
        return Figure(value, Known.AT_LEAST if point is None else Known.EXACT)

    def later(self, what: str, **given: Any) -> Estimate:
        """The attention's need of something in parts of the MLP's."""
        mlp, attention = RIVALS
        return self.over_seeds(
            lambda seed: self.reached(attention, seed, what, **given).over(self.reached(mlp, seed, what, **given)),
            ratios=True,
        )

    def samples_needed(self, role: str, seed: int) -> Figure:
        """Fewest training samples with which the error ends at the threshold, between the amounts tried by interpolation."""
        amounts = self.plan.tensor["training_samples"]
        short = [
            self.plan.tensor["threshold"] - self.error(role, seed, training_samples=amount).value for amount in amounts
        ]
        found = crossover([math.log2(amount) for amount in amounts], short)
        return Figure(2**found.value, found.known)

    def overtaken(self, seed: int, rivals: Sequence[str]) -> Figure:
        """Jitter from which on the second of two has the lower error."""
        levels = self.plan.tensor["jitter_deg"]
        gains = []
        for level in levels:
            first, second = (self.error(role, seed, jitter_deg=level).value for role in rivals)
            gains.append(first - second)
        return crossover(levels, gains)

    def gap_closed(self, seed: int, rivals: Sequence[str], jitter_deg: float | int) -> float:
        """How much smaller the second's error in excess of the first's is with new samples than with fewest."""
        mlp, attention = rivals
        fewest = self.plan.tensor["training_samples"][0]
        gaps = [
            self.error(attention, seed, jitter_deg=jitter_deg, training_samples=amount).value
            - self.error(mlp, seed, jitter_deg=jitter_deg, training_samples=amount).value
            for amount in (fewest, None)
        ]
        return gaps[0] - gaps[1]

    # task level

    @property
    def iou_to_reach(self) -> float:
        """The plan's share of the reference's validation IoU at its end, the mean of the seeds."""
        ends = [self.task("ipm", seed)["curve"][-1]["iou"] for seed in self.plan.seeds]
        return float(self.plan.task["share"] * statistics.mean(ends))

    def iou(self, role: str, seed: int, jitter_deg: float | int = 0, scenes: int | None = None) -> float:
        """Mean IoU on the test split."""
        return float(self.task(role, seed, jitter_deg, scenes)["metrics"]["test/iou/mean"])

    def iou_reached(self, role: str, seed: int, what: str) -> Figure:
        """How many ``steps`` or ``seconds`` it took to :attr:`iou_to_reach`."""
        record = self.task(role, seed)
        curve, metrics = record["curve"], record["metrics"]
        steps = next((point["steps"] for point in curve if point["iou"] >= self.iou_to_reach), None)
        at = curve[-1]["steps"] if steps is None else steps
        value = at if what == "steps" else at * metrics["fit/seconds"] / metrics["fit/steps"]
        return Figure(value, Known.AT_LEAST if steps is None else Known.EXACT)

    def iou_later(self, what: str) -> Estimate:
        """The attention's need of something in parts of the MLP's."""
        mlp, attention = RIVALS
        return self.over_seeds(
            lambda seed: self.iou_reached(attention, seed, what).over(self.iou_reached(mlp, seed, what)), ratios=True
        )

    def iou_kept(self, role: str) -> Estimate:
        """Share of the IoU that is left when tokens are permuted after training."""

        def kept(seed: int) -> float:
            iou = self.task(role, seed)["diagnosis"]["order"]["iou"]
            return float(iou["permuted"] / iou["intact"])

        return self.over_seeds(kept)


def claims(plan: Plan, records: Records) -> list[Row]:
    """The results table of a study whose runs are all done."""
    study = Study(plan, records)
    return [*_a7(study), *_a8(study), *_a9(study), *_a10(study), *_a11(study), *_a12(study), *_questions(study)]


def _row(
    number: str,
    claim: str,
    measurement: str,
    conditions: Sequence[tuple[str, Mapping[str, tuple[Estimate, Rule]]]],
) -> Row:
    """A claim looked at under conditions, in each of which all of its parts must follow their rules."""
    verdicts = [(name, all_of([rule(found) for found, rule in parts.values()])) for name, parts in conditions]
    values = {name: {part: found for part, (found, _) in parts.items()} for name, parts in conditions}
    distinct = {one for _, one in verdicts}
    holds = {Verdict.HOLDS: True, Verdict.FAILS: False}.get(distinct.pop()) if len(distinct) == 1 else None
    return Row(number, claim, measurement, values, where(verdicts), holds)


def _over(threshold: float | int) -> Rule:
    return partial(above, threshold=threshold)


def _under(threshold: float | int) -> Rule:
    return partial(below, threshold=threshold)


def _a7(study: Study) -> list[Row]:
    def dependence(role: str) -> Estimate:
        return study.over_seeds(lambda seed: study.task(role, seed)["diagnosis"]["data_dependence"])

    still, moving = _under(EXACT_TO), _over(0.01)
    return [
        _row(
            "A7", "After training the MLP's W is fixed, the attention's changes with X",
            "spread of W over inputs in parts of its mean; holds if the MLP's is below 1e-5 and the attention's above 0.01",
            [
                ("before the activation", {
                    "MLP": (study.examined("mlp", "data_dependence"), still),
                    "attention": (study.examined("attention", "data_dependence"), moving),
                }),
                ("task, behind the activation", {
                    "MLP": (dependence("mlp"), still), "attention": (dependence("attention"), moving),
                }),
            ],
        )
    ]  # fmt: skip


def _a8(study: Study) -> list[Row]:
    threshold, share = study.plan.tensor["threshold"], study.plan.task["share"]
    later = _over(1.0)
    mlp_error = study.over_seeds(lambda seed: study.error("mlp", seed))
    ratio = "attention in parts of the MLP; holds above 1"
    to = f"to an error of {threshold:g}"
    both = {"random fields": {}, "encoder features": {"features": "encoder"}}

    def ratios(what: str) -> list[tuple[str, dict[str, tuple[Estimate, Rule]]]]:
        return [(name, {"": (study.later(what, **given), later)}) for name, given in both.items()]

    needed = study.over_seeds(
        lambda seed: study.samples_needed("attention", seed).over(study.samples_needed("mlp", seed)), ratios=True
    )
    ceiling = study.over_seeds(lambda seed: study.iou("mlp", seed) - study.iou("attention", seed))
    task = f"task, to {share:.0%} of IPM's IoU"
    return [
        _row(
            "A8", "For a fixed camera an MLP learns one fixed mapping, the homography",
            f"final error, and distance of W from the bilinear sampling matrix; holds if the error is below {threshold:g} and "
            "the distance below 0.5",
            [("", {
                "error": (mlp_error, _under(threshold)),
                "distance": (study.examined("mlp", "sampling_distance"), _under(0.5)),
            })],
        ),
        _row(
            "A8", "Attention converges later", f"optimizer steps {to}, {ratio}",
            [*ratios("steps"), (task, {"": (study.iou_later("steps"), later)})],
        ),
        _row(
            "A8", "Attention needs more time", f"seconds of training {to}, {ratio}",
            [*ratios("seconds"), (task, {"": (study.iou_later("seconds"), later)})],
        ),
        _row("A8", "Attention needs more computation", f"FLOPs of training {to}, {ratio}", ratios("flops")),
        _row(
            "A8", "Attention needs more data", f"fewest training samples {to}, {ratio}", [("", {"": (needed, later)})]
        ),
        _row(
            "A8", "On the task, too, the MLP is ahead where the camera is fixed",
            "test IoU of the MLP less that of attention, equal steps; holds above 0", [("", {"": (ceiling, _over(0.0))})],
        ),
    ]  # fmt: skip


def _a9(study: Study) -> list[Row]:
    told = {"not told": RIVALS, "told": TOLD}
    conditions = [
        (f"{name}, σ={sigma:g}°", {"": (study.error_ratio(*rivals, jitter_deg=sigma), _over(1.0))})
        for name, rivals in told.items()
        for sigma in study.plan.tensor["jitter_deg"]
    ]
    rows = [
        _row(
            "A9", "Attention may have the higher ceiling, since its W adapts",
            "final error of the MLP in parts of the attention's, calibration told or not, by the cameras' jitter; holds above 1",
            conditions,
        )
    ]  # fmt: skip
    present = {name: rivals for name, rivals in told.items() if set(rivals) <= set(study.plan.task["contenders"])}
    sigmas = study.plan.task["jitter_deg"]
    if len(sigmas) > 1:
        gains = [
            (f"{name}, σ={sigma:g}°", {"": (_gain(study, rivals, jitter_deg=sigma), _over(0.0))})
            for name, rivals in present.items()
            for sigma in (sigmas[1:] if rivals == TOLD else sigmas)
        ]
        rows.append(_row("A9", "... on the task", "test IoU of attention less that of the MLP; holds above 0", gains))
    return rows


def _gain(study: Study, rivals: Sequence[str], **given: Any) -> Estimate:
    mlp, attention = rivals
    return study.over_seeds(lambda seed: study.iou(attention, seed, **given) - study.iou(mlp, seed, **given))


def _a10(study: Study) -> list[Row]:
    exact = _under(EXACT_TO)
    change = "change of the output when tokens are permuted, in parts of the output; holds below 1e-5"
    return [
        _row(
            "A10", "Cross-attention is invariant to a permutation of its tokens", change,
            [
                ("encodings absent", {"": (study.examined("attention_unplaced", "invariance_error"), exact)}),
                ("encodings move along", {"": (study.examined("attention", "invariance_error_moved"), exact)}),
                ("encodings stay", {"": (study.examined("attention", "invariance_error"), exact)}),
            ],
        ),
        _row(
            "A10", "Self-attention is equivariant",
            "difference between permuting tokens and permuting cells, in parts of the output, encodings moving along; holds "
            "below 1e-5",
            [("", {"": (study.examined("self_attention", "equivariance_error_moved"), exact)})],
        ),
        _row(
            "A10", "XᵀX does not change", "change of XᵀX in float64, in parts of it; holds below 1e-12",
            [("", {"": (study.examined("attention", "gram_change"), _under(EXACT_TO_DOUBLE))})],
        ),
    ]  # fmt: skip


def _a11(study: Study) -> list[Row]:
    threshold = study.plan.tensor["threshold"]
    without = study.over_seeds(lambda seed: study.error("attention_unplaced", seed))
    placed, mlp = (study.over_seeds(lambda seed, role=role: study.error(role, seed)) for role in ("attention", "mlp"))  # type: ignore[misc]
    return [
        _row(
            "A11", "Attention needs positional encoding",
            f"final error without and with it; holds if only that with it is below {threshold:g}",
            [("", {"without": (without, _over(threshold)), "with": (placed, _under(threshold))})],
        ),
        _row(
            "A11", "The MLP needs none", f"its final error, having none; holds below {threshold:g}",
            [("", {"": (mlp, _under(threshold))})],
        ),
    ]  # fmt: skip


def _a12(study: Study) -> list[Row]:
    rows = []
    for role, claim in (
        ("mlp", "A random permutation can destroy an MLP's result"),
        ("attention", "... and that of an attention whose encodings stay"),
    ):
        rows.append(
            _row(
                "A12", claim,
                "permuted after training: change of the output in parts of that from one input to another, holds above 0.5; "
                "on the task the share of IoU that is left, holds below 0.5; permuted in training already: final error in "
                "parts of that in order, holds above 2",
                [
                    ("permuted after training", {"": (study.examined(role, "destruction"), _over(0.5))}),
                    ("permuted after training, on the task", {"": (study.iou_kept(role), _under(0.5))}),
                    ("permuted in training already", {"": (_permuted_ratio(study, role), _over(2.0))}),
                ],
            )
        )  # fmt: skip
    return rows


def _permuted_ratio(study: Study, role: str) -> Estimate:
    return study.over_seeds(
        lambda seed: study.error(role, seed, permuted=True).over(study.error(role, seed)), ratios=True
    )


def _questions(study: Study) -> list[Row]:
    highest = study.plan.tensor["jitter_deg"][-1]
    told_at = study.plan.tensor["told_jitter_deg"]
    pairs = {"not told": (RIVALS, 0), "told": (TOLD, told_at)}
    overtaken = [
        (f"calibration {name}", {"σ": (study.over_seeds(partial(study.overtaken, rivals=rivals)), _under(highest))})
        for name, (rivals, _) in pairs.items()
    ]
    closed = [
        (
            f"calibration {name}, σ={sigma:g}°",
            {"": (study.over_seeds(partial(study.gap_closed, rivals=rivals, jitter_deg=sigma)), _over(0.0))},
        )
        for name, (rivals, sigma) in pairs.items()
    ]
    fewest = study.plan.tensor["training_samples"][0]
    rows = [
        _row(
            "Q1", "With enough jitter of the cameras attention overtakes the MLP",
            f"σ of yaw in degrees from which on its error is lower; holds below {highest:g}, the highest tried", overtaken,
        ),
        _row(
            "Q2", "With more training samples the gap closes",
            f"error of attention less that of the MLP, with {fewest} samples less with new ones in every step; holds above 0",
            closed,
        ),
    ]  # fmt: skip
    amounts = study.plan.task["scenes"]
    if len(amounts) > 1:

        def closed_iou(seed: int) -> float:
            first, last = (
                study.iou("mlp", seed, scenes=n) - study.iou("attention", seed, scenes=n)
                for n in (amounts[0], amounts[-1])
            )
            return first - last

        rows.append(
            _row(
                "Q2", "... on the task",
                f"test IoU of the MLP less that of attention, with {amounts[0]} scenes less with {amounts[-1]}; holds above 0",
                [("", {"": (study.over_seeds(closed_iou), _over(0.0))})],
            )
        )  # fmt: skip
    return rows
