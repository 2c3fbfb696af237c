"""The parts of LaRa: embedded coordinates, and an attention block."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.ops.linear import Linear
from bevreshape.reshapers.attention import Attention, FeedForward


class CoordinateMLP(nn.Module):
    """Two linear layers with a GELU between, from coordinates to channels.

    The first has the precision of the coordinates at every precision of the network: the eight bits of bfloat16 do not
    distinguish the cells of a fine grid.
    """

    def __init__(self, coordinates: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(coordinates, dim)
        self.second = Linear(dim, dim)

    def forward(self, coordinates: Tensor) -> Tensor:
        weight, bias = self.first.weight, self.first.bias
        dtype = torch.promote_types(coordinates.dtype, weight.dtype)
        with torch.autocast(coordinates.device.type, enabled=False):
            hidden = F.linear(coordinates.to(dtype), weight.to(dtype), bias.to(dtype))
        return self.second(F.gelu(hidden).to(weight.dtype))


class Block(nn.Module):
    """Queries attend to tokens and pass through a feed-forward, both with pre-norm.

    Args:
        dim: channels of the queries.
        heads: number of heads.
        token_width: channels of the tokens; ``None`` if the tokens are the queries, which then share one norm.
        scale: initial factor of the residual branches, per channel (LayerScale, Touvron et al. 2021); 0 omits it.
    """

    def __init__(self, dim: int, heads: int, token_width: int | None = None, scale: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_tokens = nn.LayerNorm(token_width) if token_width else None
        self.attention = Attention(dim, token_width or dim, dim, heads, bias=True)
        self.out = Linear(dim, dim)
        self.feedforward = nn.Sequential(nn.LayerNorm(dim), FeedForward(dim, 1))
        self.scales = nn.ParameterList([torch.full((dim,), scale) for _ in range(2)] if scale else [])

    def forward(self, queries: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        return self.feed(queries + self._scaled(0, self.attend(self.project(queries), tokens, present)))

    def project(self, queries: Tensor) -> Tensor:
        """Project queries to Q."""
        return self.attention.to_q(self.norm(queries))

    def attend(self, q: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Attend from Q to the tokens."""
        tokens = (self.norm_tokens or self.norm)(tokens)
        k, v = self.attention.to_k(tokens), self.attention.to_v(tokens)
        return self.out(self.attention.attend(q, k, v, present))

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward with its residual."""
        return x + self._scaled(1, self.feedforward(x))

    def _scaled(self, branch: int, x: Tensor) -> Tensor:
        return x * self.scales[branch] if len(self.scales) else x
