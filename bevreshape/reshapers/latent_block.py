"""The parts of LaRa: embedded coordinates, and an attention block."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.ops.linear import Linear
from bevreshape.reshapers.attention import Attention, FeedForward


class CoordinateMLP(nn.Module):
    """Two linear layers with a GELU between, from coordinates to channels.

    The first works at the precision of the coordinates, whatever that of the network: eight bits do not tell the cells
    of a fine grid apart.
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
    """Queries attend to tokens, then every one of them goes through a feed-forward; norms come first.

    Args:
        dim: channels of the queries.
        heads: of the attention.
        token_width: channels of the tokens; ``None`` where the tokens are the queries, which share one norm.
        scale: what the residual branches are multiplied by at the start, channel by channel (LayerScale, Touvron et al.
            2021); 0 leaves the multiplication out.
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
        return self.think(queries + self._scaled(0, self.answer(self.ask(queries), tokens, present)))

    def ask(self, queries: Tensor) -> Tensor:
        """Q, which needs no tokens."""
        return self.attention.to_q(self.norm(queries))

    def answer(self, q: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """What Q gathers from the tokens."""
        tokens = (self.norm_tokens or self.norm)(tokens)
        k, v = self.attention.to_k(tokens), self.attention.to_v(tokens)
        return self.out(self.attention.attend(q, k, v, present))

    def think(self, x: Tensor) -> Tensor:
        """The feed-forward with its residual."""
        return x + self._scaled(1, self.feedforward(x))

    def _scaled(self, branch: int, x: Tensor) -> Tensor:
        return x * self.scales[branch] if len(self.scales) else x
