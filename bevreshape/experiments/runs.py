"""One entry of a study: a method in a setting, tuned on seeds of its own, trained and measured on others."""

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
"""Last word of a random key: what its numbers are for."""

EXAMINED = 6
"""Samples that a trained method is examined with."""

TUNING_SEED = 1_000_000
"""Seeds from here on are for tuning alone."""


@dataclass(frozen=True)
class Setting:
    """What is trained on what.

    Attributes:
        method: one of :data:`~bevreshape.experiments.models.METHODS`.
        pose: where it can be known from.
        sigma_deg: standard deviation of yaw; half as much of pitch and roll.
        samples: to train on; ``None`` for new ones in every step.
        encoding: of places, of an attention.
        permuted: tokens come in another order, the same for all samples of a seed.
        correlation_length: of the features; 0 is white noise.
        scale: rows and columns of features and of cells relative to 8×16 features and cells of 2 m.
        encoder: whose features X is; random fields where there is none. The 8×16 features are of another stride, then.
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
        """Where it happens."""
        height, width, stride = round(8 * self.scale), round(16 * self.scale), 16 / self.scale
        source = FeatureShape(16, height, width, 1, round(stride), offset_px=(round(stride) - 1) / 2)
        if self.encoder is not None:
            source = SOURCE
        grid = BEVGrid((0.0, 16.0), (-16.0, 16.0), 2.0 / self.scale)
        return World(source, grid, self.correlation_length, self.sigma_deg, self.pose)

    @property
    def attends(self) -> bool:
        """Whether the method is an attention, and not an MLP."""
        return self.method not in ("mlp", "adaptive")

    @property
    def queries(self) -> tuple[Query, ...]:
        """Forms of Q that there are of it; an MLP has no Q, and counts as if it had the first one."""
        return get_args(Query) if self.attends else ("projected",)

    def build(self, seeds: Sequence[int], forms: Sequence[Query] | None = None) -> ViewTransformer:
        """The method, one run a seed, of an attention with these forms of Q."""
        given = {"encoding": self.encoding, "forms": forms} if self.attends else {}
        return METHODS[self.method](self.world, seeds, **given)

    @property
    def name(self) -> str:
        """What tells it from others, for file names and messages."""
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
    """What everyone gets.

    Attributes:
        steps: of training, ascending; each is a budget of its own, with a recipe of its own.
        batch: samples a step.
        rates: of learning, to begin with.
        warmups: steps of warm-up that an attention and an adaptive MLP may choose from.
        decays: weight decays, likewise.
        queries: forms of Q that an attention may choose from.
        tuning_seeds: how many seeds recipes are chosen on.
        held_out: samples that errors are measured on, of every seed.
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
        """Recipes to begin with; an MLP has no Q, and one that does not follow the pose a rate alone to choose."""
        if setting.method == "mlp":
            return [Recipe(rate) for rate in self.rates]
        queries = self.queries if setting.attends else ("projected",)
        return [Recipe(*chosen) for chosen in product(self.rates, self.warmups, self.decays, queries)]


@dataclass(frozen=True)
class Curve:
    """What one recipe came to.

    Attributes:
        recipe: how it was trained.
        steps: after which the error was measured.
        errors: at each of them, one a seed; infinite where it diverged.
    """

    recipe: Recipe
    steps: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """What an entry measured.

    Attributes:
        setting: what was trained on what.
        seeds: of it.
        curves: one for every recipe that is best for some number of steps, as long as it is.
        best: which curve that is, by number of steps.
        examined: of a fixed camera, tokens in order and features of scale 1, what the run of most steps has learned,
            one a seed.
    """

    setting: Setting
    seeds: tuple[int, ...]
    curves: tuple[Curve, ...]
    best: dict[int, int]
    examined: tuple[Examined, ...] = ()

    def errors(self, steps: int) -> tuple[float, ...]:
        """After so many steps, one of the budgets, one a seed."""
        curve = self.curves[self.best[steps]]
        return curve.errors[curve.steps.index(steps)]


def tune(setting: Setting, budget: Budget) -> Tuned:
    """The best recipe for every number of steps."""
    seeds = range(TUNING_SEED, TUNING_SEED + budget.tuning_seeds)
    held_out = held_out_of(setting, seeds, budget.held_out)

    def measure(recipes: Sequence[Recipe], steps: int) -> Tensor:
        return _train(setting, seeds, recipes, held_out, budget.batch, (steps,))[0][..., 0].mT

    return Halving(budget.candidates(setting), measure).run(budget.steps)


