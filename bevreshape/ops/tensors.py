"""Small operations on tensors, and functions of torch whose names differ between its versions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# PyTorch 2.6 has only the more general function
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether ``torch.export`` traces the program; on PyTorch 2.6 also whether ``torch.compile`` does."""


def constant(values: Sequence[Any], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copy values to the device of ``like`` without waiting for it; the dtype is that of ``like`` by default."""
    return torch.tensor(values, dtype=dtype or like.dtype).to(like.device, non_blocking=True)


def index_of(order: Sequence[int], like: Tensor) -> Tensor:
    """Return a list as an index on the device of ``like``; torch waits for the device to copy a list itself."""
    return constant(order, like, torch.long)


def flat_index(index: Tensor, samples: int, each: int) -> Tensor:
    """Turn indices into samples, (samples or 1, m), into indices of the samples flattened, (samples · m,).

    Args:
        index: counts from 0 in every sample.
        samples: number of samples.
        each: number of rows per sample.
    """
    return (index + torch.arange(samples, device=index.device, dtype=index.dtype)[:, None] * each).flatten()
