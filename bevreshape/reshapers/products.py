"""Matrix products by the library that is faster at them."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

LARGE = 2**24
"""Multiply-adds of a group from which a product is worth asking for by another library."""


def fast_product(weight: Float[Tensor, "g out k"], x: Float[Tensor, "g k m"]) -> Float[Tensor, "g out m"] | None:
    """W·X of every group, (g, cells, m), by oneDNN; ``None`` where that is not possible or not worth it.

    Torch multiplies float32 by MKL, which packs both matrices anew each time. oneDNN reads its first one where it lies,
    and so takes half the time where W is large and m small. Inference alone: it has no derivative.
    """
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or (weight.device.type, weight.dtype, x.dtype) != ("cpu", torch.float32, torch.float32)
        or weight[0].numel() * x.shape[2] < LARGE
        or torch.is_autocast_enabled("cpu")
        or _get_current_dispatch_mode() is not None  # who counts operations does not know this one
        or (linear := _onednn_linear()) is None
    ):
        return None
    products = [linear(w, y.mT, None, "none", [], "") for w, y in zip(weight, x, strict=True)]
    return torch.stack(products) if len(products) > 1 else products[0][None]


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """``x, W → x·Wᵀ``, which torch keeps for its compiler; ``None`` where this torch does not have it."""
    try:
        linear = torch.ops.mkldnn._linear_pointwise
        linear(torch.ones(1, 1), torch.ones(1, 1), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return linear
