"""Data dependence (claim A7): whether the mapping from tokens to cells is fixed or depends on the image."""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.analysis.effective_weights import Cells, jacobian_norm
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras


def data_dependence(
    reshaper: nn.Module,
    inputs: Iterable[tuple[Tensor | Sequence[Tensor], Cameras | None]],
    *,
    cells: Cells | None = None,
    probes: int | None = None,
    seed: int = 0,
    scale: int = 0,
    copies: int = 16,
) -> float:
    """Return :func:`relative_spread` of the effective weights ``‖∂O_q/∂X_k‖_F`` over inputs.

    The inputs determine what is measured: with the same cameras for all of them it is the dependence on images alone. A
    mapping that only rotates channels, at the same strength, has no spread.

    Args:
        reshaper: see :func:`~bevreshape.analysis.effective_weights.jacobian_norm`, also for the other arguments.
        inputs: batches of features and cameras, ``None`` without calibration; every sample counts as one input.
        cells: measured cells; ``None`` for all.
        probes: probes per cell; ``None`` for exact.
        seed: seed of the probes, which are the same for all inputs.
        scale: index of the scale whose tokens are measured.
        copies: copies of a sample at a time.

    Raises:
        InputError: if there are fewer than two samples, or as
            :func:`~bevreshape.analysis.effective_weights.jacobian_norm`.
    """
    return relative_spread(
        jacobian_norm(reshaper, features, cameras, cells=cells, probes=probes, seed=seed, scale=scale, copies=copies)
        for features, cameras in inputs
    )


def relative_spread(batches: Iterable[Float[Tensor, "_ ..."]]) -> float:
    """Return ``√(Σ_qk Var_X W_qk / Σ_qk (Mean_X W_qk)²)``, the spread of weights over inputs relative to their mean.

    The variance is unbiased (divided by the number of samples less one). The result is exactly 0 if all samples have
    the same weights, 1 if the spread equals the mean, and infinite if the mean is 0 and the weights are not.

    Args:
        batches: effective weights of any kind, samples first.

    Raises:
        InputError: if there are fewer than two samples, or weights of different shapes.
    """
    count = 0
    mean = scatter = torch.zeros(())
    for batch in batches:
        for weights in batch:
            if count == 0:
                mean, scatter = weights.clone(), torch.zeros_like(weights)
            elif weights.shape != mean.shape:
                raise InputError(
                    f"relative_spread: weights of {tuple(weights.shape)} follow on {tuple(mean.shape)}; choose the "
                    "same cells and tokens for all inputs"
                )
            count += 1
            away = weights - mean
            mean = mean + away / count
            scatter = scatter + away * (weights - mean)  # Welford 1962; equal weights leave it exactly 0
    if count < 2:
        raise InputError(f"relative_spread: {count} samples have no spread; give at least two")
    variance, square = (scatter.sum() / (count - 1)).item(), mean.square().sum().item()
    if variance == 0:
        return 0.0
    return math.sqrt(variance / square) if square else math.inf
