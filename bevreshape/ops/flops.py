"""Counting of floating-point operations, including those of torch's internal kernels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of a call, a multiply-add as two.

    Torch's counter omits some kernels, which are added here: CPU attention, embedding bags (a multiply-add per tap) and
    bilinear sampling (four), with their backward passes. The gradient of a sparse matrix's values (deformable
    attention) is not counted.
    """
    with FlopCounterMode(display=False, custom_mapping=_known()) as counter:
        call()
    return counter.get_total_flops()


def _known() -> dict[Any, Callable[..., int]]:
    """Return the formulas of the kernels that this version of torch has."""
    return {
        getattr(torch.ops.aten, name): formula for name, formula in FORMULAS.items() if hasattr(torch.ops.aten, name)
    }


def _attention_flop(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])  # Q·Kᵀ and P·V


def _attention_backward_flop(_: Any, q: Sequence[int], k: Sequence[int], v: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (3 * q[-1] + 2 * v[-1])  # Q·Kᵀ again, dQ and dK; dP and dV


def _bag_flop(weight: Sequence[int], indices: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(indices) * weight[-1]


def _bag_backward_flop(grad: Sequence[int], indices: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(indices) * grad[-1]


def _bag_weights_flop(grad: Sequence[int], _: Sequence[int], indices: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(indices) * grad[-1]


def _sampler_flop(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 8 * math.prod(out_shape)


def _sampler_backward_flop(grad: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * 8 * math.prod(grad)  # with respect to the image and to the positions


FORMULAS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_flop,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward_flop,
    "_embedding_bag": _bag_flop,
    "_embedding_bag_forward_only": _bag_flop,
    "_embedding_bag_dense_backward": _bag_backward_flop,
    "_embedding_bag_backward": _bag_backward_flop,
    "_embedding_bag_per_sample_weights_backward": _bag_weights_flop,
    "grid_sampler_2d": _sampler_flop,
    "grid_sampler_2d_backward": _sampler_backward_flop,
}
"""Kernels by their internal names."""
