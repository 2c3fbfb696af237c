"""An entry of a study: a method in a setting, tuned on some seeds, trained and measured on others."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Annotated, Any, get_args

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bevreshape.errors import InputError
from bevreshape.experiments.encoder import SOURCE, Encoder, Part
from bevreshape.experiments.instruments import Examined, examine
from bevreshape.experiments.models import METHODS, Encoding, Query, ViewTransformer
from bevreshape.experiments.training import Recipe, train
from bevreshape.experiments.tuning import Halving, Tuned
from bevreshape.experiments.world import Batch, Draw, Pose, Stream, World, stack
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape

TRAINING, HELD_OUT, PERMUTATION = 1, 2, 3
"""Purposes of random numbers: the last word of a random key."""

EXAMINED = 6
"""Samples on which a trained method is examined."""

TUNING_SEED = 1_000_000
"""Seeds from this one on are only for tuning."""


@dataclass(frozen=True)
class Setting:
    """A method and its training data.

    Attributes:
        method: one of :data:`~bevreshape.experiments.models.METHODS`.
        pose: source of the pose.
        sigma_deg: standard deviation of yaw; half as much of pitch and roll.
        samples: number of training samples; ``None`` for new ones in every step.
        encoding: of positions, for an attention.
        permuted: tokens are permuted, in the same way for all samples of a seed.
        correlation_length: of the features; 0 is white noise.
        scale: rows and columns of features and of cells relative to 8×16 features and cells of 2 m.
        encoder: gives the features X, 8×16 of its own stride; ``None`` for random fields.
    """

    method: str
    pose: Pose = "unknown"
    sigma_deg: float = 0.0
    samples: int | None = None
    encoding: Encoding = "sinusoidal"
    permuted: bool = False
    correlation_length: float = 1.0
    scale: float = 1.0
    encoder: Encoder | None = None

    @property
    def world(self) -> World:
        """Return the world of the setting."""
        height, width, stride = round(8 * self.scale), round(16 * self.scale), 16 / self.scale
        source = FeatureShape(16, height, width, 1, round(stride), offset_px=(round(stride) - 1) / 2)
        if self.encoder is not None:
            source = SOURCE
        grid = BEVGrid((0.0, 16.0), (-16.0, 16.0), 2.0 / self.scale)
        return World(source, grid, self.correlation_length, self.sigma_deg, self.pose)

    @property
    def attends(self) -> bool:
        """Return whether the method is an attention, not an MLP."""
        return self.method not in ("mlp", "adaptive")

    @property
    def queries(self) -> tuple[Query, ...]:
        """Return the forms of Q of the method; an MLP has no Q and returns the first form."""
        return get_args(Query) if self.attends else ("projected",)

    def build(self, seeds: Sequence[int], forms: Sequence[Query] | None = None) -> ViewTransformer:
        """Build the method with one run per seed; ``forms`` gives the form of Q of each run of an attention."""
        given = {"encoding": self.encoding, "forms": forms} if self.attends else {}
        return METHODS[self.method](self.world, seeds, **given)

    @property
    def name(self) -> str:
        """Return a unique name for files and messages."""
        marks = [self.method, f"pose_{self.pose}", f"sigma{self.sigma_deg:g}", f"samples_{self.samples or 'new'}"]
        plain = Setting(self.method)
        marks += [
            f"{key}_{value}"
            for key, value in asdict(self).items()
            if key in ("encoding", "permuted", "correlation_length", "scale") and value != getattr(plain, key)
        ]
        return "-".join([*marks, *([self.encoder.name] if self.encoder else [])])


@dataclass(frozen=True)
class Budget:
    """The budget of every method.

    Attributes:
        steps: of training, ascending; each is a separate budget with its own recipe.
        batch: samples per step.
        rates: initial grid of learning rates.
        warmups: candidate steps of warm-up for an attention and an adaptive MLP.
        decays: candidate weight decays, likewise.
        queries: candidate forms of Q for an attention.
        tuning_seeds: number of seeds for tuning.
        held_out: samples per seed on which errors are measured.
    """

    steps: Annotated[tuple[Annotated[int, Ge(1), Le(100_000)], ...], Len(1)]
    batch: Annotated[int, Ge(1), Le(1024)]
    rates: Annotated[tuple[Annotated[float, Gt(0), Le(10)], ...], Len(1)]
    warmups: Annotated[tuple[Annotated[int, Ge(0), Le(100_000)], ...], Len(1)]
    decays: Annotated[tuple[Annotated[float, Ge(0), Le(10)], ...], Len(1)]
    queries: Annotated[tuple[Query, ...], Len(1)]
    tuning_seeds: Annotated[int, Ge(1), Le(100)]
    held_out: Annotated[int, Ge(EXAMINED), Le(100_000)]

    def __post_init__(self) -> None:
        if sorted(set(self.steps)) != list(self.steps):
            raise InputError(f"plan: budget.steps={list(self.steps)} must be different numbers in ascending order")

    def candidates(self, setting: Setting) -> list[Recipe]:
        """Return the initial recipes; an MLP has no Q, and one that does not use the pose tunes only the rate."""
        if setting.method == "mlp":
            return [Recipe(rate) for rate in self.rates]
        queries = self.queries if setting.attends else ("projected",)
        return [Recipe(*chosen) for chosen in product(self.rates, self.warmups, self.decays, queries)]


@dataclass(frozen=True)
class Curve:
    """Errors of one recipe.

    Attributes:
        recipe: of the training.
        steps: after which the error was measured.
        errors: at each of these steps, one per seed; infinite if the run diverged.
    """

    recipe: Recipe
    steps: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """Result of an entry.

    Attributes:
        setting: of the entry.
        seeds: of the runs.
        curves: one for each recipe that is best for some budget, up to the longest such budget.
        best: index of the best curve, by budget.
        examined: one per seed, of the longest run; only for a fixed camera, tokens in order and features of scale 1.
    """

    setting: Setting
    seeds: tuple[int, ...]
    curves: tuple[Curve, ...]
    best: dict[int, int]
    examined: tuple[Examined, ...] = ()

    def errors(self, steps: int) -> tuple[float, ...]:
        """Return the error of each seed after ``steps`` steps, one of the budgets."""
        curve = self.curves[self.best[steps]]
        return curve.errors[curve.steps.index(steps)]


def tune(setting: Setting, budget: Budget) -> Tuned:
    """Find the best recipe for every budget."""
    seeds = range(TUNING_SEED, TUNING_SEED + budget.tuning_seeds)
    held_out = held_out_of(setting, seeds, budget.held_out)

    def measure(recipes: Sequence[Recipe], steps: int) -> Tensor:
        return train_runs(setting, seeds, recipes, held_out, budget.batch, (steps,))[0][..., 0].mT

    return Halving(budget.candidates(setting), measure).run(budget.steps)


def judge(setting: Setting, tuned: Tuned, budget: Budget, seeds: Sequence[int], at: Sequence[int] = ()) -> Outcome:
    """Train with the best recipes, each up to the longest budget for which it is best, and measure.

    Args:
        setting: method and training data.
        tuned: recipes of this or a nearby setting.
        budget: the numbers of steps.
        seeds: different from those of tuning.
        at: further steps at which the error is measured.
    """
    recipes = list(dict.fromkeys(tuned.best[steps] for steps in budget.steps))
    held_out = held_out_of(setting, seeds, budget.held_out)
    curves: list[Curve] = []
    examined: tuple[Examined, ...] = ()
    for recipe in recipes:
        longest = max(steps for steps in budget.steps if tuned.best[steps] == recipe)
        looked = sorted({*(step for step in (*at, *budget.steps) if step <= longest)})
        found, model = train_runs(setting, seeds, [recipe], held_out, budget.batch, looked)  # seeds, 1, steps
        found = found[:, 0].nan_to_num(float("inf"), float("inf"))
        curves.append(Curve(recipe, tuple(looked), tuple(map(tuple, found.mT.tolist()))))
        plain = setting.sigma_deg == 0 and setting.samples is None and not setting.permuted and setting.scale == 1
        if plain and longest == budget.steps[-1]:
            examined = tuple(examine(model, Batch(*(part[:, :EXAMINED] for part in held_out))))
    best = {steps: recipes.index(tuned.best[steps]) for steps in budget.steps}
    return Outcome(setting, tuple(seeds), tuple(curves), best, examined)


def held_out_of(setting: Setting, seeds: Sequence[int], count: int) -> Batch:
    """Draw samples that are not used in training."""
    every = replace(setting, samples=None)
    return stack([stream_of(every, seed, HELD_OUT).next(count) for seed in seeds])


def cost(setting: Setting, query: Query = "projected", batch: int = 1) -> dict[str, int]:
    """Return the result of :func:`count` for a setting; FLOPs and bytes are those of one sample of a batch.

    What does not depend on the sample, such as the product of positional encodings and their matrix, is computed once
    for a batch. An attention with direct Q has no Wq and no product with it.
    """
    found = count(setting.build([0], [query]), stream_of(setting, 0, TRAINING).next(batch))
    return found | {what: round(found[what] / batch) for what in ("flops", "bytes")}


def count(model: ViewTransformer, batch: Batch) -> dict[str, int]:
    """Count parameters, FLOPs of a forward pass (two per multiply-add), and bytes saved for the backward pass.

    Args:
        model: one run.
        batch: its samples.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(batch)
    memory = sum(size for where, size in kept.items() if where not in own) + output.nbytes
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops(), "bytes": memory}


