"""Training of many runs side by side, each with its own learning rate, warm-up and weight decay."""

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
    """Recipe of one run: AdamW (Loshchilov and Hutter 2019) at a constant rate after a linear warm-up.

    A rate that falls to 0 over the last 40 or 80 % of the steps was worse than or equal to the running average of a
    constant rate for both sides, so it is not an option. The form of Q is an option, since no single form is fair in
    all settings, see :data:`~bevreshape.experiments.models.Query`.

    Attributes:
        rate: learning rate.
        warmup: steps in which the rate rises from 0.
        decay: decoupled weight decay, per step and rate.
        query: form of Q, for an attention.
    """

    rate: float
    warmup: int = 0
    decay: float = 0.0
    query: Query = "projected"


class StackedAdamW:
    """AdamW with a recipe per run, a slice along the first dimension; torch's AdamW has one rate per tensor.

    Args:
        parameters: (s, …) each.
        recipes: one per run.
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
        """Update the parameters and clear the gradients."""
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
    """Polynomial-decay average of parameters (Shamir and Zhang 2013): a tail average that is valid at every step.

    With a constant rate the parameters fluctuate about the optimum; their average does not. It needs no schedule with a
    known end, so every point of a run equals the end of a run of that length.
    """

    POWER = 8

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the parameters after a step to the average."""
        self.steps += 1
        share = (self.POWER + 1) / (self.POWER + self.steps)
        lerp_all_(self.averages, self.parameters, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their averages; a second call restores them."""
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
    """Train all runs, and measure each after the steps ``at``.

    Args:
        model: of as many runs as recipes.
        streams: of training samples: one per run, or fewer, each shared by several runs in a row.
        recipes: one per run.
        held_out: samples that are not used in training, of as many seeds as streams.
        batch: samples per step.
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
    """Train all runs for one step."""
    loss(model(lesson), lesson).sum().backward()
    optimizer.step()
    average.update()


def spread(batch: Batch, share: int) -> Batch:
    """Repeat every seed's samples for ``share`` runs in a row."""
    return batch if share == 1 else Batch(*(part.repeat_interleave(share, 0) for part in batch))


def loss(output: Tensor, batch: Batch) -> Tensor:
    """Return each run's mean squared error over the cells visible to a sample's camera, (s,)."""
    missed = (output - batch.target) * batch.visible[..., None]
    return missed.square().sum((1, 2, 3)) / (batch.visible.sum((1, 2)).clamp(min=1) * output.shape[-1])


@torch.no_grad()
def error(model: ViewTransformer, held_out: Batch, size: int = 64) -> Tensor:
    """Return the squared error over the visible cells relative to the target's variance there, (s,).

    1 is the error of predicting each channel's mean.
    """
    share = model.runs // held_out.x.shape[0]
    starts = range(0, held_out.x.shape[1], size)
    parts = [spread(Batch(*(x[:, start : start + size] for x in held_out)), share) for start in starts]
    return relative(torch.stack([tally(model(part), part) for part in parts]).sum(0))


def tally(output: Tensor, batch: Batch) -> Float[Tensor, "4 s o"]:
    """Return sums over the visible cells by channel: count, target, squared target and squared error."""
    there = batch.visible[..., None].expand_as(batch.target).double()
    missed, target = ((output - batch.target) * there).double(), batch.target.double()
    return torch.stack([there, target, target.square(), missed.square()]).sum((2, 3))


def relative(sums: Float[Tensor, "4 s o"]) -> Float[Tensor, " s"]:
    """Return the squared error relative to the variance about each channel's mean."""
    count, total, squares, wrong = sums
    return wrong.sum(-1) / (squares - total.square() / count).sum(-1)
