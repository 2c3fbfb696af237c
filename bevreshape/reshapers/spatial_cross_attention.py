"""Spatial cross-attention of BEVFormer: queries sample the cameras that see them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.ops.deformable_sampling import FeatureAtlas, sample_pairs
from bevreshape.ops.linear import Linear
from bevreshape.ops.visible_pairs import References


def ring(heads: int, points: int) -> Float[Tensor, "2 heads points"]:
    """Return the heads' initial offsets in features: every head in its own direction, 1 to p features away."""
    angle = torch.arange(heads) * (2 * math.pi / heads)
    way = torch.stack([angle.cos(), angle.sin()])  # 2 heads
    way = way / way.abs().amax(0)
    return way[..., None] * torch.arange(1, points + 1)


class SpatialCrossAttention(nn.Module):
    """``SCA(q) = q + out(1/|V| · Σ_i∈V concat_a Σ_l Σ_p w_alp · V_a F_il(P_i,z(p) + Δ_alp))``.

    The letters are those of :class:`DeformableAttention`.
    """

    def __init__(self, dim: int, heads: int, scales: int, points: int) -> None:
        super().__init__()
        self.shape = 2, heads, scales, points
        self.offsets = nn.Linear(dim, 2 * heads * scales * points)
        self.weights = nn.Linear(dim, heads * scales * points)
        self.value = nn.Linear(dim, dim)
        self.out = Linear(dim, dim)
        for linear in (self.offsets, self.weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.weights, self.value, self.out):
            nn.init.zeros_(linear.bias)
        for linear in (self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(ring(heads, points)[:, :, None].expand(self.shape).flatten())

    def forward(
        self,
        query: Float[Tensor, "#b RC d"],
        position: Float[Tensor, "RC d"] | float,
        tokens: Sequence[tuple[Tensor, Tensor]],
        references: References,
        atlas: FeatureAtlas,
    ) -> Float[Tensor, "b RC d"]:
        values = atlas.pack([self._values(features, embedding) for features, embedding in tokens])
        with torch.autocast(query.device.type, enabled=False):
            exact = references.positions.dtype
            offsets, weights = self._samples(query + position, exact)
            found = sample_pairs(atlas, values.to(exact), offsets, weights, references)
        return query + self.out(found.to(query.dtype))

    def _values(self, tokens: Float[Tensor, "bn t c"], embedding: Tensor) -> Float[Tensor, "bn t d"]:
        """Return ``(tokens + embedding)·V``, with the embedding folded into the bias."""
        bias = F.linear(embedding, self.value.weight, self.value.bias)  # n d
        bias = bias.repeat(tokens.shape[0] // bias.shape[0], 1)[:, None].expand(-1, tokens.shape[1], -1)
        return torch.baddbmm(bias, tokens, self.value.weight.mT.expand(tokens.shape[0], -1, -1))

    def _samples(self, query: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return offsets Δ in features, (#b, RC, 2, K), and weights w that add up to 1 for every head, (#b, RC, K)."""
        heads = self.shape[1]
        offsets, weights = (
            F.linear(query.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))
            for linear in (self.offsets, self.weights)
        )
        # a NaN of diverged training stays visible in the weights; as an index it would end the process
        return offsets.nan_to_num().unflatten(2, (2, -1)), weights.unflatten(2, (heads, -1)).softmax(-1).flatten(2)


class Layer(nn.Module):
    """Spatial cross-attention and a feed-forward, each with its residual and then a norm."""

    def __init__(self, dim: int, heads: int, scales: int, points: int, mlp_ratio: int, attention_only: bool) -> None:
        super().__init__()
        self.attention = SpatialCrossAttention(dim, heads, scales, points)
        self.attention_only = attention_only
        if not attention_only:
            self.norm = nn.LayerNorm(dim)
            self.feedforward = nn.Sequential(Linear(dim, mlp_ratio * dim), nn.ReLU(), Linear(mlp_ratio * dim, dim))
            self.norm_out = nn.LayerNorm(dim)

    def forward(self, query: Tensor, *args: Any) -> Tensor:
        query = self.attention(query, *args)
        if self.attention_only:
            return query
        query = self.norm(query)
        return self.norm_out(query + self.feedforward(query))
