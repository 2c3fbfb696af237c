"""Random fields instead of an encoder's features."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from bevreshape.reshapers import FeatureShape


def smooth_fields(
    count: int, source: FeatureShape, correlation_length: float | int, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Gaussian random fields of one camera, of mean 0 and variance 1, every channel its own.

    Two features a distance of r features apart are correlated by ``exp(−r² / 2ℓ²)``, exactly: white noise is multiplied
    by the root of that covariance, from the left for rows and from the right for columns.

    Args:
        count: b.
        source: their shape.
        correlation_length: ℓ, in features; 0 is white noise.
        generator: of the noise, on the device where they are wanted.
    """
    shape = (count, source.channels, source.height, source.width)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    rows, cols = (_root(size, float(correlation_length)).to(noise) for size in (source.height, source.width))
    return rows @ noise @ cols


@cache
def _root(size: int, correlation_length: float) -> Tensor:
    """The symmetric root of the covariance along one axis; symmetric, since any other would depend on the solver."""
    if correlation_length == 0:
        return torch.eye(size)
    place = torch.arange(size, dtype=torch.float64)
    covariance = torch.exp(-0.5 * ((place[:, None] - place) / correlation_length).square())
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.mT).float()
