"""How much of a bird's-eye view comes from the image, and how much from what a model has learned for its cells."""

from jaxtyping import Float
from torch import Tensor


def image_share(bev: Float[Tensor, "b d R C"]) -> float:
    """The image's share of a map's variance, ``V / (V + U)``: 0 where all samples have the same map, 1 where all cells
    have the same mean.

    With O the map of a sample, V is what varies from sample to sample in a cell, ``Σ_cells Var_samples O``, and U what
    varies from cell to cell in the mean over all samples, ``Σ_cells (E O − mean_cells E O)²``, both summed over
    channels: the two parts of the variance over samples and cells. The mean over b samples varies by chance too, which
    on average adds ``Σ_cells Var(O − mean_cells O) / b`` to U and is taken off, so that both are unbiased.

    Learned queries, biases and encodings of cells are in U, and so is what images have in common, such as the road
    ahead: V is what tells one image from another.

    Args:
        bev: of b ≥ 2 samples, whose cameras are to be the same, or V has the pose in it.
    """
    maps = bev.double().flatten(2)  # b d q
    apart = maps - maps.mean(2, keepdim=True)
    varying = maps.var(0).sum().item()
    learned = apart.mean(0).square().sum().item() - apart.var(0).sum().item() / len(maps)
    total = varying + max(learned, 0.0)
    return varying / total if total else 0.0
