"""Exact attention to the tokens of all cameras in one softmax, with separate queries for every camera."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bevreshape.ops.fused_attention import Kernel, fused_kernel
from bevreshape.ops.tensors import is_exporting


def joint_attention(
    queries: Float[Tensor, "b n a q e"],
    keys: Float[Tensor, "b n a t e"],
    values: Float[Tensor, "b n a t e"],
    present: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b a q e"]:
    """Return ``softmax([Q₁K₁ᵀ, …, QₙKₙᵀ]/√e) · [V₁; …; Vₙ]``. Every camera has its own queries.

    One call of a fused kernel attends within all cameras at once. It returns the outputs Oᵢ and the logarithms Lᵢ of
    their softmaxes' denominators. With ``L = log Σ exp Lᵢ`` the joint softmax is exactly ``O = Σ exp(Lᵢ − L) · Oᵢ``.
    Its gradient is the kernel's own, camera by camera, with O and L instead of Oᵢ and Lᵢ, as in Ring Attention (Liu et
    al. 2023). The matrix of queries by tokens is never formed, and memory grows with tokens + n · queries. Exported
    graphs, and torch without a fused kernel, form the matrix.

    Letters: a heads, q queries, t tokens of a camera, e width of a head.

    Args:
        queries: queries of every camera.
        keys: keys of its tokens.
        values: values of its tokens.
        present: false for a dropped camera. Its tokens have weight 0 and its gradients are 0, even if it holds NaN. The
            output of a sample without cameras is 0.

    Returns:
        The output of every query, in the dtype of the keys.
    """
    q, k, v = (x.to(keys.dtype) for x in (queries, keys, values))  # autocast does not cast all of them
    if is_exporting() or torch.onnx.is_in_onnx_export():
        return _by_matrix(q, k, v, present)
    width = q.shape[-1]
    if q.device.type == "cuda" and width % 8:  # the kernels require multiples of 8; zeros do not change the result
        q, k, v = (F.pad(x, (0, -width % 8)) for x in (q, k, v))
    kernel = fused_kernel(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
    if kernel is None:
        return _by_matrix(q[..., :width], k[..., :width], v[..., :width], present)
    return JointAttention.apply(q, k, v, present, kernel, width**-0.5)[..., :width]


class JointAttention(torch.autograd.Function):
    """:func:`joint_attention` by a fused kernel that attends to every camera separately."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, kernel: Kernel, scale: float
    ) -> Tensor:
        b, n = q.shape[:2]
        # the logarithms are float32 even if the rest has 16 bits
        views, log_sums, ctx.rest = kernel.forward(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale)
        views, log_sums = views.unflatten(0, (b, n)), log_sums.unflatten(0, (b, n))  # b n a q e, b n a q
        if present is not None:
            absent = ~present[..., None, None]
            views = views.masked_fill(absent[..., None], 0.0)
            log_sums = log_sums.masked_fill(absent, torch.finfo(log_sums.dtype).min)
        log_sum = log_sums.logsumexp(1, keepdim=True)  # b 1 a q
        out = ((log_sums - log_sum).exp().unsqueeze(-1) * views).sum(1).to(q.dtype)
        ctx.save_for_backward(q, k, v, present, out, log_sum)
        ctx.kernel, ctx.scale = kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, present, out, log_sum = ctx.saved_tensors
        b, n = q.shape[:2]
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        grad, out = (
            x.unsqueeze(1).expand(-1, n, -1, -1, -1).flatten(0, 1).contiguous() for x in (grad, out)
        )  # (b n) a q e
        log_sum = log_sum.expand(-1, n, -1, -1).flatten(0, 1).contiguous()  # (b n) a q
        grads = [x.unflatten(0, (b, n)) for x in ctx.kernel.backward(grad, *flat, out, log_sum, ctx.rest, ctx.scale)]
        if present is not None:
            grads = [x.masked_fill(~present[..., None, None, None], 0.0) for x in grads]
        return *grads, None, None, None


def _by_matrix(q: Tensor, k: Tensor, v: Tensor, present: Tensor | None) -> Tensor:
    """Attend by the matrix of queries by tokens, in plain operations."""
    if present is not None:
        v = torch.where(present[..., None, None, None], v, 0.0)
    return joint_matrix(q, k, present).flatten(3) @ v.transpose(1, 2).flatten(2, 3)


def joint_matrix(
    queries: Float[Tensor, "b n a q e"], keys: Float[Tensor, "b n a t e"], present: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b a q n t"]:
    """Return the softmax weights of :func:`joint_attention`; 0 for tokens of dropped cameras."""
    q, k = queries, keys
    if present is not None:
        q, k = (torch.where(present[..., None, None, None], x, 0.0) for x in (q, k))
    logits = (q @ k.mT) * q.shape[-1] ** -0.5  # b n a q t
    if present is not None:
        logits = logits.masked_fill(~present[..., None, None, None], torch.finfo(logits.dtype).min)
    logits = logits.permute(0, 2, 3, 1, 4)  # b a q n t
    weights = logits.flatten(3).softmax(-1).reshape(logits.shape)
    return weights if present is None else torch.where(present[:, None, None, :, None], weights, 0.0)
