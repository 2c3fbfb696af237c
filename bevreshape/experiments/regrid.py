"""Another grid without new training: cells half as long, by new queries or by resizing.

An attention whose queries are a function of a cell's position computes the new cells. Any other method has only the
output for its own cells, which is resized bilinearly, like an image.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from bevreshape.experiments.models import ContinuousAttention, ViewTransformer
from bevreshape.experiments.training import relative, tally
from bevreshape.experiments.world import Batch, World
from bevreshape.geometry import BEVGrid
from bevreshape.geometry.ipm import sample


class Finer(NamedTuple):
    """Cells half as long as a world's, each between four cells that the camera sees."""

    world: World
    """The world with this grid."""
    among: Tensor
    """Indices of the f cells in the world's grid, (f,)."""
    resize: Float[Tensor, "f q"]
    """Bilinear weights over the cells of the original world."""


@cache
def finer(world: World) -> Finer:
    """Return the world with cells half as long."""
    grid = world.grid
    other = replace(world, grid=BEVGrid(grid.forward_m, grid.left_m, grid.cell_m / 2))
    seen = (grid.centers().flatten(0, 1)[:, None] == world.cells).all(-1)  # (R C) q
    images = rearrange(seen.float(), "(R C) q -> 1 1 q R C", R=grid.rows)
    places = grid.metric_to_cell(other.cells)  # f 2, (col, row)
    resize = rearrange(sample(images, places[None, None, None]), "1 1 q 1 f -> f q")
    inside = (places >= 0).all(-1) & (places <= torch.tensor([grid.cols - 1, grid.rows - 1])).all(-1)
    among = (inside & (resize.sum(-1) > 1 - 1e-5)).nonzero()[:, 0]
    return Finer(other, among, resize[among])


@torch.no_grad()
def finer_errors(model: ViewTransformer, batch: Batch) -> Float[Tensor, " s"]:
    """Return the error on cells half as long, relative to the variance of the target there, see
    :func:`~bevreshape.experiments.training.error`; fixed camera.

    Args:
        model: trained.
        batch: samples of as many seeds as runs.
    """
    other, among, resize = finer(model.world)
    if isinstance(model, ContinuousAttention):
        output = model.on(other)(batch)[:, :, among]
    else:
        output = torch.einsum("fq,sbqo->sbfo", resize, model(batch))
    sampled = other.sampling(other.rig)[0, among]  # f t
    target = torch.einsum("ft,sbtc->sbfc", sampled, batch.x[..., : model.world.source.channels])
    visible = torch.ones(target.shape[:3], dtype=torch.bool)
    return relative(tally(output, batch._replace(target=target, visible=visible)))


def resizing_error(world: World) -> float:
    """Return the same error of resizing the true output, for random fields in closed form."""
    other, among, resize = finer(world)
    true = other.sampling(other.rig)[0, among].double()
    missed = resize.double() @ world.sampling(world.rig)[0].double() - true
    covariance = world.covariance.double()

    def energy(rows: Tensor) -> float:
        return torch.einsum("ft,tu,fu->", rows, covariance, rows).item()

    return energy(missed) / energy(true)