def judge(setting: Setting, tuned: Tuned, budget: Budget, seeds: Sequence[int], at: Sequence[int] = ()) -> Outcome:
    """Train with the best recipes, each as long as it is the best for, and measure.

    Args:
        setting: what is trained on what.
        tuned: its recipes, perhaps of a setting near it.
        budget: the numbers of steps.
        seeds: other ones than those of tuning.
        at: further steps at which the error is measured.
    """
    recipes = list(dict.fromkeys(tuned.best[steps] for steps in budget.steps))
    held_out = held_out_of(setting, seeds, budget.held_out)
    curves: list[Curve] = []
    examined: tuple[Examined, ...] = ()
    for recipe in recipes:
        longest = max(steps for steps in budget.steps if tuned.best[steps] == recipe)
        looked = sorted({*(step for step in (*at, *budget.steps) if step <= longest)})
        found, model = _train(setting, seeds, [recipe], held_out, budget.batch, looked)  # seeds, 1, steps
        found = found[:, 0].nan_to_num(float("inf"), float("inf"))
        curves.append(Curve(recipe, tuple(looked), tuple(map(tuple, found.mT.tolist()))))
        plain = setting.sigma_deg == 0 and setting.samples is None and not setting.permuted and setting.scale == 1
        if plain and longest == budget.steps[-1]:
            examined = tuple(examine(model, Batch(*(part[:, :EXAMINED] for part in held_out))))
    best = {steps: recipes.index(tuned.best[steps]) for steps in budget.steps}
    return Outcome(setting, tuple(seeds), tuple(curves), best, examined)


def held_out_of(setting: Setting, seeds: Sequence[int], count: int) -> Batch:
    """Samples that nothing is trained on."""
    every = replace(setting, samples=None)
    return stack([stream_of(every, seed, HELD_OUT).next(count) for seed in seeds])


def cost(setting: Setting, query: Query = "projected") -> dict[str, int]:
    """What :func:`count` finds in a setting, of an attention with this form of Q: direct, it has no Wq, neither its
    parameters nor its product."""
    return count(setting.build([0], [query]), stream_of(setting, 0, TRAINING).next(1))


def count(model: ViewTransformer, batch: Batch) -> dict[str, int]:
    """Parameters, FLOPs of a forward pass (a multiply-add counted as two), and bytes kept for the backward pass.

    Args:
        model: one run.
        batch: one sample.
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
    """A stream whose tokens come in another order, the same for all samples."""

    def __init__(self, world: World, key: Sequence[int], samples: int | None, draw: Draw | None, order: Tensor) -> None:
        self.permutation = order
        super().__init__(world, key, samples, draw)

    def _new(self, count: int) -> Batch:
        batch = super()._new(count)
        return batch._replace(x=batch.x[:, :, self.permutation])


def stream_of(setting: Setting, seed: int, purpose: int) -> Stream:
    """Samples of a seed for a purpose."""
    world = setting.world
    draw = None if setting.encoder is None else partial(setting.encoder.draw, _part(seed, purpose))
    if not setting.permuted:
        return Stream(world, (seed, purpose), setting.samples, draw)
    generator = torch.Generator().manual_seed(seed * 10 + PERMUTATION)
    order = torch.randperm(world.source.tokens, generator=generator)
    return _PermutedStream(world, (seed, purpose), setting.samples, draw, order)


def _part(seed: int, purpose: int) -> Part:
    if seed >= TUNING_SEED:
        return "tune" if purpose == TRAINING else "choose"
    return "train" if purpose == TRAINING else "test"


def _train(
    setting: Setting, seeds: Sequence[int], recipes: Sequence[Recipe], held_out: Batch, batch: int, at: Sequence[int]
) -> tuple[Tensor, ViewTransformer]:
    """Errors (seeds, recipes, steps), and what was trained."""
    own = [recipe for _ in seeds for recipe in recipes]
    model = setting.build([seed for seed in seeds for _ in recipes], [recipe.query for recipe in own])
    streams = list(map(partial(stream_of, setting, purpose=TRAINING), seeds))
    found = train(model, streams, own, held_out, batch=batch, at=at)
    return found.view(len(seeds), len(recipes), len(at)), model


def to_plain(outcome: Outcome) -> dict[str, Any]:
    """For a JSON file; an error that is infinite is null."""
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
    """The inverse of :func:`to_plain`."""
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
