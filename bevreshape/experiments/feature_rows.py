"""Rows of the level of encoder features."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from bevreshape.experiments.encoder import Encoder
from bevreshape.experiments.feature_plan import FeaturesPlan
from bevreshape.experiments.outcomes import NotDoneError, Outcomes, bounded, paired
from bevreshape.experiments.plan import THRESHOLDS
from bevreshape.experiments.row import Row, available, dependence, judged, spread_words
from bevreshape.experiments.rows import error_row, mean_words, permuted_row, range_words
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.tensor_results import TO

WHERE = "features of resnet18 (random weights), fixed camera"


@dataclass(frozen=True)
class WithoutLooking:
    """What is known of an encoder's features without looking at the image.

    Attributes:
        row: fraction of the variance of a feature's row that is linear in its channels.
        col: likewise of its column.
        constant: error of the best map that does not look at the image.
    """

    row: float
    col: float
    constant: float


@dataclass(frozen=True)
class FeatureResults(Outcomes[FeaturesPlan]):
    """Results of the level.

    Attributes:
        blind: what is known without looking, by encoder.
    """

    blind: Mapping[Encoder, WithoutLooking]

    def without_looking(self, encoder: Encoder) -> WithoutLooking:
        """Return the result of one encoder.

        Raises:
            NotDoneError: when it is not done.
        """
        if encoder not in self.blind:
            raise NotDoneError(encoder.name)
        return self.blind[encoder]

    def mean(self, setting: Setting, what: str) -> float:
        """Return the mean of a field of :class:`~bevreshape.experiments.instruments.Examined`, over the seeds."""
        return statistics.mean(getattr(one, what) for one in self.outcome(setting).examined)


def rows(results: FeatureResults) -> list[Row]:
    """Return the rows of the level whose entries are done."""
    makers = (_control, _a7, _a8_error, _a8_delay, _a8_content, _a11_need, _a11_padding, _a11_place, _a12)
    return available(*(partial(make, results) for make in makers))


def _control(results: FeatureResults) -> list[Row]:
    return [
        error_row(
            results, "control",
            "Encoder features: tokens and the columns of W are permuted alike before training: the same MLP",
            {name: results.plan.setting("mlp", permuted=name == "permuted") for name in ("in order", "permuted")},
            "permuted", results.plan.budget.steps[0],  # before the differences in rounding have grown
            f"{WHERE}: ",
        )
    ]  # fmt: skip


def _a7(results: FeatureResults) -> list[Row]:
    spreads = {
        name: [results.mean(setting, f"spread_of_{what}") for what in ("a", "jacobian")]
        for name, setting in _pair(results).items()
    }
    return [
        Row(
            "A7", "Encoder features: is the MLP's W fixed after training, and does the attention's change with X?",
            f"{WHERE}: spread over images of the parameters W, of A, and of the Jacobian, relative to their mean",
            {name: spread_words(*pair) for name, pair in spreads.items()},
            dependence(spreads["attention"][0]),
        )
    ]  # fmt: skip


def _a8_error(results: FeatureResults) -> list[Row]:
    pair = _pair(results)
    found = results.compare(pair["attention"], pair["MLP"])
    return [
        Row(
            "A8", "Encoder features: which comes nearer to the homography?",
            f"{WHERE}: error after {results.longest} steps",
            {"MLP / attention": str(found)}, judged("attention", found.verdict()),
            absolute={name: mean_words(results.errors(setting)) for name, setting in pair.items()},
        )
    ]  # fmt: skip


def _a8_delay(results: FeatureResults) -> list[Row]:
    pair = _pair(results)
    steps = {name: [results.steps_to(setting, to) for to in THRESHOLDS] for name, setting in pair.items()}
    compared = {
        f"{1 - to:.0%}": paired(attention, mlp)
        for to, attention, mlp in zip(THRESHOLDS, steps["attention"], steps["MLP"], strict=True)
    }
    return [
        Row.compared(
            "A8", "Encoder features: which converges sooner?",
            f"{WHERE}: steps to each share of the variance, MLP / attention",
            compared, "attention",
            {name: ", ".join(map(range_words, found)) for name, found in steps.items()},
        )
    ]  # fmt: skip


def _a8_content(results: FeatureResults) -> list[Row]:
    content, place = (results.steps_to(results.plan.setting(method), TO) for method in ("attention", "positional"))
    found = paired(content, place)
    return [
        Row(
            "A8", "Encoder features: how many steps does content in the keys cost?",
            f"{WHERE}: steps to {1 - TO:.0%} of the variance", {"keys of place / of content and place": str(found)},
            judged("with content", found.verdict()),
            absolute={"keys of place": range_words(place), "of content and place": range_words(content)},
        )
    ]  # fmt: skip


def _a11_need(results: FeatureResults) -> list[Row]:
    plan = results.plan
    return [
        error_row(
            results, "A11",
            "Encoder features: does attention need positional encoding even where zero padding leaks position?",
            {"with it": plan.setting("attention"), "without it": plan.setting("attention", encoding="none")},
            "without encoding", where=f"{WHERE}: ",
        )
    ]  # fmt: skip


def _a11_padding(results: FeatureResults) -> list[Row]:
    errors = {
        encoder: results.errors(Setting("attention", encoding="none", encoder=encoder))
        for encoder in results.plan.encoders()
    }
    value = {
        _called(encoder): f"{mean_words(found)}, image-blind {results.without_looking(encoder).constant:.2g}"
        for encoder, found in errors.items()
    }
    verdicts = []
    for encoder in results.plan.encoders():
        if encoder.padding != "zeros":
            zeros = results.plan.encoder("zeros", encoder.content)
            own, other = (
                bounded([error / results.without_looking(one).constant for error in errors[one]])
                for one in (zeros, encoder)
            )
            verdicts.append(f"{encoder.content}, zeros against {encoder.padding}: {paired(own, other).verdict()}")
    return [
        Row(
            "A11", "Encoder features: does zero padding stand in for positional encoding?",
            f"{WHERE}: error after {results.longest} steps of an attention without positional encoding, relative to "
            "the variance of each network’s own target; the verdict is on it relative to that of the best map that "
            "is blind to the image", value, "; ".join(verdicts),
        )
    ]  # fmt: skip


def _a11_place(results: FeatureResults) -> list[Row]:
    found = {encoder: results.without_looking(encoder) for encoder in results.plan.encoders()}
    return [
        Row(
            "A11", "Encoder features: how much of its position does a feature reveal?",
            "share of the variance of row and column that is linear in a feature's channels; circular padding on noise "
            "reveals nothing",
            {_called(encoder): f"row {one.row:.2f}, column {one.col:.2f}" for encoder, one in found.items()},
            "measured",
        )
    ]  # fmt: skip


def _a12(results: FeatureResults) -> list[Row]:
    return [
        permuted_row(
            results, partial(results.plan.setting, "attention"),
            "Encoder features: does a permutation that is fixed before training harm attention?",
            f"{WHERE}: error after {results.longest} steps, in order / permuted",
        )
    ]  # fmt: skip


def _pair(results: FeatureResults) -> dict[str, Setting]:
    return {"MLP": results.plan.setting("mlp"), "attention": results.plan.setting("attention")}


def _called(encoder: Encoder) -> str:
    return f"{encoder.content}, {encoder.padding}"
