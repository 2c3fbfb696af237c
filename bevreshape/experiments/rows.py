"""From the outcomes of a study's tensor level to its rows: a measurement, an interval over the seeds and a verdict each."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from bevreshape.experiments.intervals import (
    ALPHA,
    Bounds,
    Comparison,
    Verdict,
    crossover,
    exponent,
    holm,
    reached,
)
from bevreshape.experiments.outcomes import NotDoneError, Outcomes, paired
from bevreshape.experiments.plan import PAIRS, THRESHOLDS, TensorPlan
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.world import Pose

TO = 0.1
"""The error that counts as having learned a mapping in the primary rows: 90 % of what can be had."""


@dataclass(frozen=True)
class Row:
    """A measurement and what follows from it.

    Attributes:
        claim: of the article, such as ``A8``.
        question: what is asked.
        measured: what was measured, with its unit.
        value: by condition, in words and numbers.
        verdict: in words.
        primary: named in advance; its verdict is by Holm over all of these.
    """

    claim: str
    question: str
    measured: str
    value: Mapping[str, str]
    verdict: str
    primary: bool = False


def available(*makers: Callable[[], Sequence[Row]]) -> list[Row]:
    """The rows of those that do not lack an entry."""
    found: list[Row] = []
    for make in makers:
        with suppress(NotDoneError):
            found += make()
    return found


@dataclass(frozen=True)
class Results(Outcomes[TensorPlan]):
    """What a study's tensor level has found.

    Attributes:
        costs: of the methods, by name: parameters, flops and bytes of one sample.
    """

    costs: Mapping[str, Mapping[str, int]]

    def advantage(self, pose: Pose, sigma: float, samples: int | None, steps: int) -> Comparison:
        """Of attention over the MLP, by error: a cell of the chart."""
        mlp, attention = (Setting(one, pose, sigma, samples) for one in PAIRS[pose])
        return self.compare(attention, mlp, steps)

    def samples_to(self, method: str, threshold: float) -> list[Bounds]:
        """Samples with which the error of a fixed camera gets to the threshold, one a seed; trained for as many steps as
        was best on the tuning seeds."""
        settings = [Setting(method, samples=amount) for amount in self.plan.samples]
        errors = [self.errors(setting, self.best_steps(setting)) for setting in settings]
        return [reached(self.plan.samples, list(line), threshold) for line in zip(*errors, strict=True)]

    @cached_property
    def primary(self) -> dict[str, Comparison]:
        """The primary rows, named before anything was measured: attention in comparison with the MLP."""
        sigma = self.plan.primary_sigma_deg
        mlp, attention = Setting("mlp"), Setting("attention")
        steps = [self.steps_to(setting, TO) for setting in (attention, mlp)]
        flops = [
            [Bounds(one.low * self.costs[name]["flops"], one.high * self.costs[name]["flops"]) for one in bounds]
            for name, bounds in zip(("attention", "mlp"), steps, strict=True)
        ]
        return {
            "fixed camera, error": self.advantage("unknown", 0.0, None, self.longest),
            "fixed camera, steps": Comparison.of(*steps),
            "fixed camera, compute": Comparison.of(*flops),
            "fixed camera, samples": Comparison.of(self.samples_to("attention", TO), self.samples_to("mlp", TO)),
            "moving camera, pose given": self.advantage("given", sigma, None, self.longest),
            "moving camera, pose visible": self.advantage("visible", sigma, None, self.longest),
        }

    def overtaken(self, pose: Pose, samples: int | None, steps: int) -> list[Bounds]:
        """The σ from which on attention is ahead, one a seed."""
        levels = self.plan.sigma_deg
        cells = [self.advantage(pose, sigma, samples, steps).seeds for sigma in levels]
        shared = min(map(len, cells))
        return [crossover(levels, [(cell[i].low + cell[i].high) / 2 for cell in cells]) for i in range(shared)]


def rows(results: Results) -> list[Row]:
    """All of the tensor level whose entries are done."""
    makers = (_primary, _controls, _a7, _a8_mapping, _a8_delay, _a8_content, _a8_capacity, _a9, _a11, _a12)
    return available(*(partial(make, results) for make in makers))


def _primary(results: Results) -> list[Row]:
    sigma, longest = results.plan.primary_sigma_deg, results.longest
    asked = {
        "fixed camera, error": ("A8", f"error after {longest} steps of new samples"),
        "fixed camera, steps": ("A8", f"steps to {1 - TO:.0%} of what can be had"),
        "fixed camera, compute": ("A8", f"FLOPs of a forward pass times steps to {1 - TO:.0%} of what can be had"),
        "fixed camera, samples": ("A8", f"training samples to {1 - TO:.0%} of what can be had"),
        "moving camera, pose given": ("A9", f"error after {longest} steps of new samples, σ = {sigma:g}°"),
        "moving camera, pose visible": ("A9", f"error after {longest} steps of new samples, σ = {sigma:g}°"),
    }
    verdicts = holm(results.primary)
    return [
        Row(
            asked[name][0], f"Attention and MLP: {name}", f"{asked[name][1]}, MLP relative to attention",
            {"": str(comparison)}, f"attention {verdicts[name]}", primary=True,
        )
        for name, comparison in results.primary.items()
    ]  # fmt: skip


def _controls(results: Results) -> list[Row]:
    sigma, longest = results.plan.primary_sigma_deg, results.longest
    permuted = results.compare(Setting("mlp", permuted=True), Setting("mlp"))
    nowhere = results.advantage("unknown", sigma, None, longest)
    return [
        Row(
            "control", "The pose is nowhere to be found: no method can be ahead",
            f"error after {longest} steps, σ = {sigma:g}°, MLP relative to attention", {"": str(nowhere)},
            f"attention {nowhere.verdict()}",
        ),
        Row(
            "control", "Tokens in another order from the start: an MLP cannot tell", f"error after {longest} steps, relative to in order",
            {"": str(permuted)}, f"permuted {permuted.verdict()}",
        ),
    ]  # fmt: skip


def _a7(results: Results) -> list[Row]:
    settings = {"MLP": Setting("mlp"), "attention": Setting("attention")}
    found = {
        name: ", ".join(
            f"{what} {_mean_of(results, setting, key):.2g}"
            for what, key in (("A", "spread_of_a"), ("Jacobian", "spread_of_jacobian"))
        )
        for name, setting in settings.items()
    }
    return [
        Row(
            "A7", "After training the MLP's W is fixed, the attention's changes with X",
            "fixed camera: spread of A and of the Jacobian over inputs, relative to their mean; parameters are fixed in both", found,
            "measured",
        )
    ]  # fmt: skip


def _mean_of(results: Results, setting: Setting, what: str) -> float:
    return statistics.mean(getattr(one, what) for one in results.outcome(setting).examined)


def _a8_mapping(results: Results) -> list[Row]:
    white = {name: Setting(name, correlation_length=0.0) for name in ("mlp", "attention")}
    return [
        Row(
            "A8", "For a fixed camera both learn one fixed mapping, the homography",
            "white noise: distance of the Jacobian from the bilinear sampling matrix, relative to it",
            {name: f"{_mean_of(results, setting, 'distance'):.2g}" for name, setting in white.items()}, "measured",
        )
    ]  # fmt: skip


def _a8_delay(results: Results) -> list[Row]:
    compared = {
        f"{1 - to:.0%}": Comparison.of(results.steps_to(Setting("attention"), to), results.steps_to(Setting("mlp"), to))
        for to in THRESHOLDS
    }
    return [
        Row(
            "A8", "Attention converges later", "steps to so much of what can be had, MLP relative to attention",
            {share: str(found) for share, found in compared.items()},
            "; ".join(f"{share}: attention {found.verdict()}" for share, found in compared.items()),
        )
    ]  # fmt: skip


def _a8_content(results: Results) -> list[Row]:
    content = paired(results.steps_to(Setting("attention"), TO), results.steps_to(Setting("positional"), TO))
    return [
        Row(
            "A8", "… and how much of that is content in the keys?",
            f"steps to {1 - TO:.0%} with keys of place alone, relative to keys of content and place", {"": str(content)},
            f"with content {content.verdict()}",
        )
    ]  # fmt: skip


def _a8_capacity(results: Results) -> list[Row]:
    scales = results.plan.scales
    grown = {
        what: {
            method: exponent(
                [scale**4 for scale in scales],
                [float(results.costs[Setting(method, scale=scale).name][what]) for scale in scales],
            )
            for method in ("mlp", "attention")
        }
        for what in ("parameters", "bytes")
    }
    return [
        Row(
            "A8", "Capacity", "exponents of growth with features times cells",
            {what: ", ".join(f"{method} {value:.2f}" for method, value in found.items()) for what, found in grown.items()},
            "measured",
        )
    ]  # fmt: skip


def _a9(results: Results) -> list[Row]:
    found = {}
    for pose in PAIRS:
        bounds = results.overtaken(pose, None, results.longest)
        low, high = min(one.low for one in bounds), max(one.high for one in bounds)
        found[f"pose {pose}"] = (
            f"σ ≥ {low:g}°" if high == math.inf else f"{low:.3g}° to {high:.3g}° (range of the seeds)"
        )
    return [
        Row(
            "A9", "From which jitter on is attention ahead?", f"σ of yaw at which errors after {results.longest} steps are alike", found,
            "measured",
        )
    ]  # fmt: skip


def _a11(results: Results) -> list[Row]:
    found = results.compare(Setting("attention", encoding="none"), Setting("attention"))
    return [
        Row(
            "A11", "Attention needs positional encoding", f"error after {results.longest} steps with it, relative to without it",
            {"": str(found)}, f"without encoding {found.verdict()}",
        )
    ]  # fmt: skip


def _a12(results: Results) -> list[Row]:
    found = {
        encoding: results.compare(
            Setting("attention", encoding=encoding, permuted=True), Setting("attention", encoding=encoding)
        )
        for encoding in ("sinusoidal", "learned")
    }
    return [
        Row(
            "A12", "A fixed permutation that is there in training already harms an attention",
            f"error after {results.longest} steps in order, relative to permuted", {name: str(one) for name, one in found.items()},
            "; ".join(f"{name}: permuted {one.verdict()}" for name, one in found.items()),
        )
    ]  # fmt: skip


__all__ = ["ALPHA", "Results", "Row", "Verdict", "rows"]
