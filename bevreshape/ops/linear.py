"""Matrix products by the library that is faster at them."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

LARGE = 2**22
"""Multiply-adds of a group from which a product is worth asking for by another library."""

WIDE = 2**17
"""Numbers of W from which its gradient, too, is worth it: those of a small W are too few to be shared among cores."""

FEW = 128
"""Rows of x below which a group's gradient of W is soon multiplied, and copying it to the others would cost more."""


Activation = Literal["relu", "gelu", "tanh", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,  # in place: what it is given is a product that nobody else holds
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "none": nn.Identity(),
}
"""What may follow a product, by the names that oneDNN has for it too."""


def linear(
    x: Float[Tensor, "*m k"], weight: Float[Tensor, "out k"], bias: Float[Tensor, " out"] | None = None
) -> Tensor:
    """``x·Wᵀ + b``, (*m, out), with its derivatives, as ``torch.nn.functional.linear`` gives it.

    Torch multiplies float32 on a CPU by MKL, which uses the widest instructions on one maker's processors alone and packs
    both matrices anew each time. oneDNN, which torch has for its convolutions, takes half the time or less on others, and
    everywhere where W is large and x has few rows, since it reads W where it lies. On GPUs, in other precisions, under
    autocast, in compiled and exported graphs, and where somebody counts or transforms operations, it is torch's own.
    """
    if not _by_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    rows, biases = x.reshape(1, -1, x.shape[-1]), None if bias is None else bias[None, None]
    return _product(rows, weight[None], biases).reshape(*x.shape[:-1], len(weight))


def grouped_linear(
    x: Float[Tensor, "g m k"],
    weight: Float[Tensor, "g out k"],
    bias: Float[Tensor, "g 1 out"] | None = None,
    activation: str = "none",
) -> Float[Tensor, "g m out"]:
    """:func:`linear` of every group, and one of ``ACTIVATIONS`` after it."""
    if _by_onednn(x, weight, bias, groups=x.shape[0]):
        return _product(x, weight, bias, activation)
    # as W·X, so that W's gradient comes in W's own layout: turning it would cost more than a product of few rows
    x = x.mT
    out = torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.mT, weight, x)
    return ACTIVATIONS[activation](out).mT


class Linear(nn.Linear):
    """``torch.nn.Linear`` by :func:`linear`. Tools that look for the exact type, as dynamic quantisation and
    ``torch.fx`` do, do not take it for one."""

    def forward(self, input: Float[Tensor, "*m k"]) -> Float[Tensor, "*m out"]:
        return linear(input, self.weight, self.bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    if torch.is_grad_enabled():
        out = ACTIVATIONS[activation](_Linear.apply(x, weight, bias))
    else:
        out = _multiply(x, weight, bias, activation)
    return out if out.ndim == 3 else out[None]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """(g, m, out), or (m, out) of a single group, which to stack would be to copy."""
    onednn = _onednn_linear()
    assert onednn is not None  # who calls has asked
    biases = [None] * len(x) if bias is None else bias.squeeze(1).contiguous()  # it takes no other
    algorithm = "none" if activation == "gelu" else ""  # that of the error function, without tanh
    groups = [onednn(*group, activation, [], algorithm) for group in zip(x, weight, biases, strict=True)]
    return torch.stack(groups) if len(groups) > 1 else groups[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        by_x, by_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if by_weight else None, weight if by_x else None)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        grad = grad if grad.ndim == 3 else grad[None]  # g m out
        if weight is not None:
            grad_x = grouped_linear(grad, weight.mT)
        if x is not None:
            groups, rows, k = x.shape
            many = grad.shape[2] * k >= WIDE and (groups == 1 or rows >= FEW)
            grad_weight = grouped_linear(grad.mT, x.mT) if many else torch.bmm(grad.mT, x)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(1, keepdim=True)
        return grad_x, grad_weight, grad_bias


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> bool:
    """Whether it is there, the product is large, of ordinary float32 on a CPU, and nobody watches or transforms it."""
    return (
        not torch.compiler.is_compiling()  # first, or the sizes would be compared in the graph
        and not torch.onnx.is_in_onnx_export()
        and not torch.jit.is_tracing()
        and x.numel() * weight.shape[-2] >= LARGE * max(groups, 1)
        and all(_is_plain(given) for given in (x, weight, bias) if given is not None)
        and weight.numel() == groups * weight.shape[-2] * x.shape[-1]  # else torch says what is wrong,
        and (bias is None or bias.numel() == groups * weight.shape[-2])  # or spreads the bias
        and not torch.is_autocast_enabled("cpu")
        and _get_current_dispatch_mode() is None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkl.is_available()  # what it is faster than
        and _onednn_linear() is not None
    )


def _is_plain(x: Tensor) -> bool:
    kind = x.device.type, x.dtype, x.layout
    return kind == ("cpu", torch.float32, torch.strided) and type(x) in (Tensor, nn.Parameter)


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """``x, W, b → x·Wᵀ + b``, which torch keeps for its compiler; ``None`` where this torch does not have it."""
    for library in ("mkldnn", "onednn"):  # as it is called today, and by torch's next
        try:
            onednn: Callable[..., Tensor] = getattr(torch.ops, library)._linear_pointwise
            one = torch.ones(1, 1, dtype=torch.float32, device="cpu")
            onednn(one, one, one[0], "gelu", [], "none")
        except (AttributeError, RuntimeError, TypeError):
            continue
        return onednn
    return None
