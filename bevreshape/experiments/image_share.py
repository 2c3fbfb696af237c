"""The fraction of a bird's-eye view that depends on the image, not on learned values of cells."""

from jaxtyping import Float
from torch import Tensor


def image_share(bev: Float[Tensor, "b d R C"]) -> float:
    """Return the image's share of a map's variance, ``V / (V + U)``.

    It is 0 if all samples have the same map, and 1 if all cells have the same mean. With O the map of a sample, V is
    the variance over samples, ``Σ_cells Var_samples O``. U is the variance of the mean map over cells,
    ``Σ_cells (E O − mean_cells E O)²``. Both are summed over channels. The mean over b samples is noisy, which adds
    ``Σ_cells Var(O − mean_cells O) / b`` to U on average. This term is subtracted, so both are unbiased.

    U contains learned queries, biases and encodings of cells, and what all images have in common, such as the road
    ahead. V contains the differences between images.

    Args:
        bev: of b ≥ 2 samples with the same cameras; otherwise V includes the pose.
    """
    maps = bev.double().flatten(2)  # b d q
    apart = maps - maps.mean(2, keepdim=True)
    varying = maps.var(0).sum().item()
    learned = apart.mean(0).square().sum().item() - apart.var(0).sum().item() / len(maps)
    total = varying + max(learned, 0.0)
    return varying / total if total else 0.0