class _PermutedStream(Stream):
    """A stream with permuted tokens, in the same order for all samples."""

    def __init__(self, world: World, key: Sequence[int], samples: int | None, draw: Draw | None, order: Tensor) -> None:
        self.permutation = order
        super().__init__(world, key, samples, draw)

    def _new(self, count: int) -> Batch:
        batch = super()._new(count)
        return batch._replace(x=batch.x[:, :, self.permutation])


def stream_of(setting: Setting, seed: int, purpose: int) -> Stream:
    """Return the stream of a seed for a purpose."""
    world = setting.world
    draw = None if setting.encoder is None else partial(setting.encoder.draw, _part(seed, purpose))
    if not setting.permuted:
        return Stream(world, (seed, purpose), setting.samples, draw)
    return _PermutedStream(world, (seed, purpose), setting.samples, draw, _order_of(setting, seed))


def _order_of(setting: Setting, seed: int) -> Tensor:
    """Return the order of a seed's permuted tokens."""
    generator = torch.Generator().manual_seed(seed * 10 + PERMUTATION)
    return torch.randperm(setting.world.source.tokens, generator=generator)


def _part(seed: int, purpose: int) -> Part:
    if seed >= TUNING_SEED:
        return "tune" if purpose == TRAINING else "choose"
    return "train" if purpose == TRAINING else "test"


