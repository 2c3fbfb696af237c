"""Random fields instead of an encoder's features."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from bevreshape.reshapers import FeatureShape


def smooth_fields(
    count: int, source: FeatureShape, correlation_length: float | int, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Draw Gaussian random fields of one camera with mean 0 and variance 1, independent for every channel.

    Features at a distance of r features have the correlation ``exp(−r² / 2ℓ²)``, exactly. White noise is multiplied by
    the root of that covariance, from the left for rows and from the right for columns.

    Args:
        count: b.
        source: shape of the features.
        correlation_length: ℓ, in features; 0 is white noise.
        generator: of the noise, on the device of the result.
    """
    shape = (count, source.channels, source.height, source.width)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    rows, cols = (_root(size, float(correlation_length)).to(noise) for size in (source.height, source.width))
    return rows @ noise @ cols


@cache
def _root(size: int, correlation_length: float) -> Tensor:
    """Return the symmetric root of the covariance along one axis; another root would depend on the solver."""
    if correlation_length == 0:
        return torch.eye(size)
    place = torch.arange(size, dtype=torch.float64)
    covariance = torch.exp(-0.5 * ((place[:, None] - place) / correlation_length).square())
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.mT).float()
