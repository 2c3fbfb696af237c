"""From the outcomes on encoder features to rows."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from bevreshape.experiments.encoder import Encoder
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.outcomes import NotDoneError, Outcomes, bounded, paired
from bevreshape.experiments.plan import THRESHOLDS
from bevreshape.experiments.rows import TO, Row, available
from bevreshape.experiments.runs import Setting

WHERE = "features of resnet18 (random weights), fixed camera"


@dataclass(frozen=True)
class FeatureResults(Outcomes[FeaturesPlan]):
    """What the level has found.

    Attributes:
        places: how much of a feature's row and column can be read from its channels, by encoder.
    """

    places: Mapping[Encoder, tuple[float, float]]

    def place(self, encoder: Encoder) -> tuple[float, float]:
        """Of one of them.

        Raises:
            NotDoneError: when it is not done.
        """
        if encoder not in self.places:
            raise NotDoneError(encoder.name)
        return self.places[encoder]

    def mean(self, setting: Setting, what: str) -> float:
        """Of a figure of :class:`~bevreshape.experiments.instruments.Examined`, over the seeds."""
        return statistics.mean(getattr(one, what) for one in self.outcome(setting).examined)

    def error(self, setting: Setting) -> str:
        """After the largest budget, the geometric mean over the seeds."""
        return f"{statistics.geometric_mean(self.errors(setting)):.2g}"


def rows(results: FeatureResults) -> list[Row]:
    """All of the level whose entries are done."""
    makers = (_a7, _a8_error, _a8_delay, _a8_content, _a11_need, _a11_padding, _a11_place, _a12)
    return available(*(partial(make, results) for make in makers))


def _a7(results: FeatureResults) -> list[Row]:
    found = {
        name: f"W 0, A {results.mean(setting, 'spread_of_a'):.2g}, Jacobian {results.mean(setting, 'spread_of_jacobian'):.2g}"
        for name, setting in _pair(results).items()
    }
    return [
        Row(
            "A7", "Encoder features: the MLP's W is fixed after training, the attention's changes with X",
            f"{WHERE}: spread over images of the parameters W, of A, and of the Jacobian, relative to their mean", found, "measured",
        )
    ]  # fmt: skip


def _a8_error(results: FeatureResults) -> list[Row]:
    pair = _pair(results)
    found = results.compare(pair["attention"], pair["MLP"])
    errors = {name: results.error(setting) for name, setting in pair.items()}
    return [
        Row(
            "A8", "Encoder features: who comes nearer to the homography?",
            f"{WHERE}: error after {results.longest} steps; ratio of MLP to attention", {**errors, "ratio": str(found)},
            f"attention {found.verdict()}",
        )
    ]  # fmt: skip


def _a8_delay(results: FeatureResults) -> list[Row]:
    pair = _pair(results)
    compared = {
        f"{1 - to:.0%}": paired(results.steps_to(pair["attention"], to), results.steps_to(pair["MLP"], to))
        for to in THRESHOLDS
    }
    return [
        Row(
            "A8", "Encoder features: attention converges later",
            f"{WHERE}: steps to so much of what can be had, MLP relative to attention",
            {share: str(found) for share, found in compared.items()},
            "; ".join(f"{share}: attention {found.verdict()}" for share, found in compared.items()),
        )
    ]  # fmt: skip


def _a8_content(results: FeatureResults) -> list[Row]:
    content, place = (results.steps_to(results.plan.setting(method), TO) for method in ("attention", "positional"))
    found = paired(content, place)
    return [
        Row(
            "A8", "Encoder features: how much of the delay is content in the keys?",
            f"{WHERE}: steps to {1 - TO:.0%} with keys of place alone, relative to keys of content and place", {"": str(found)},
            f"with content {found.verdict()}",
        )
    ]  # fmt: skip


def _a11_need(results: FeatureResults) -> list[Row]:
    found = results.compare(results.plan.setting("attention", encoding="none"), results.plan.setting("attention"))
    return [
        Row(
            "A11", "Encoder features: attention needs positional encoding even where zero padding leaks position",
            f"{WHERE}: error after {results.longest} steps with it, relative to without it", {"": str(found)},
            f"without encoding {found.verdict()}",
        )
    ]  # fmt: skip


def _a11_padding(results: FeatureResults) -> list[Row]:
    errors = {
        encoder: results.errors(Setting("attention", encoding="none", encoder=encoder))
        for encoder in results.plan.encoders()
    }
    value = {_called(encoder): f"{statistics.geometric_mean(found):.2g}" for encoder, found in errors.items()}
    verdicts = []
    for encoder in results.plan.encoders():
        if encoder.padding != "zeros":
            zeros = results.plan.encoder("zeros", encoder.content)
            found = paired(bounded(errors[zeros]), bounded(errors[encoder]))
            verdicts.append(f"{encoder.content}, zeros against {encoder.padding}: {found.verdict()}")
    return [
        Row(
            "A11", "Encoder features: does zero padding stand in for positional encoding?",
            f"{WHERE}: error after {results.longest} steps of an attention without positional encoding", value, "; ".join(verdicts),
        )
    ]  # fmt: skip


def _a11_place(results: FeatureResults) -> list[Row]:
    found = {encoder: results.place(encoder) for encoder in results.plan.encoders()}
    return [
        Row(
            "A11", "Encoder features: how much of its place does a feature tell?",
            "share of the variance of row and column that is linear in a feature's channels; circular padding on noise tells nothing",
            {_called(encoder): f"row {row:.2f}, column {col:.2f}" for encoder, (row, col) in found.items()}, "measured",
        )
    ]  # fmt: skip


def _a12(results: FeatureResults) -> list[Row]:
    found = {}
    for encoding in ("sinusoidal", "learned"):
        ordered, permuted = (
            results.plan.setting("attention", encoding=encoding, permuted=permuted) for permuted in (False, True)
        )
        found[encoding] = results.compare(permuted, ordered)
    return [
        Row(
            "A12", "Encoder features: a fixed permutation that is there in training already harms an attention",
            f"{WHERE}: error after {results.longest} steps in order, relative to permuted",
            {name: str(one) for name, one in found.items()},
            "; ".join(f"{name}: permuted {one.verdict()}" for name, one in found.items()),
        )
    ]  # fmt: skip


def _pair(results: FeatureResults) -> dict[str, Setting]:
    return {"MLP": results.plan.setting("mlp"), "attention": results.plan.setting("attention")}


def _called(encoder: Encoder) -> str:
    return f"{encoder.content}, {encoder.padding}"
