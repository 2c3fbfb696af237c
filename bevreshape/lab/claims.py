"""From the records of a study to the article's claims A7 to A12: measurement, value, interval and verdict.

A figure is taken of every seed; the verdict follows from their interval by the rule that stands beside the measurement
(:mod:`bevreshape.lab.verdict`), whichever way the article expects it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bevreshape.lab.plan import RIVALS, TOLD, Plan, Records
from bevreshape.lab.results import Results, figure_of
from bevreshape.lab.verdict import (
    Estimate,
    Figure,
    Verdict,
    above,
    all_of,
    below,
    crossover,
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
    def lines(self) -> list[str]:
        """Condition and estimates, one condition a line."""
        told = []
        for condition, parts in self.values.items():
            shown = ", ".join(f"{name} {found}".strip() for name, found in parts.items())
            told.append(f"{condition}: {shown}" if condition else shown)
        return told

    @property
    def value(self) -> str:
        """All estimates in one line."""
        return "; ".join(self.lines)

    def to_plain(self) -> dict[str, Any]:
        """For a JSON file; ends of intervals that are open are null."""
        values = {
            condition: {
                part: {key: _finite(value) for key, value in asdict(found).items()} for part, found in parts.items()
            }
            for condition, parts in self.values.items()
        }
        return asdict(self) | {"values": values, "value": self.value}


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def claims(plan: Plan, records: Records) -> list[Row]:
    """The results table of a study whose runs are all done."""
    study = Results(plan, records)
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


def _a7(study: Results) -> list[Row]:
    def dependence(role: str) -> Estimate:
        return study.over_seeds(lambda seed: figure_of(study.task(role, seed)["diagnosis"].get("data_dependence")))

    still, moving = _under(EXACT_TO), _over(0.01)
    return [
        _row(
            "A7", "After training the MLP's W is fixed, the attention's changes with X",
            "spread of W over inputs in parts of its mean; holds if the MLP's is below 1e-5 and the attention's above 0.01",
            [
                ("tensor level, an MLP without activation", {
                    "MLP": (study.examined("mlp", "data_dependence"), still),
                    "attention": (study.examined("attention", "data_dependence"), moving),
                }),
                ("tensor level, an MLP with a hidden ReLU layer", {
                    "MLP": (study.examined("mlp_hidden", "data_dependence"), still),
                    "attention": (study.examined("attention", "data_dependence"), moving),
                }),
                ("task, an MLP with activation", {
                    "MLP": (dependence("mlp"), still), "attention": (dependence("attention"), moving),
                }),
            ],
        )
    ]  # fmt: skip


def _a8(study: Results) -> list[Row]:
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
            f"error after training, and distance of W from the bilinear sampling matrix (1 is that of W = 0); holds if the error is below {threshold:g} and "
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
        _row("A8", "Attention needs more computation", f"FLOPs of training (backward counted as twice forward) {to}, {ratio}", ratios("flops")),
        _row(
            "A8", "Attention needs more data", f"fewest training samples {to}, {ratio}", [("", {"": (needed, later)})]
        ),
        _row(
            "A8", "On the task, too, the MLP is ahead where the camera is fixed",
            "test IoU of the MLP less that of attention, equal steps; holds above 0", [("", {"": (ceiling, _over(0.0))})],
        ),
    ]  # fmt: skip


PAIRS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "not told": (RIVALS, {}),
    "shown by X": (RIVALS, {"shown": True}),
    "told": (TOLD, {}),
}
"""How the two rivals know where the cameras look; the first is the same as the second where these do not move."""


def _a9(study: Results) -> list[Row]:
    plan = study.plan
    conditions = [
        (f"{name}, σ={sigma:g}°", {"": (study.error_ratio(*rivals, jitter_deg=sigma, **given), _over(1.0))})
        for name, (rivals, given) in PAIRS.items()
        for sigma in plan.tensor["jitter_deg"]
        if sigma or not given
    ]
    rows = [
        _row(
            "A9", "Attention may have the higher ceiling, since its W adapts",
            f"error of the MLP after {plan.tensor['steps']} steps in parts of the attention's, by the jitter of the cameras, "
            "whose calibration is not told (and X says nothing of it), shown by X (the direction of every feature is part of "
            "it), or told; holds above 1",
            conditions,
        )
    ]  # fmt: skip
    sigmas = plan.task["jitter_deg"]
    if len(sigmas) > 1:
        gains = [
            (f"{name}, σ={sigma:g}°", {"": (_gain(study, rivals, jitter_deg=sigma), _over(0.0))})
            for name, rivals in _pairs_on_task(study).items()
            for sigma in (sigmas[1:] if rivals == TOLD else sigmas)
        ]
        rows.append(
            _row(
                "A9", "On the task, too, attention may have the higher ceiling",
                "test IoU of attention less that of the MLP after equal steps, calibration told or left to the pictures; "
                "holds above 0",
                gains,
            )
        )  # fmt: skip
    return rows


def _pairs_on_task(study: Results) -> dict[str, Sequence[str]]:
    pairs = {"not told": RIVALS, "told": TOLD}
    return {name: rivals for name, rivals in pairs.items() if set(rivals) <= set(study.plan.task["contenders"])}


def _gain(study: Results, rivals: Sequence[str], **given: Any) -> Estimate:
    mlp, attention = rivals
    return study.over_seeds(lambda seed: study.iou(attention, seed, **given) - study.iou(mlp, seed, **given))


def _a10(study: Results) -> list[Row]:
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


def _a11(study: Results) -> list[Row]:
    threshold = study.plan.tensor["threshold"]
    mlp = study.over_seeds(lambda seed: study.error("mlp", seed))
    return [
        _row(
            "A11", "Attention needs positional encoding",
            "error without it in parts of that with it, after training; holds above 2",
            [("", {"": (study.error_ratio("attention_unplaced", "attention"), _over(2.0))})],
        ),
        _row(
            "A11", "The MLP needs no positional encoding",
            f"its error after training, having none; holds below {threshold:g}",
            [("", {"": (mlp, _under(threshold))})],
        ),
    ]  # fmt: skip


def _a12(study: Results) -> list[Row]:
    rows = []
    for role, whose in (("mlp", "an MLP"), ("attention", "an attention whose encodings stay")):
        rows += [
            _row(
                "A12", f"A random permutation after training can destroy the result of {whose}",
                "tensor level: change of the output in parts of that from one input to another, holds above 0.5; task: share of "
                "the IoU that is left, beyond what pictures of another scene give, holds below 0.5",
                [
                    ("tensor level", {"": (study.examined(role, "destruction"), _over(0.5))}),
                    ("task", {"": (study.iou_kept(role), _under(0.5))}),
                ],
            ),
            _row(
                "A12", f"A fixed permutation that is there in training already harms {whose}",
                "error after training in parts of that in order; holds above 2",
                [("", {"": (_permuted_ratio(study, role), _over(2.0))})],
            ),
        ]  # fmt: skip
    return rows


def _permuted_ratio(study: Results, role: str) -> Estimate:
    return study.over_seeds(
        lambda seed: study.error(role, seed, permuted=True).over(study.error(role, seed)), ratios=True
    )


def _questions(study: Results) -> list[Row]:
    tensor, task = study.plan.tensor, study.plan.task
    lowest, highest = tensor["jitter_deg"][0], tensor["jitter_deg"][-1]
    fewest = tensor["training_samples"][0]

    def within(low: float | int, high: float | int) -> Rule:
        def rule(found: Estimate) -> Verdict:
            if found.high <= low or found.low >= high:
                return Verdict.FAILS
            return Verdict.HOLDS if low <= found.low and found.high <= high else Verdict.OPEN

        return rule

    overtaken = [
        (
            f"calibration {name}",
            {
                "σ": (study.over_seeds(partial(study.overtaken, rivals=rivals, **given)), within(lowest, highest)),
                f"errors at {highest:g}°, MLP to attention,": (
                    study.error_ratio(*rivals, jitter_deg=highest, **(given if highest else {})),
                    _over(1.0),
                ),
            },
        )
        for name, (rivals, given) in PAIRS.items()
    ]
    closed = [
        (
            f"calibration {name}, σ={sigma:g}°",
            {
                "": (
                    study.over_seeds(partial(study.gap_closed, rivals=rivals, jitter_deg=sigma), ratios=True),
                    _over(1.0),
                )
            },
        )
        for name, rivals, sigma in (("not told", RIVALS, 0), ("told", TOLD, tensor["told_jitter_deg"]))
    ]
    rows = [
        _row(
            "Q1", "With enough jitter of the cameras attention overtakes the MLP",
            f"σ of yaw in degrees from which on its error is lower, and the ratio of the errors at {highest:g}°, the highest tried; "
            f"holds if it is ahead there, and from a σ between {lowest:g} and {highest:g} on",
            overtaken,
        ),
        _row(
            "Q2", "With more training samples the gap closes",
            f"factor by which the two errors come closer to each other, as a ratio, from {fewest} samples to new ones in every "
            "step; holds above 1",
            closed,
        ),
    ]  # fmt: skip
    sigmas, amounts = task["jitter_deg"], task["scenes"]
    if len(sigmas) > 1:

        def overtaken_on_task(seed: int) -> Figure:
            mlp, attention = RIVALS
            gains = [study.iou(attention, seed, at) - study.iou(mlp, seed, at) for at in sigmas]
            return crossover(sigmas, gains) if all(map(math.isfinite, gains)) else figure_of(None)

        rows.append(
            _row(
                "Q1", "On the task, too, attention overtakes the MLP with enough jitter",
                f"σ of yaw in degrees from which on its test IoU is higher, calibration left to the pictures; holds between "
                f"{sigmas[0]:g} and {sigmas[-1]:g}",
                [("", {"σ": (study.over_seeds(overtaken_on_task), within(sigmas[0], sigmas[-1]))})],
            )
        )  # fmt: skip
    if len(amounts) > 1:

        def closed_on_task(seed: int) -> float:
            few, many = (
                abs(math.log(study.iou("mlp", seed, scenes=n) / study.iou("attention", seed, scenes=n)))
                for n in (amounts[0], amounts[-1])
            )
            return math.exp(few - many)

        rows.append(
            _row(
                "Q2", "On the task, too, the gap closes with more scenes",
                f"factor by which the two test IoUs come closer to each other, as a ratio, from {amounts[0]} scenes to "
                f"{amounts[-1]}; holds above 1",
                [("", {"": (study.over_seeds(closed_on_task, ratios=True), _over(1.0))})],
            )
        )  # fmt: skip
    return rows
