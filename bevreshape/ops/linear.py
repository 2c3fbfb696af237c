"""Matrix products by the library that is faster on this processor.

Torch multiplies float32 on x86 CPUs by MKL, and has oneDNN for its convolutions. MKL uses its widest instructions on
Intel's processors alone, so the processor's maker decides (:data:`LIBRARY`). A measurement could choose differently
from run to run, but a resumed run and all processes of a machine must round alike.

============  =============================  =================================================  ===========
maker         1536×1536, MKL · oneDNN        oneDNN / originals, forward · both                  choice
============  =============================  =================================================  ===========
AuthenticAMD  34 ms · 16 to 18 ms (2 cores)  VPN .51 · .54, PON .80 · .80, HDMapNet .46 · .73   oneDNN
GenuineIntel  both 310 to 330 GFLOP/s        VPN .97 · 1.13, PON .95 · .92, HDMapNet .70 · 1.02  torch's own
============  =============================  =================================================  ===========

Measured by ``tools/time_originals.py`` on an EPYC and on a Xeon. Other makers of x86 processors are treated as AMD. If
the maker is unknown or torch has no MKL (ARM), torch's own product is used, forward and backward.
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
"""Library for large float32 products, by the processor's maker; oneDNN for unlisted makers. "" is unknown."""

CPUINFO = Path("/proc/cpuinfo")
"""File in which Linux gives the processor's maker."""

LARGE = 2**22
"""Smallest number of multiply-adds per group for which oneDNN is used."""

WIDE = 2**17
"""Smallest number of elements of W for which its gradient uses oneDNN; a smaller W is not split among cores."""

FEW = 128
"""Number of rows of x below which a group's gradient of W takes less time than copying it to the others."""

Activation = Literal["relu", "gelu", "tanh", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,  # in place: nothing else refers to the product
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "none": nn.Identity(),
}
"""Activations after a product, by oneDNN's names."""


def linear(
    x: Float[Tensor, "*m k"], weight: Float[Tensor, "out k"], bias: Float[Tensor, " out"] | None = None
) -> Tensor:
    """Return ``x·Wᵀ + b``, (*m, out), with its derivatives, as ``torch.nn.functional.linear`` does.

    On CPUs :data:`LIBRARY` chooses the library of a large float32 product. Torch's own product is used on GPUs, in
    other precisions, under autocast, in compiled and exported graphs, and where operations are counted or transformed.
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
    """Apply :func:`linear` to every group, and one of ``ACTIVATIONS`` after it."""
    if _by_onednn(x, weight, bias, groups=x.shape[0]):
        return _product(x, weight, bias, activation)
    # as W·X, so that W's gradient has W's layout: a transpose would cost more than a product of few rows
    x = x.mT
    out = torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.mT, weight, x)
    return ACTIVATIONS[activation](out).mT


class Linear(nn.Linear):
    """``torch.nn.Linear`` by :func:`linear`.

    Tools that match the exact type, such as dynamic quantisation and ``torch.fx``, do not recognise it.
    """

    def forward(self, input: Float[Tensor, "*m k"]) -> Float[Tensor, "*m out"]:
        return linear(input, self.weight, self.bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    if torch.is_grad_enabled():
        out = ACTIVATIONS[activation](OneDNNLinear.apply(x, weight, bias))
    else:
        out = _multiply(x, weight, bias, activation)
    return out if out.ndim == 3 else out[None]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return (g, m, out), or (m, out) for a single group, since stacking would copy."""
    onednn = onednn_linear()
    assert onednn is not None  # the caller has checked
    biases = [None] * len(x) if bias is None else bias.squeeze(1).contiguous()  # oneDNN requires contiguous biases
    algorithm = "none" if activation == "gelu" else ""  # by the error function, not tanh
    groups = [onednn(*group, activation, [], algorithm) for group in zip(x, weight, biases, strict=True)]
    return torch.stack(groups) if len(groups) > 1 else groups[0]


class OneDNNLinear(torch.autograd.Function):
    """``x·Wᵀ + b`` of every group by oneDNN, (g, m, k) → (g, m, out); it is twice differentiable."""

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
    """Return whether oneDNN is available and faster, and the product is large, plain float32, and not observed."""
    return (
        not torch.compiler.is_compiling()  # first, or the sizes would be compared in the graph
        and not torch.onnx.is_in_onnx_export()
        and not torch.jit.is_tracing()
        and x.numel() * weight.shape[-2] >= LARGE * max(groups, 1)
        and all(_is_plain(given) for given in (x, weight, bias) if given is not None)
        and weight.numel() == groups * weight.shape[-2] * x.shape[-1]  # else torch reports the error
        and (bias is None or bias.numel() == groups * weight.shape[-2])  # or broadcasts the bias
        and not torch.is_autocast_enabled("cpu")
        and not operations_are_watched()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkl.is_available()  # else oneDNN is already torch's own
        and LIBRARY.get(processor_maker(), "onednn") == "onednn"
        and onednn_linear() is not None
    )


def _is_plain(x: Tensor) -> bool:
    kind = x.device.type, x.dtype, x.layout
    return kind == ("cpu", torch.float32, torch.strided) and type(x) in (Tensor, nn.Parameter)


@cache
def processor_maker() -> str:
    """Return the maker's name, such as ``GenuineIntel`` or ``AuthenticAMD``; "" if the system does not give it."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("vendor_id"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor().rpartition(", ")[2] if "," in platform.processor() else ""  # Windows' format


@probed
def onednn_linear() -> Callable[..., Tensor]:
    """Return ``x, W, b, activation, [], algorithm → σ(x·Wᵀ + b)``, an internal function of torch's compiler."""
    for library in ("mkldnn", "onednn"):  # the current name, and that of the next torch
        found: Callable[..., Tensor] | None = getattr(getattr(torch.ops, library), "_linear_pointwise", None)
        if found is not None:
            break
    else:
        raise AttributeError("torch has no linear layer of oneDNN")
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [-5.0, 0.0]])
    if found(x, weight, torch.ones(2), "relu", [], "").tolist() != [[12.0, 0.0]]:
        raise ValueError("torch's linear layer of oneDNN has changed its meaning")
    found(x, weight, None, "gelu", [], "none")
    return found
