"""Rows of a study's tensor level: a measurement, its interval over the seeds and a verdict each."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bevreshape.experiments.intervals import Bounds, Comparison, Verdict, holm
from bevreshape.experiments.models import Encoding
from bevreshape.experiments.outcomes import Outcomes, paired
from bevreshape.experiments.plan import PAIRS, THRESHOLDS
from bevreshape.experiments.row import Row, available, dependence, judged, spread_words
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.tensor_results import TO, Results
from bevreshape.experiments.world import Pose

POSES: Mapping[Pose, str] = {"unknown": "pose unknown", "visible": "pose in X", "given": "pose given"}
"""How the sources of the pose are called."""

ENCODINGS: tuple[Encoding, ...] = ("sinusoidal", "learned")
"""Encodings that are compared when tokens are permuted."""


def rows(results: Results) -> list[Row]:
    """Return the rows of the tensor level whose entries are done."""
    makers = (_primary, _controls, _a7, _a8_mapping, _a8_delay, _a8_cost, _a8_content, _a9, _a11, _a12)
    return available(*(partial(make, results) for make in makers))


@dataclass(frozen=True)
class _Asked:
    """Texts of a primary row: claim, measurement, sentences, and the result of each method."""

    claim: str
    measured: str
    ahead: str
    behind: str
    alike: str
    sides: Mapping[str, str]


def _primary(results: Results) -> list[Row]:
    asked = _errors_asked(results) | _amounts_asked(results)
    verdicts = holm(results.primary)
    return [
        Row(
            asked[name].claim,
            name,
            asked[name].measured,
            {"MLP / attention": str(comparison)},
            judged("attention", verdicts[name]),
            primary=True,
            absolute=asked[name].sides,
            sentence=_sentence(asked[name], comparison, verdicts[name]),
        )
        for name, comparison in results.primary.items()
    ]


def _errors_asked(results: Results) -> dict[str, _Asked]:
    """Return the texts of the primary rows about errors."""
    sigma, longest = results.plan.primary_sigma_deg, results.longest

    def error(claim: str, pose: Pose, sigma: float, where: str, attention: str = "Attention’s") -> _Asked:
        found = {
            name: results.errors(Setting(method, pose, sigma))
            for name, method in zip(("MLP", "attention"), PAIRS[pose], strict=True)
        }
        explained = 1 - max(map(statistics.geometric_mean, found.values()))  # -inf if a run diverged
        percent = math.floor(explained * 1e5) / 1e3 if explained > 0 else 0
        both = f"; both explain {percent:g}% of the variance or more." if percent else "."
        return _Asked(
            claim,
            f"error after {longest} steps of new samples{where}",
            f"{attention} error is {{}} times lower{both}",
            f"{attention} error is {{}} times higher{both}",
            "Both come to the same error.",
            {name: mean_words(errors) for name, errors in found.items()},
        )

    moving = f", σ = {sigma:g}°"
    return {
        "fixed camera, error": error("A8", "unknown", 0.0, ""),
        "moving camera, pose given": error("A9", "given", sigma, moving),
        "moving camera, pose in X": error(
            "A9", "visible", sigma, f"{moving}, whose channels hold the direction of every ray",
            "With normalised keys, unlike the article’s, attention’s",
        ),
    }  # fmt: skip


def _amounts_asked(results: Results) -> dict[str, _Asked]:
    """Return the texts of the primary rows about steps, computation and samples."""
    to = f"to {1 - TO:.0%} of the variance"
    mlp, attention = Setting("mlp"), Setting("attention")
    steps = {"MLP": results.steps_to(mlp, TO), "attention": results.steps_to(attention, TO)}
    flops = {"MLP": results.flops_to(mlp, TO), "attention": results.flops_to(attention, TO)}
    samples = {"MLP": results.samples_to("mlp", TO), "attention": results.samples_to("attention", TO)}

    def amount(what: str, much: str, sides: Mapping[str, str]) -> _Asked:
        return _Asked(
            "A8",
            f"{what} {to}",
            f"The MLP needs {{}} times as {much}.",
            f"Attention needs {{}} times as {much}.",
            f"Both need as {much}.",
            sides,
        )

    return {
        "fixed camera, steps": amount(
            "steps", "many steps", {name: range_words(found) for name, found in steps.items()}
        ),
        "fixed camera, compute": amount(
            "MFLOPs of the forward passes of all samples",
            "much computation",
            {
                name: range_words([Bounds(one.low / 1e6, one.high / 1e6) for one in found])
                for name, found in flops.items()
            },
        ),
        "fixed camera, samples": amount(
            "samples to train on", "many samples", {name: range_words(found) for name, found in samples.items()}
        ),
    }


def _sentence(asked: _Asked, comparison: Comparison, verdict: Verdict) -> str:
    mean, low, high = comparison.interval()
    match verdict:
        case Verdict.ALIKE:
            return asked.alike
        case Verdict.OPEN:
            return "These seeds do not decide it."
        case Verdict.AHEAD:
            least, most, said = low, high, asked.ahead
        case Verdict.BEHIND:
            least, most, mean, said = -high, -low, -mean, asked.behind
    known = math.isfinite(least) and math.isfinite(most)
    return said.format(f"{math.exp(mean):.2g}" if known else f"at least {math.exp(least):.2g}")


def _controls(results: Results) -> list[Row]:
    sigma, longest = results.plan.primary_sigma_deg, results.longest
    nowhere = results.advantage("unknown", sigma, None, longest)
    return [
        Row(
            "control",
            "The pose is not in the input: no method can be ahead",
            f"error after {longest} steps, σ = {sigma:g}°",
            {"MLP / attention": str(nowhere)},
            judged("attention", nowhere.verdict()),
            absolute={
                name: mean_words(results.errors(Setting(method, "unknown", sigma)))
                for name, method in zip(("MLP", "attention"), PAIRS["unknown"], strict=True)
            },
        ),
        error_row(
            results,
            "control",
            "Tokens and the columns of W are permuted alike before training: the same MLP",
            {"in order": Setting("mlp"), "permuted": Setting("mlp", permuted=True)},
            "permuted",
            results.plan.budget.steps[0],  # before the differences in rounding have grown
        ),
    ]


def error_row(
    results: Outcomes,
    claim: str,
    question: str,
    sides: Mapping[str, Setting],
    subject: str,
    steps: int | None = None,
    where: str = "",
) -> Row:
    """Return the row that compares the errors of two settings.

    Args:
        results: of a level.
        claim: its number.
        question: that the row answers.
        sides: the reference and the other setting, by name.
        subject: of the verdict about the other setting.
        steps: of training; by default the largest budget.
        where: beginning of what is measured.
    """
    (name, reference), (other_name, other) = sides.items()
    steps = results.longest if steps is None else steps
    found = results.compare(other, reference, steps)
    return Row(
        claim,
        question,
        f"{where}error after {steps} steps",
        {f"{name} / {other_name}": str(found)},
        judged(subject, found.verdict()),
        absolute={name: mean_words(results.errors(setting, steps)) for name, setting in sides.items()},
    )


def _a7(results: Results) -> list[Row]:
    spreads = {
        name: [_mean_of(results, Setting(method), f"spread_of_{what}") for what in ("a", "jacobian")]
        for name, method in (("MLP", "mlp"), ("attention", "attention"))
    }
    return [
        Row(
            "A7",
            "Is the MLP's W fixed after training, and does the attention's change with X?",
            "fixed camera: spread over inputs of the parameters W, of A and of the Jacobian, relative to their mean",
            {name: spread_words(*pair) for name, pair in spreads.items()},
            dependence(spreads["attention"][0]),
        )
    ]


def _mean_of(results: Results, setting: Setting, what: str) -> float:
    return statistics.mean(getattr(one, what) for one in results.outcome(setting).examined)


def _a8_mapping(results: Results) -> list[Row]:
    white = {name: Setting(name, correlation_length=0.0) for name in ("mlp", "attention")}
    return [
        Row(
            "A8",
            "Do both learn one fixed mapping for a fixed camera, the homography?",
            "white noise: distance of the Jacobian from the bilinear sampling matrix, relative to it",
            {name: f"{_mean_of(results, setting, 'distance'):.2g}" for name, setting in white.items()},
            "measured",
        )
    ]


def _a8_delay(results: Results) -> list[Row]:
    compared = {
        f"{1 - to:.0%}": Comparison.of(results.steps_to(Setting("attention"), to), results.steps_to(Setting("mlp"), to))
        for to in THRESHOLDS
    }
    return [
        Row.compared(
            "A8",
            "Which converges sooner?",
            "steps to each share of the variance, MLP / attention",
            compared,
            "attention",
            {
                name: ", ".join(range_words(results.steps_to(Setting(method), to)) for to in THRESHOLDS)
                for name, method in (("MLP", "mlp"), ("attention", "attention"))
            },
        )
    ]


def _a8_cost(results: Results) -> list[Row]:
    pair = {"MLP": "mlp", "attention": "attention"}
    needed = {
        "samples": {name: results.samples_to(method, TO) for name, method in pair.items()},
        "steps": {name: results.steps_to(Setting(method), TO) for name, method in pair.items()},
        "FLOPs": {name: results.flops_to(Setting(method), TO) for name, method in pair.items()},
        "seconds": {name: results.seconds_to(Setting(method), TO) for name, method in pair.items()},
    }
    found = {what: Comparison.of(sides["attention"], sides["MLP"]) for what, sides in needed.items()}
    return [
        Row.compared(
            "A8",
            "Which needs fewer samples, steps, FLOPs and seconds?",
            f"to {1 - TO:.0%} of the variance, MLP / attention; FLOPs of forward passes of all samples; seconds "
            f"of training alone on {results.pace.processor}, {results.pace.threads} thread(s)",
            found,
            "attention",
            {name: ", ".join(f"{range_words(sides[name])} {what}" for what, sides in needed.items()) for name in pair},
        )
    ]


def _a8_content(results: Results) -> list[Row]:
    content = paired(results.steps_to(Setting("attention"), TO), results.steps_to(Setting("positional"), TO))
    return [
        Row(
            "A8",
            "How many steps does content in the keys cost?",
            f"steps to {1 - TO:.0%} of the variance",
            {"keys of place / of content and place": str(content)},
            judged("with content", content.verdict()),
            absolute={
                name: range_words(results.steps_to(Setting(method), TO))
                for name, method in (("keys of place", "positional"), ("of content and place", "attention"))
            },
        )
    ]


def _a9(results: Results) -> list[Row]:
    found = {}
    for pose in PAIRS:
        bounds = results.overtaken(pose, None, results.longest)
        low, high = min(one.low for one in bounds), max(one.high for one in bounds)
        found[POSES[pose]] = (
            f"more than {low:.3g}°" if high == math.inf else f"{low:.3g}° to {high:.3g}° (range of the seeds)"
        )
    return [
        Row(
            "A9",
            "From which jitter on is attention ahead?",
            f"σ of yaw at which errors after {results.longest} steps are alike",
            found,
            "measured",
        )
    ]


def _a11(results: Results) -> list[Row]:
    sides = {"with it": Setting("attention"), "without it": Setting("attention", encoding="none")}
    return [error_row(results, "A11", "Does attention need positional encoding?", sides, "without encoding")]


def _a12(results: Results) -> list[Row]:
    return [
        permuted_row(
            results,
            partial(Setting, "attention"),
            "Does a permutation that is fixed before training harm attention?",
            f"error after {results.longest} steps, in order / permuted",
        )
    ]


def permuted_row(results: Outcomes, setting: Callable[..., Setting], question: str, measured: str) -> Row:
    """Compare permuted tokens with tokens in order, for both encodings."""
    pairs = {
        str(encoding): [setting(encoding=encoding, permuted=permuted) for permuted in (False, True)]
        for encoding in ENCODINGS
    }
    found = {name: results.compare(permuted, ordered) for name, (ordered, permuted) in pairs.items()}
    absolute = {name: " and ".join(mean_words(results.errors(one)) for one in pair) for name, pair in pairs.items()}
    return Row.compared("A12", question, measured, found, "permuted", absolute)


def mean_words(errors: Sequence[float]) -> str:
    """Format the geometric mean of errors, whose ratio is the mean ratio."""
    return "diverged" if math.inf in errors else f"{statistics.geometric_mean(errors):.2g}"


def range_words(amounts: Sequence[Bounds]) -> str:
    """Format the range of amounts over the seeds."""
    low, high = min(one.low for one in amounts), max(one.high for one in amounts)
    return f"more than {low:.3g}" if high == math.inf else f"{low:.3g} to {high:.3g}"
