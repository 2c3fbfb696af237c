"""Summarise many values by few figures."""

import torch
from torch import Tensor


def value_range(values: Tensor, digits: int = 0) -> str:
    low, high = (f"{value.item():z.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low}…{high}"


def median_of(values: Tensor) -> float:
    return values.double().quantile(0.5).item()


def spread_of(values: Tensor) -> float:
    """Return half the range of the middle 68 %, the standard deviation of normally distributed values."""
    low, high = values.double().quantile(torch.tensor([0.16, 0.84], dtype=torch.float64)).tolist()
    return (high - low) / 2
