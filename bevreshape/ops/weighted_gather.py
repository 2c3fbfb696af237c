"""Weighted sums of the rows of a table, and their gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class WeightedGather(torch.autograd.Function):
    """Weighted sums of rows of a table. The gradient is a weighted sum too, from the sums back to the rows.

    PyTorch's gradient of ``embedding_bag`` sorts all taps and adds them one by one. Here only the pairs are sorted, by
    their first tap: a quarter as many. Each of the four taps is summed separately and then shifted to its row.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, starts: Tensor, steps: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(rows, weights, starts)
        ctx.table_rows, ctx.steps = table.shape[0], steps
        return sum_rows(table, rows, weights, starts * len(steps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, weights, starts = ctx.saved_tensors
        readers = owners(starts, rows.shape[0])
        out = spread(gradient.contiguous(), readers, rows[:, 0], weights.unbind(1), ctx.steps, ctx.table_rows)
        return out, None, None, None, None


def spread(
    gradient: Tensor, readers: Tensor, first: Tensor, weights: Sequence[Tensor], steps: Sequence[int], length: int
) -> Tensor:
    """Return the gradient of a table of ``length`` rows that was sampled bilinearly.

    Pairs are sorted once, by their first tap; the sums of every other tap are shifted by its step.

    Args:
        gradient: gradient of the sums.
        readers: (m) the sum that each pair belongs to.
        first: (m) row of its first tap.
        weights: (m) weights of every tap.
        steps: distances from the first tap to every tap, in rows.
        length: rows of the table.
    """
    first, order = first.contiguous().sort(stable=True)
    rows = torch.arange(length, device=first.device, dtype=first.dtype)
    starts = torch.searchsorted(first, rows).to(readers.dtype)
    readers = readers[order]
    table = gradient.new_zeros(length, gradient.shape[1])
    for step, weight in zip(steps, weights, strict=True):
        table[step:] += sum_rows(gradient, readers, weight[order], starts)[: length - step]
    return table


def sum_rows(table: Tensor, rows: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Sum weighted rows of a table for every row of ``rows`` or, with ``starts``, from one start to the next."""
    if starts is not None:
        rows, weights = rows.flatten(), weights.flatten()
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def owners(starts: Tensor, pairs: int) -> Tensor:
    """Return the index of the sum that each pair belongs to, given the first pair of every sum."""
    begun = torch.zeros(pairs + 1, dtype=starts.dtype, device=starts.device)
    begun = begun.index_add(0, starts, torch.ones_like(starts))
    return begun[:pairs].cumsum(0, dtype=starts.dtype) - 1
