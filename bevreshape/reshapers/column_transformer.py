"""The transformer of Translating Images into Maps: tokens of a column → bins of its ray."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.ops.linear import Linear, linear


class Heads(nn.Module):
    """``softmax(Q·Kᵀ/√d)·V·Wo + bo`` per head, with Q, K and V projected with biases (Vaswani et al. 2017)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        nn.init.zeros_(self.to_qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (b or 1, t, d), (b, s, d) and (b, s, d) → (b, t, d)."""
        weight, bias, d = self.to_qkv.weight, self.to_qkv.bias, q.shape[-1]
        if q is k:
            q, k = linear(q, weight[: 2 * d], bias[: 2 * d]).chunk(2, dim=-1)
        else:
            q = linear(q, weight[:d], bias[:d]).expand(k.shape[0], -1, -1)
            k = linear(k, weight[d : 2 * d], bias[d : 2 * d])
        v = linear(v, weight[2 * d :], bias[2 * d :])
        q, k, v = (rearrange(x, "b t (a d) -> b a t d", a=self.heads) for x in (q, k, v))
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b a t d -> b t (a d)"))


class EncoderLayer(nn.Module):
    """Self-attention of a column's tokens and a feed-forward, each with a residual and then a norm."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.attention = Heads(dim, heads)
        self.feedforward = nn.Sequential(Linear(dim, width), nn.ReLU(), Linear(width, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        placed = x + place
        x = self.norms[0](x + self.attention(placed, placed, x))
        return self.norms[1](x + self.feedforward(x))


class DecoderLayer(nn.Module):
    """Self-attention of a ray's queries, attention to the column, feed-forward, each with a residual and a norm."""

    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.self_attention = Heads(dim, heads)
        self.cross_attention = Heads(dim, heads)
        self.feedforward = nn.Sequential(Linear(dim, width), nn.ReLU(), Linear(width, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        placed = x + query
        x = self.norms[0](x + self.self_attention(placed, placed, x))
        x = self.norms[1](x + self.cross_attention(x + query, keys, values))
        return self.norms[2](x + self.feedforward(x))


class ColumnTransformer(nn.Module):
    """One scale: an encoder and a decoder map every column's tokens to its ray's bins.

    Args:
        dim: d, channels of the features.
        rows: h, tokens of a column.
        bins: number of depth bins, the queries of a ray.
        heads: number of heads of every attention.
        layers: numbers of layers of encoder and decoder.
        width: width of the feed-forwards.
        encoding: ``published`` or ``sincos``.
    """

    row_wave: Tensor
    bin_wave: Tensor

    def __init__(
        self, dim: int, rows: int, bins: int, heads: int, layers: tuple[int, int], width: int, encoding: str
    ) -> None:
        super().__init__()
        self.published = encoding == "published"
        self.encoder = nn.ModuleList(EncoderLayer(dim, heads, width) for _ in range(layers[0]))
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, width) for _ in range(layers[1]))
        self.norm = nn.LayerNorm(dim)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.query = nn.Parameter(torch.randn(bins, dim))
        self.register_buffer("row_wave", sequence_wave(rows, dim, self.published), persistent=False)
        self.register_buffer("bin_wave", sequence_wave(bins, dim, self.published), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Translate b columns (b, h, d) → (b, bins, d)."""
        place = x + self.row_wave if self.published else self.row_wave
        for encode in self.encoder:
            x = encode(x, place)
        keys, query = x + place, self.query
        bev = self.bin_wave[None]  # the same for all columns until it attends to them
        for decode in self.decoder:
            bev = decode(bev, query, keys, x)
        return self.norm(bev)


def sequence_wave(count: int, channels: int, sines_only: bool) -> Tensor:
    """Return (count, channels): alternating ``sin(i·ω)`` and ``cos(i·ω)`` for i = 0, 1, ... (Vaswani et al. 2017).

    Pair m has ω = 10000^(-2m/channels). ``sines_only`` uses the sine instead of the cosine, too.
    """
    omega = torch.exp(torch.arange(0, channels, 2).double() * (-math.log(10000.0) / channels))
    phase = torch.arange(count).double()[:, None] * omega  # count pairs
    pair = [phase.sin(), phase.sin() if sines_only else phase.cos()]
    return torch.stack(pair, dim=-1).flatten(1).float()
