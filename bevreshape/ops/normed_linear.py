"""``W · LayerNorm(x) + b`` without forming x, for x a linear map of narrower tokens, or a sum with one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.ops.linear import linear


class NormedLinear(nn.Module):
    """``W · LayerNorm(x) + b``; x is formed only if that is cheaper.

    Args:
        dim: d, width of x.
        out: width of the result.
        bias: add b.
    """

    def __init__(self, dim: int, out: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, out, bias=bias)

    def of_embedded(self, tokens: Float[Tensor, "p t k"], embed: Float[Tensor, "d k"]) -> Float[Tensor, "p t out"]:
        """Return the result for ``x = E·z`` of tokens z, without forming x if it is wider than z.

        P subtracts the mean. Then ``LayerNorm(x)`` is ``g · PEz / √(zᵀ(PE)ᵀ(PE)z/d + ε) + h``: all but the square root
        is linear, and is multiplied into one matrix.
        """
        wide = tokens.dtype
        with torch.autocast(tokens.device.type, enabled=False):
            centred = embed - embed.mean(0)
            weight, bias = self._without_norm(wide)
            if embed.shape[1] < len(embed):
                gram = centred.mT @ centred / len(embed)  # k k
                variance = (tokens * linear(tokens, gram)).sum(-1, keepdim=True).clamp(min=0)  # p t 1
                weight = weight @ centred
            else:
                tokens = linear(tokens, centred)  # p t d
                variance = tokens.square().mean(-1, keepdim=True)
            tokens = tokens * torch.rsqrt(variance + self.norm.eps)
        narrow = self.linear.weight.dtype
        return linear(tokens.to(narrow), weight.to(narrow), bias.to(narrow))

    def of_sum(
        self, cells: Float[Tensor, "b q d"], seen: Float[Tensor, "#b n k1 q"], embed: Float[Tensor, "d k"]
    ) -> Float[Tensor, "b n q out"]:
        """Return the result for ``x = cells + E·z`` in n cameras, with one wide product for all cameras.

        In ``√(|Px|²/d + ε)`` as above, ``|Px|² = |P·cells|² + 2·zᵀ(PE)ᵀP·cells + |PEz|²``.

        Args:
            cells: the same for all cameras.
            seen: z followed by ``|PEz|²``. The latter is passed in because E·z may be small where z is large.
            embed: E.
        """
        wide = torch.promote_types(cells.dtype, torch.float32)
        narrow = self.linear.weight.dtype
        with torch.autocast(cells.device.type, enabled=False):
            cells, seen, embed = (x.to(wide) for x in (cells, seen, embed))
            cells = cells - cells.mean(-1, keepdim=True)
            centred = embed - embed.mean(0)
            z, spread = seen[:, :, :-1], seen[:, :, -1]  # b n k q, b n q
            cross = (cells @ (2 * centred)).mT.unsqueeze(1)  # b 1 k q
            square = cells.square().sum(-1).unsqueeze(1) + (z * cross).sum(2) + spread
            scale = torch.rsqrt(square.clamp(min=0) / len(embed) + self.norm.eps).unsqueeze(-1)  # b n q 1
            weight, bias = self._without_norm(wide)
        shared = linear(cells.to(narrow), weight.to(narrow)).unsqueeze(1)  # b 1 q out
        with torch.autocast(cells.device.type, enabled=False):
            own = torch.cat([z.mT * scale, torch.ones_like(scale)], dim=-1).flatten(0, 1)  # bn q k+1
            factor = torch.cat([weight @ centred, bias[:, None]], dim=1).mT.expand(own.shape[0], -1, -1)
            out = torch.baddbmm((scale * shared.to(wide)).flatten(0, 1), own, factor)
        return out.unflatten(0, scale.shape[:2]).to(shared.dtype)

    def _without_norm(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return W and b with the norm's gain and bias multiplied in."""
        gain, shift, weight = (x.to(dtype) for x in (self.norm.weight, self.norm.bias, self.linear.weight))
        bias = weight @ shift
        return weight * gain, bias if self.linear.bias is None else bias + self.linear.bias.to(dtype)
