"""Bounds of rounding errors, for any processor and order of summation."""

import math

import torch
from torch import Tensor

EXACT = {"atol": 1e-9, "rtol": 1e-9}
"""Tolerance for results in float64: far above rounding errors, far below real errors."""


def rounding(terms: int, largest: float | Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Absolute tolerance of a sum of products, or of as many operations one after another, against float64.

    Each step rounds by half an eps of a value no larger than the largest one, up or down as it comes, so that n steps
    add up to √n of these; eight standard deviations are allowed.

    Args:
        terms: n.
        largest: of the absolute values on the way, the result among them.
        dtype: that was computed in.
    """
    value = largest.detach().abs().max().item() if isinstance(largest, Tensor) else largest
    return 8 * math.sqrt(terms) * torch.finfo(dtype).eps / 2 * value
