"""Training of many runs side by side, each with a learning rate, a warm-up and a weight decay of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.experiments.models import Query, ViewTransformer
from bevreshape.experiments.world import Batch, Stream, stack
from bevreshape.ops.internals import lerp_all_


@dataclass(frozen=True)
class Recipe:
    """How one run is trained: AdamW (Loshchilov and Hutter 2019) at a constant rate after a linear warm-up.

    A rate that falls to 0 over the last 40 or 80 % of the steps made both sides worse or equal to the running average
    of a constant one, so there is none to choose. The form of Q is: no single one is fair in all settings, see
    :data:`~bevreshape.experiments.models.Query`.

    Attributes:
        rate: of learning.
        warmup: steps in which the rate rises from 0.
        decay: of weights, decoupled, per step and rate.
        query: form of Q, of an attention.
    """

    rate: float
    warmup: int = 0
    decay: float = 0.0
    query: Query = "projected"


class StackedAdamW:
    """AdamW whose every run, a slice along the first dimension, has a recipe of its own. torch's own has one rate a
    tensor.

    Args:
        parameters: (s, …) each.
        recipes: one a run.
    """

    BETAS = (0.9, 0.999)
    EPS = 1e-8

    def __init__(self, parameters: Sequence[nn.Parameter], recipes: Sequence[Recipe]) -> None:
        self.parameters = list(parameters)
        self.rates, self.warmups, self.decays = (
            torch.tensor([getattr(recipe, key) for recipe in recipes], dtype=torch.float64)
            for key in ("rate", "warmup", "decay")
        )
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """One update, after which gradients are gone."""
        self.steps += 1
        first, second = self.BETAS
        rates = self.rates * ((self.steps / self.warmups.clamp(min=1)).clamp(max=1))
        for parameter, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            shape = (-1, *(1,) * (parameter.ndim - 1))
            rate, decay = (x.to(parameter).view(shape) for x in (rates, rates * self.decays))
            scale = (square / (1 - second**self.steps)).sqrt_().add_(self.EPS)
            parameter.sub_(parameter * decay)
            parameter.sub_(mean / scale * (rate / (1 - first**self.steps)))
            parameter.grad = None


class RunningAverage:
    """Polynomial-decay average of parameters (Shamir and Zhang 2013): a tail average that is right at every step.

    With a constant rate the last parameters hop about the optimum; this average does not, and since it needs no
    schedule that knows the end, every point of one run is what a run of that length would have ended with.
    """

    POWER = 8

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters after a step into account."""
        self.steps += 1
        share = (self.POWER + 1) / (self.POWER + self.steps)
        lerp_all_(self.averages, self.parameters, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their averages; once more, and they are as before."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def train(
    model: ViewTransformer,
    streams: Sequence[Stream],
    recipes: Sequence[Recipe],
    held_out: Batch,
    *,
    batch: int,
    at: Sequence[int],
) -> Tensor:
    """Train all runs, and measure each of them after ``at`` steps.

    Args:
        model: of as many runs as recipes.
        streams: of training samples: one a run, or fewer that several runs in a row share.
        recipes: one a run.
        held_out: samples never trained on, of as many seeds as streams.
        batch: samples a step.
        at: steps, ascending, from 1.

    Returns:
        Relative error of every run, (s, len(at)); see :func:`error`.
    """
    share = model.runs // len(streams)
    parameters = list(model.parameters())
    optimizer, average = StackedAdamW(parameters, recipes), RunningAverage(parameters)
    found: list[Tensor] = []
    for step in range(1, at[-1] + 1):
        lesson = spread(stack([stream.next(batch) for stream in streams]), share)
        take_step(model, lesson, optimizer, average)
        if step in at:
            average.swap()
            found.append(error(model, held_out))
            if step != at[-1]:
                average.swap()
    return torch.stack(found, 1)


def take_step(model: ViewTransformer, lesson: Batch, optimizer: StackedAdamW, average: RunningAverage) -> None:
    """One step of all runs."""
    loss(model(lesson), lesson).sum().backward()
    optimizer.step()
    average.update()


def spread(batch: Batch, share: int) -> Batch:
    """Every seed's samples for ``share`` runs in a row."""
    return batch if share == 1 else Batch(*(part.repeat_interleave(share, 0) for part in batch))


def loss(output: Tensor, batch: Batch) -> Tensor:
    """Mean squared error over the cells that a sample's camera sees, run by run."""
    missed = (output - batch.target) * batch.visible[..., None]
    return missed.square().sum((1, 2, 3)) / (batch.visible.sum((1, 2)).clamp(min=1) * output.shape[-1])


@torch.no_grad()
def error(model: ViewTransformer, held_out: Batch, size: int = 64) -> Tensor:
    """Squared error over the visible cells relative to the target's variance there, (s,): 1 is what each channel's mean
    would get."""
    share = model.runs // held_out.x.shape[0]
    starts = range(0, held_out.x.shape[1], size)
    parts = [spread(Batch(*(x[:, start : start + size] for x in held_out)), share) for start in starts]
    return relative(torch.stack([tally(model(part), part) for part in parts]).sum(0))


def tally(output: Tensor, batch: Batch) -> Float[Tensor, "4 s o"]:
    """Of the visible cells, by channel: how many there are, sums of the target and of its square, and of the squared
    error."""
    there = batch.visible[..., None].expand_as(batch.target).double()
    missed, target = ((output - batch.target) * there).double(), batch.target.double()
    return torch.stack([there, target, target.square(), missed.square()]).sum((2, 3))


def relative(sums: Float[Tensor, "4 s o"]) -> Float[Tensor, " s"]:
    """Squared error relative to the variance about each channel's mean."""
    count, total, squares, wrong = sums
    return wrong.sum(-1) / (squares - total.square() / count).sum(-1)
