"""Cost of a larger map for an MLP and an attention: error, samples, parameters and memory, measured and computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial

from bevreshape.experiments.intervals import ALPHA, Bounds, exponent, interval
from bevreshape.experiments.models import METHODS
from bevreshape.experiments.row import Row, available
from bevreshape.experiments.rows import mean_words, range_words
from bevreshape.experiments.runs import Setting, count
from bevreshape.experiments.tensor_results import TO, Results
from bevreshape.experiments.world import Stream, World
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape

PAIR: Mapping[str, str] = {"MLP": "mlp", "attention": "attention"}


@dataclass(frozen=True)
class Size:
    """Size of a map.

    Attributes:
        tokens: of all cameras.
        cells: on the ground.
    """

    tokens: int
    cells: int


NUSCENES = Size(6 * 28 * 60, 200 * 200)
"""Six cameras of 448×960 pixels at a stride of 16, 100 m × 100 m in cells of half a metre."""


CORNERS = (((8, 16), 2.0), ((8, 16), 1.0)), (((16, 32), 2.0), ((16, 32), 1.0))
"""Shapes (rows, columns) of features and cell lengths in metres, from which :func:`on_paper` extrapolates."""


def rows(results: Results) -> list[Row]:
    """Return the rows on capacity whose entries are done."""
    return available(*(partial(make, results) for make in (_counted, _paper, _error, _samples)))


def on_paper(method: str, size: Size) -> dict[str, int]:
    """Return parameters, FLOPs and bytes of a method at any size, exactly as by ``bevreshape.experiments.runs.count``.

    Each is linear in tokens and in cells, ``a·t·q + b·t + c·q + d``, so four small sizes determine it.
    """
    (small, more_cells), (more_tokens, large) = ((_counts(method, *of) for of in line) for line in CORNERS)
    t, q = (
        Fraction(wanted - low, high - low)
        for wanted, low, high in (
            (size.tokens, small[0].tokens, large[0].tokens),
            (size.cells, small[0].cells, large[0].cells),
        )
    )
    found = {}
    for what in small[1]:
        corner = [one[1][what] for one in (small, more_cells, more_tokens, large)]
        value = (1 - t) * ((1 - q) * corner[0] + q * corner[1]) + t * ((1 - q) * corner[2] + q * corner[3])
        assert value.denominator == 1  # otherwise it is not of that form
        found[what] = int(value)
    return found


@cache
def _counts(method: str, shape: tuple[int, int], cell_m: float) -> tuple[Size, dict[str, int]]:
    stride = 128 // shape[0]
    source = FeatureShape(16, *shape, 1, stride, offset_px=(stride - 1) / 2)
    world = World(source, BEVGrid((0.0, 16.0), (-16.0, 16.0), cell_m))
    size = Size(source.tokens, len(world.cells))
    return size, count(METHODS[method](world, [0]), Stream(world, (0,)).next(1))


def samples_for_w(size: Size, channels: int) -> float:
    """Return the samples n that give an MLP as many equations as unknowns (W, read-out): ``n·c·q = q·t + c²``."""
    return size.tokens / channels + channels / size.cells


def _counted(results: Results) -> list[Row]:
    scales = results.plan.scales
    counts = {
        name: [results.costs[setting, results.query(setting)] for setting in settings]
        for name, settings in (
            (name, [Setting(method, scale=scale) for scale in scales]) for name, method in PAIR.items()
        )
    }
    return [
        Row(
            "A8", "Capacity: parameters and memory",
            f"exponents of growth with features times cells, from {_sizes(results)}; bytes kept for the backward pass "
            "of a sample; Q of the form that was chosen: direct, it has no Wq",
            {
                what: ", ".join(
                    f"{name} {exponent([scale**4 for scale in scales], [float(one[what]) for one in found]).high:.2f}"
                    for name, found in counts.items()
                )
                for what in ("parameters", "bytes")
            },
            "measured",
            absolute={
                name: "; ".join(f"{what} {', '.join(f'{one[what]:,}' for one in found)}" for what in ("parameters",
                "bytes"))
                for name, found in counts.items()
            },
        )
    ]  # fmt: skip


def _paper(results: Results) -> list[Row]:
    found = {name: on_paper(method, NUSCENES) for name, method in PAIR.items()}
    channels = Setting("mlp").world.source.channels
    return [
        Row(
            "A8", "Capacity on paper: six cameras of nuScenes",
            f"{NUSCENES.tokens:,} features of {channels} channels, {NUSCENES.cells:,} cells, every cell may use every "
            "feature; Q projected, as in the article: parameters; kept for the backward pass of a sample; a forward "
            "pass of it",
            {
                name: f"{of['parameters'] / 1e6:,.3g} million; {of['bytes'] / 2**30:.2g} GiB; {of['flops'] / 1e9:,.3g} "
                      f"GFLOPs"
                for name, of in found.items()
            },
            f"the MLP has as many equations as unknowns from {math.ceil(samples_for_w(NUSCENES, channels))} samples on",
        )
    ]  # fmt: skip


def _error(results: Results) -> list[Row]:
    settings = {
        f"scale {scale:g}": {name: Setting(method, scale=scale) for name, method in PAIR.items()}
        for scale in results.plan.scales
    }
    found = {name: results.compare(pair["attention"], pair["MLP"]) for name, pair in settings.items()}
    return [
        Row.compared(
            "A8", "Capacity: error on larger maps",
            f"error after {results.longest} steps of new samples, MLP / attention, at {_sizes(results)}",
            found, "attention",
            {
                name: ", ".join(mean_words(results.errors(pair[name])) for pair in settings.values()) for name in PAIR
            },
        )
    ]  # fmt: skip


def _samples(results: Results) -> list[Row]:
    scales = results.plan.scales
    worlds = [Setting("mlp", scale=scale).world for scale in scales]
    tokens = [float(world.source.tokens) for world in worlds]
    found = {name: [results.samples_at(method, TO, scale) for scale in scales] for name, method in PAIR.items()}
    theory = [samples_for_w(Size(world.source.tokens, len(world.cells)), world.source.channels) for world in worlds]
    return [
        Row(
            "A8", "Capacity: samples needed on larger maps",
            f"exponent e of samples to {1 - TO:.0%} ∝ featuresᵉ, at {_sizes(results)}; n·c ≥ h·w lets expect 1 of the "
            "MLP",
            {
                # the scale of a primary row has more seeds
                name: _words([exponent(tokens, amounts) for amounts in zip(*by_scale, strict=False)])
                for name, by_scale in found.items()
            },
            "measured",
            absolute={
                **{name: ", ".join(map(range_words, by_scale)) for name, by_scale in found.items()},
                "unknowns / equations of the MLP": ", ".join(f"{one:.3g}" for one in theory),
            },
        )
    ]  # fmt: skip


def _words(exponents: list[Bounds]) -> str:
    """Format the mean and the interval over the seeds."""
    mean, low, high = interval(exponents, ALPHA)
    if math.isinf(low) or math.isinf(high):
        return "not reached everywhere"
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _sizes(results: Results) -> str:
    worlds = [Setting("mlp", scale=scale).world for scale in results.plan.scales]
    return ", ".join(f"{world.source.height}×{world.source.width} → {len(world.cells)}" for world in worlds)
