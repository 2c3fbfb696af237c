"""Attention as in the article's equations, shared by several reshapers."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import Count, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.ops.linear import Linear
from bevreshape.reshapers.positional import RotaryEncoding

Kernel = Literal["softmax", "linear"]


@checked
class Attention(nn.Module):
    """``softmax(Q·Kᵀ/√d)·V``, or without softmax and scale ``Q·(KᵀV)``, whose cost is linear in the tokens.

    Q, K and V are projections from the right, ``X·W``, by default without bias. Each head has its own part of the
    channels, and d is the width of a head (Vaswani et al. 2017).

    Args:
        query_width: channels of the queries.
        token_width: channels of the tokens.
        dim: channels of Q, K, V and the output, of all heads together.
        heads: number of heads.
        kernel: ``softmax`` or ``linear``.
        divide_by_tokens: divide the linear kernel's sum by the number of present tokens, so that it does not grow with
            them.
        bias: give the projections a bias, initially 0.
        rotary: rotates Q and K, split into heads, by their positions.

    Raises:
        InputError: if the heads do not divide ``dim``.
    """

    def __init__(
        self,
        query_width: int,
        token_width: int,
        dim: Width,
        heads: Count = 1,
        kernel: Kernel = "softmax",
        divide_by_tokens: bool = True,
        bias: bool = False,
        rotary: RotaryEncoding | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"attention: dim={dim} cannot be divided among heads={heads}; choose a multiple")
        self.heads = heads
        self.kernel = kernel
        self.divide_by_tokens = divide_by_tokens
        self.rotary = rotary
        self.to_q = Linear(query_width, dim, bias)
        self.to_k = Linear(token_width, dim, bias)
        self.to_v = Linear(token_width, dim, bias)
        for projection in (self.to_q, self.to_k, self.to_v):
            nn.init.xavier_uniform_(projection.weight)
            if bias:
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "#b q dq"],
        keys: Float[Tensor, "b t c"],
        values: Float[Tensor, "b t c"],
        present: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend from queries to tokens; ``present`` is false for missing tokens.

        The output of a sample without tokens is 0.
        """
        return self.attend(self.to_q(queries), self.to_k(keys), self.to_v(values), present)

    def attend(
        self,
        q: Float[Tensor, "#b q d"],
        k: Float[Tensor, "b t d"],
        v: Float[Tensor, "b t d"],
        present: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend as :meth:`forward`, from projected Q, K and V."""
        q, k = self._placed(q, k)
        v = self._heads(v)
        if self.kernel == "softmax":
            mask = None if present is None else present[:, None, None]  # b 1 1 t
            out = F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v, attn_mask=mask)
            if mask is not None:  # without tokens, other runtimes return an average or NaN
                out = torch.where(mask.any(-1, keepdim=True), out, 0.0)
        else:
            out = q @ (self._averaging(k, present).mT @ v)
        return rearrange(out, "b a q d -> b q (a d)")

    def matrix(
        self,
        queries: Float[Tensor, "#b q dq"],
        keys: Float[Tensor, "b t c"],
        present: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b a q t"]:
        """Return the attention matrix A of every head; :meth:`forward` is A·V.

        It is 0 for missing tokens. With the linear kernel it may be negative.
        """
        q, k = self._placed(self.to_q(queries), self.to_k(keys))
        if self.kernel == "linear":
            return q @ self._averaging(k, present).mT
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if present is None:
            return scores.softmax(-1)
        there = present[:, None, None]  # b 1 1 t
        scores = scores.masked_fill(~there, torch.finfo(scores.dtype).min)
        return torch.where(there, scores.softmax(-1), 0.0)

    def _placed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return Q and K of every head, rotated by a rotary encoding if any: (b, heads, q, d) and (b, heads, t, d)."""
        q, k = self._heads(q), self._heads(k)
        return (q, k) if self.rotary is None else self.rotary(q, k)

    def _averaging(self, k: Tensor, present: Tensor | None) -> Tensor:
        """Return the linear kernel's K: 0 for missing tokens, divided by the number of present ones."""
        if present is not None:
            k = k * present[:, None, :, None]
        if self.divide_by_tokens:
            # before the product, because it would overflow half precision
            k = k / (k.shape[-2] if present is None else present.sum(1).clamp(min=1)[:, None, None, None])
        return k

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (a d) -> b a t d", a=self.heads)


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between, applied to every token separately."""

    def __init__(self, dim: int, multiple: int) -> None:
        super().__init__(Linear(dim, multiple * dim), nn.GELU(), Linear(multiple * dim, dim))


def present_tokens(cameras: Cameras | None, tokens: int) -> Bool[Tensor, "b nt"] | None:
    """Return which tokens of all cameras, ``tokens`` per camera, are present; ``None`` if all are."""
    if cameras is None or cameras.camera_mask is None:
        return None
    return torch.repeat_interleave(cameras.camera_mask, tokens, dim=1)
