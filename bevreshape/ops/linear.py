"""Matrix products by the library that is faster at them on this processor.

Torch multiplies float32 on x86 CPUs by MKL, and has oneDNN for its convolutions. Which is faster follows from the
processor's maker, because MKL takes its widest instructions on Intel's processors alone. So the maker decides
(:data:`LIBRARY`), not a measurement, which could choose otherwise from run to run: a resumed run and all processes of
one machine must round alike.

============  =============================  =================================================  ===========
maker         1536×1536, MKL · oneDNN        oneDNN beside the originals, forward · both         taken
============  =============================  =================================================  ===========
AuthenticAMD  34 ms · 16 to 18 ms (2 cores)  VPN .51 · .54, PON .80 · .80, HDMapNet .46 · .73   oneDNN
GenuineIntel  both 310 to 330 GFLOP/s        VPN .97 · 1.13, PON .95 · .92, HDMapNet .70 · 1.02  torch's own
============  =============================  =================================================  ===========

Measured by ``tools/time_originals.py`` on an EPYC and on a Xeon. Other makers of x86 processors are treated as AMD.
Where the maker is unknown or torch has no MKL (ARM), torch's own product is taken, forward and backward.
"""

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.ops.internals import operations_are_watched
from bevreshape.ops.probe import probed

LIBRARY: dict[str, Literal["onednn", "torch"]] = {"GenuineIntel": "torch", "": "torch"}
"""What multiplies large float32 matrices, by the processor's maker; oneDNN where it is not listed. "" is unknown."""

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux tells the processor's maker."""

LARGE = 2**22
"""Multiply-adds of a group from which a product is worth asking for by another library."""

WIDE = 2**17
"""Elements of W from which its gradient, too, is worth it: those of a small W are too few to be shared among cores."""

FEW = 128
"""Rows of x below which a group's gradient of W takes less time than copying it to the others."""

Activation = Literal["relu", "gelu", "tanh", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,  # in place: it is given a product that nothing else refers to
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "none": nn.Identity(),
}
"""Activations after a product, by the names that oneDNN has for them too."""


def linear(
    x: Float[Tensor, "*m k"], weight: Float[Tensor, "out k"], bias: Float[Tensor, " out"] | None = None
) -> Tensor:
    """``x·Wᵀ + b``, (*m, out), with its derivatives, as ``torch.nn.functional.linear`` gives it.

    On CPUs a large float32 product is multiplied by the library that :data:`LIBRARY` names. On GPUs, in other
    precisions, under autocast, in compiled and exported graphs, and where operations are counted or transformed, it is
    torch's own.
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
        out = ACTIVATIONS[activation](OneDNNLinear.apply(x, weight, bias))
    else:
        out = _multiply(x, weight, bias, activation)
    return out if out.ndim == 3 else out[None]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """(g, m, out), or (m, out) of a single group, which to stack would be to copy."""
    onednn = onednn_linear()
    assert onednn is not None  # the caller has asked
    biases = [None] * len(x) if bias is None else bias.squeeze(1).contiguous()  # it takes no other
    algorithm = "none" if activation == "gelu" else ""  # that of the error function, without tanh
    groups = [onednn(*group, activation, [], algorithm) for group in zip(x, weight, biases, strict=True)]
    return torch.stack(groups) if len(groups) > 1 else groups[0]


class OneDNNLinear(torch.autograd.Function):
    """``x·Wᵀ + b`` of every group by oneDNN, (g, m, k) → (g, m, out); it can be derived twice."""

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
    """Whether oneDNN is faster here and there, and the product is large, of ordinary float32, and not watched."""
    return (
        not torch.compiler.is_compiling()  # first, or the sizes would be compared in the graph
        and not torch.onnx.is_in_onnx_export()
        and not torch.jit.is_tracing()
        and x.numel() * weight.shape[-2] >= LARGE * max(groups, 1)
        and all(_is_plain(given) for given in (x, weight, bias) if given is not None)
        and weight.numel() == groups * weight.shape[-2] * x.shape[-1]  # else torch says what is wrong,
        and (bias is None or bias.numel() == groups * weight.shape[-2])  # or spreads the bias
        and not torch.is_autocast_enabled("cpu")
        and not operations_are_watched()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkl.is_available()  # what it is faster than
        and LIBRARY.get(processor_maker(), "onednn") == "onednn"
        and onednn_linear() is not None
    )


def _is_plain(x: Tensor) -> bool:
    kind = x.device.type, x.dtype, x.layout
    return kind == ("cpu", torch.float32, torch.strided) and type(x) in (Tensor, nn.Parameter)


@cache
def processor_maker() -> str:
    """Return the maker's own name, such as ``GenuineIntel`` or ``AuthenticAMD``; "" where the system does not tell."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("vendor_id"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor().rpartition(", ")[2] if "," in platform.processor() else ""  # as Windows tells it


@probed
def onednn_linear() -> Callable[..., Tensor]:
    """Return ``x, W, b, activation, [], algorithm → σ(x·Wᵀ + b)``, which torch keeps for its compiler."""
    for library in ("mkldnn", "onednn"):  # as it is called today, and by torch's next
        found: Callable[..., Tensor] | None = getattr(getattr(torch.ops, library), "_linear_pointwise", None)
        if found is not None:
            break
    else:
        raise AttributeError("no linear layer of oneDNN")
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [-5.0, 0.0]])
    if found(x, weight, torch.ones(2), "relu", [], "").tolist() != [[12.0, 0.0]]:
        raise ValueError("another product")
    found(x, weight, None, "gelu", [], "none")
    return found
