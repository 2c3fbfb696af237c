"""The fully connected view transformer."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers.base import FeatureShape, Reshaper

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "none": nn.Identity(),
}


class TokenLinear(nn.Module):
    """``W·X + b`` over tokens, one W a group: (g, m, tokens) → (g, m, cells).

    With X stored channels first, as pictures are, W multiplies from the left without a transpose.
    """

    def __init__(self, groups: int, tokens: int, cells: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, cells, tokens))
        self.bias = nn.Parameter(torch.zeros(groups, 1, cells))
        nn.init.normal_(self.weight, std=gain / math.sqrt(tokens))  # gain 1 keeps the variance

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight.mT)


class MLP(Reshaper):
    """``O = σ(W·X + b)``, W of size RC × hw, from every token to every cell, the same for all channels.

    After View Parsing Network (Pan et al. 2020) and HDMapNet (Li et al. 2022), which have hidden layers, each followed
    by σ. W is fixed after training: it holds one view of the world, needs no positional encoding and no calibration.

    Args:
        source: the features it will get.
        grid: the cells it fills, or (R, C).
        hidden: tokens of the hidden layers; none gives the single layer.
        channels: d, by a linear projection of the channels before W, ``O = σ(W·(X·P) + b)``; ``None`` keeps c.
        activation: σ, one of relu, gelu, tanh, none.
        views: ``per_view`` gives every camera its own layers and sums their outputs (VPN), a dropped camera left out
            of the sum; ``joint`` gives all cameras' tokens to one W, a dropped camera's as zeros.

    Raises:
        InputError: an unknown activation or rule for views.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        hidden: Sequence[int] = (),
        channels: int | None = None,
        activation: str = "relu",
        views: str = "per_view",
    ) -> None:
        super().__init__(source, grid, channels or source.channels)
        if activation not in ACTIVATIONS:
            raise InputError(f"MLP: there is no activation={activation}; {suggest(activation, ACTIVATIONS)}")
        if views not in ("per_view", "joint"):
            raise InputError(f"MLP: there is no views={views}; {suggest(views, ('per_view', 'joint'))}")
        rows, cols = self.target_shape
        self.joint = views == "joint"
        self.activation = ACTIVATIONS[activation]
        self.project = nn.Conv2d(source.channels, channels, 1, bias=False) if channels else nn.Identity()
        groups, tokens = (1, source.cameras * source.tokens) if self.joint else (source.cameras, source.tokens)
        widths = [tokens, *hidden, rows * cols]
        # hidden layers need random features, but in the last one what W draws stays as noise beside what it learns
        gains = [1.0] * len(hidden) + [0.1]
        self.layers = nn.ModuleList(
            TokenLinear(groups, *pair, gain) for pair, gain in zip(pairwise(widths), gains, strict=True)
        )

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        b, n = features.shape[:2]
        if cameras is not None and cameras.mask is not None:
            present = cameras.mask.to(features.dtype)[..., None, None]  # b n 1 1
        else:
            present = None
        x = self.project(features.flatten(0, 1))  # (b n) d h w
        x = rearrange(x, "(b n) d h w -> b n d (h w)", n=n)
        if self.joint:
            x = x if present is None else x * present
            x = rearrange(x, "b n d t -> 1 (b d) (n t)")
        else:
            x = rearrange(x, "b n d t -> n (b d) t")
        for layer in self.layers:
            x = self.activation(layer(x))  # g (b d) cells
        x = rearrange(x, "g (b d) cells -> b g d cells", b=b)
        x = x if self.joint or present is None else x * present
        x = x.sum(1) if x.shape[1] > 1 else x.squeeze(1)  # a sum over one would copy
        return x.unflatten(-1, self.target_shape)