def train_runs(
    setting: Setting, seeds: Sequence[int], recipes: Sequence[Recipe], held_out: Batch, batch: int, at: Sequence[int]
) -> tuple[Tensor, ViewTransformer]:
    """Train; return errors (seeds, recipes, steps) and the model."""
    own = [recipe for _ in seeds for recipe in recipes]
    model = setting.build([seed for seed in seeds for _ in recipes], [recipe.query for recipe in own])
    if setting.permuted:
        model.permute([_order_of(setting, seed) for seed in seeds for _ in recipes])
    streams = list(map(partial(stream_of, setting, purpose=TRAINING), seeds))
    found = train(model, streams, own, held_out, batch=batch, at=at)
    return found.view(len(seeds), len(recipes), len(at)), model


def to_plain(outcome: Outcome) -> dict[str, Any]:
    """Return plain values for a JSON file; an infinite error becomes null."""
    return {
        "seeds": list(outcome.seeds),
        "curves": [
            {
                "recipe": asdict(curve.recipe),
                "steps": list(curve.steps),
                "errors": [[float(f"{e:.4g}") if e < float("inf") else None for e in line] for line in curve.errors],
            }
            for curve in outcome.curves
        ],
        "best": {str(steps): number for steps, number in outcome.best.items()},
        "examined": [one.to_plain() for one in outcome.examined],
    }


def from_plain(setting: Setting, plain: dict[str, Any]) -> Outcome:
    """Build the outcome from what :func:`to_plain` returns."""
    curves = [
        Curve(
            Recipe(**curve["recipe"]),
            tuple(curve["steps"]),
            tuple(tuple(float("inf") if e is None else e for e in line) for line in curve["errors"]),
        )
        for curve in plain["curves"]
    ]
    best = {int(steps): number for steps, number in plain["best"].items()}
    return Outcome(
        setting, tuple(plain["seeds"]), tuple(curves), best, tuple(Examined.from_plain(e) for e in plain["examined"])
    )
