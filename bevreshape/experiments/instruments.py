"""Instruments for a trained method: dependence of its matrix on X, and distance from the true matrix."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from bevreshape.analysis.data_dependence import relative_spread
from bevreshape.experiments.models import ViewTransformer
from bevreshape.experiments.regrid import finer_errors
from bevreshape.experiments.world import Batch


@dataclass(frozen=True)
class Examined:
    """Values of one run; all are infinite if it diverged.

    Attributes:
        spread_of_a: of A over inputs, relative to its mean; 0 where A does not depend on X.
        spread_of_jacobian: of ``‖∂O_q/∂X_t‖_F`` over inputs, likewise.
        distance: ``‖J − S⊗I‖ / ‖S⊗I‖``, J the mean Jacobian and S the bilinear sampling matrix.
        entropy: of the rows of |A|, normalised to sum 1, in bits; that of S's rows is about 1.4.
        locality: mean distance in features between the centroids of the rows of |A| and of S.
        rank: effective rank of the mean A, see :func:`effective_rank`.
        finer: error on a grid of half the cell size without training anew, see
            :func:`~bevreshape.experiments.regrid.finer_errors`.
    """

    spread_of_a: float
    spread_of_jacobian: float
    distance: float
    entropy: float
    locality: float
    rank: float
    finer: float

    def to_plain(self) -> dict[str, float | None]:
        """Return plain values for a JSON file; infinity becomes null."""
        return {key: float(f"{value:.4g}") if value < math.inf else None for key, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, float | None]) -> "Examined":
        """Build it from what :meth:`to_plain` returns."""
        return cls(**{key: math.inf if value is None else value for key, value in plain.items()})


def examine(model: ViewTransformer, batch: Batch, every: int = 3) -> list[Examined]:
    """Examine all runs of a model on samples of a fixed camera, with one seed per run.

    Args:
        model: trained.
        batch: samples, two or more.
        every: the Jacobian is computed for every ``every``-th cell.
    """
    world = model.world
    cells = torch.arange(0, len(world.cells), every)
    sampled = world.sampling(world.rig)[0]  # q t
    outside = world.in_channels - world.source.channels
    identity = torch.eye(world.source.channels, world.in_channels - outside)
    found = []
    on_finer = finer_errors(model, batch).tolist()
    with torch.no_grad():
        weights = model.weights(batch)  # s #b q t
    jacobians = jacobian(model, batch, cells)[..., : world.source.channels]  # s b q o t c
    for run in range(model.runs):
        a = weights[run].expand(batch.x.shape[1], -1, -1)
        if not (a.isfinite().all() and jacobians[run].isfinite().all()):
            found.append(Examined(*[math.inf] * len(fields(Examined))))
            continue
        true = torch.einsum("qt,oc->qotc", sampled[cells], identity)
        mean = jacobians[run].mean(0)
        shares = a.abs() / a.abs().sum(-1, keepdim=True)
        found.append(
            Examined(
                relative_spread([a]),
                relative_spread([jacobians[run].square().sum((2, 4)).sqrt()]),
                ((mean - true).norm() / true.norm()).item(),
                entropy(shares).mean().item(),
                _centroids(world.source.width, shares, sampled),
                effective_rank(a.mean(0)),
                on_finer[run],
            )
        )
    return found


def entropy(shares: Float[Tensor, "*b t"]) -> Float[Tensor, "*b"]:
    """Return the entropy of rows that sum to 1, in bits."""
    return -(shares * shares.clamp(min=1e-12).log2()).sum(-1)


def effective_rank(matrix: Float[Tensor, "q t"]) -> float:
    """Return ``exp(H(σ / Σσ))``, H the entropy of the normalised singular values (Roy and Vetterli 2007).

    It is r if r singular values are equal and the others 0.
    """
    shares = torch.linalg.svdvals(matrix.double())
    shares = shares / shares.sum()
    return (-(shares * shares.clamp(min=1e-300).log()).sum()).exp().item()


def jacobian(model: ViewTransformer, batch: Batch, cells: Tensor) -> Float[Tensor, "s b q o t c"]:
    """Compute ∂O/∂X of some cells exactly, by a backward pass per output for all samples and runs at once."""
    x = batch.x.detach().clone().requires_grad_()
    output = model(batch._replace(x=x))[:, :, cells]  # s b q o
    wanted = output.sum((0, 1)).flatten()  # samples and runs are independent
    (rows,) = torch.autograd.grad(wanted, x, torch.eye(len(wanted)), is_grads_batched=True)
    return rows.unflatten(0, output.shape[2:]).permute(2, 3, 0, 1, 4, 5)  # q o s b t c before


def _centroids(width: int, shares: Tensor, sampled: Tensor) -> float:
    """Return the mean distance between centroids, in features."""
    token = torch.arange(sampled.shape[1])
    places = torch.stack([token // width, token % width], -1).float()  # t 2
    return (shares @ places - sampled @ places).norm(dim=-1).mean().item()
