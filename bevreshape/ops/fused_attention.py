"""Torch's fused attention kernels, with the logarithms of their softmaxes' denominators.

The public ``scaled_dot_product_attention`` returns only outputs. Its internal kernels also return the denominators, and
accept them in the backward pass. There is one for CPUs and two for CUDA. Each is probed once with small tensors. If
torch does not have it, :func:`fused_kernel` does not offer it, and callers form the matrix.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bevreshape.ops.probe import probed

Grads = tuple[Tensor, Tensor, Tensor]


class Kernel(NamedTuple):
    """One fused kernel. Letters: a heads, q queries, t tokens, e width of a head.

    Attributes:
        forward: Q (b, a, q, e), K and V (b, a, t, e) and the scale → the outputs (b, a, q, e), the logarithms of the
            denominators (b, a, q), and further inputs of the backward pass.
        backward: the gradient of the outputs; Q, K and V; outputs and logarithms; the further inputs; the scale → the
            gradients of Q, K and V.
    """

    forward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, tuple[Any, ...]]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Any, ...], float], Grads]


def aten() -> Any:
    """Return torch's operations by their internal names."""
    return torch.ops.aten


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, log_sums = aten()._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    return out, log_sums, ()


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, rest: tuple[Any, ...], scale: float
) -> Grads:
    return aten()._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, log_sums, 0.0, False, scale=scale
    )


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, log_sums, *rest = aten()._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return out, log_sums, tuple(rest[:6])


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, rest: tuple[Any, ...], scale: float
) -> Grads:
    cum_q, cum_k, max_q, max_k, seed, offset = rest
    return aten()._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, log_sums, cum_q, cum_k, max_q, max_k, 0.0, False, seed, offset, scale=scale
    )


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, log_sums, *rest = aten()._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)
    return out, log_sums[..., : q.shape[-2]], (log_sums.shape[-1], *rest)  # log_sums is padded


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, rest: tuple[Any, ...], scale: float
) -> Grads:
    length, seed, offset = rest
    # as the kernel pads: rows of padding have the weight exp(x - ∞) = 0
    log_sums = F.pad(log_sums, (0, length - log_sums.shape[-1]), value=torch.inf)
    grads = aten()._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, log_sums, seed, offset, 0.0, [True, True, True, False], scale=scale
    )
    return grads[:3]


KERNELS = {
    "cpu": Kernel(_cpu_forward, _cpu_backward),
    "flash": Kernel(_flash_forward, _flash_backward),
    "efficient": Kernel(_efficient_forward, _efficient_backward),
}


def try_kernel(name: str) -> bool:
    """Run a kernel forward and backward on small tensors. CUDA kernels run on shapes alone (the meta device).

    Raises:
        AttributeError: if torch does not have it.
        RuntimeError, TypeError or ValueError: if its arguments or results differ from those expected.
    """
    device, dtype = ("cpu", torch.float32) if name == "cpu" else ("meta", torch.bfloat16)
    q, k, v = (torch.ones(1, 2, tokens, 8, device=device, dtype=dtype) for tokens in (3, 5, 5))
    kernel = KERNELS[name]
    out, log_sums, rest = kernel.forward(q, k, v, 1.0)
    grads = kernel.backward(torch.ones_like(out), q, k, v, out, log_sums.contiguous(), rest, 1.0)
    shapes = [out.shape, log_sums.shape, *(x.shape for x in grads)]
    if shapes != [q.shape, q.shape[:3], q.shape, k.shape, v.shape]:
        raise ValueError(f"{name}: it returns {shapes}")
    return True


AVAILABLE = {name: probed(partial(try_kernel, name)) for name in KERNELS}
"""Probes of the kernels by name: whether torch has the kernel."""


def fused_kernel(q: Tensor, k: Tensor, v: Tensor) -> Kernel | None:
    """Return the fused kernel for (b, a, q, e) and (b, a, t, e) of this device and dtype, or ``None``."""
    name = _name(q, k, v)
    if name is None or not (torch.compiler.is_compiling() or AVAILABLE[name]()):
        return None
    return KERNELS[name]


def _name(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.device.type == "cpu":
        return "cpu" if q.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16) else None
    if q.device.type == "cuda":
        ask = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
        if torch.backends.cuda.can_use_flash_attention(ask):
            return "flash"
        if torch.backends.cuda.can_use_efficient_attention(ask):
            return "efficient"
    return None
