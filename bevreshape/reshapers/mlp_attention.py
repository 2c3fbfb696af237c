"""An MLP from the image to the bird's-eye view and back, and hard attention from cells to tokens."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import Weight, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.linear import Linear
from bevreshape.reshapers.base import Reshaper, average_views, present_weights

RENAMED = {
    "transform_module.fc_transform.": "transform.",
    "retransform_module.fc_transform.": "retransform.",
    "query_conv.": "to_q.",
    "key_conv.": "to_k.",
    "value_conv.": "to_v.",
    "f_conv.": "fuse.",
}
"""The published modules' names, and the names here."""

UNUSED = ("res_conv.", "epoch")
"""Entries of published checkpoints that no output depends on."""


class TokenMLP(nn.Sequential):
    """``relu(W₂·relu(W₁·X + b₁) + b₂)`` over tokens, the same for all channels: (..., tokens) → (..., cells)."""

    def __init__(self, tokens: int, hidden: int, cells: int) -> None:
        super().__init__(Linear(tokens, hidden), nn.ReLU(), Linear(hidden, cells), nn.ReLU())


def cycle_loss(
    again: Float[Tensor, "z c t"], x: Float[Tensor, "z c t"], weights: Float[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Return the mean of \\|X − X''\\| over the present cameras: the reconstruction error of the cycle.

    Args:
        again: X'', z = b·n.
        x: X.
        weights: weights of the cameras; their sum is 1.
    """
    missed = F.l1_loss(again, x, reduction="none").mean((1, 2))  # z
    return (missed * weights.flatten()).sum() / len(weights)


@checked
class MLPAttention(Reshaper):
    """An MLP predicts the bird's-eye view, another reconstructs the image, and hard attention compares them (PYVA).

    Projecting Your View Attentively (Yang et al., CVPR 2021). For a camera's features X, (c, h·w)::

        X'  = MLP(X)                                    c × RC, the bird's-eye view
        X'' = MLP'(X')                                  c × hw, the reconstructed image
        Q, K, V = 1×1 convolutions of X', X, X''        Q and K of c/8 channels
        S_j, i_j = max, argmax over tokens i of K_i·Q_j     for every cell j
        T_j = V at i_j
        O   = X' + conv3×3([X', T]) ⊙ S                 c × RC

    All cameras share these weights, and the result is averaged over the present cameras. X'' ends in a relu, so X
    should too.

    Training adds the error of the cycle X → X'': ``cycle_weight`` times :func:`cycle_loss`. The authors also supervise
    X' through a separate head, which is not done here.

    Differences from the original:

    - Any h×w becomes any R×C. Theirs are one square.
    - The result is added to X' and convolved with it, since S and T belong to its cells. The published code uses X,
      whose token of the same index observes something else. ``residual="image"`` does the same, for h×w = R×C.
    - The relevance K·Q is used only for its largest entry, and the gradient passes through that entry alone, as for a
      maximum. No matrix of tokens × cells is kept for the backward pass.

    Can it reproduce X at a cell that observes exactly one token? Yes where X is not negative, through X'; the relu
    of the original removes the rest.

    Args:
        source: the shape of its features.
        grid: the cells it fills, or (R, C).
        hidden: tokens of the hidden layers; ``None``, as published, for those of the outputs: R·C forward, h·w back.
        residual: ``bev`` or ``image``, see above.
        cycle_weight: weight of the cycle's error in the loss; the authors' is 0.001.

    Raises:
        InputError: if the residual is unknown, the weight is negative, or h×w is not R×C for ``residual="image"``.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        hidden: Width | None = None,
        residual: Literal["bev", "image"] = "bev",
        cycle_weight: Weight = 0.001,
    ) -> None:
        super().__init__(source, grid, source.channels)
        rows, cols = self.target_shape
        if residual == "image" and (source.height, source.width) != (rows, cols):
            raise InputError(
                f"MLPAttention: residual=image adds features of {source.height}×{source.width} to {rows}×{cols} cells; "
                "make them the same size, or set residual=bev"
            )
        self.cycle_weight = cycle_weight
        self.residual = residual
        channels, tokens, cells = source.channels, source.tokens, rows * cols
        narrow = max(1, channels // 8)
        self.transform = TokenMLP(tokens, hidden or cells, cells)
        self.retransform = TokenMLP(cells, hidden or tokens, tokens)
        self.to_q = nn.Conv2d(channels, narrow, 1)
        self.to_k = nn.Conv2d(channels, narrow, 1)
        self.to_v = nn.Conv2d(channels, channels, 1)
        self.fuse = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        return self.cycle(features, cameras)[0]

    def forward_with_auxiliary(self, features: Any, cameras: Cameras | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        (given,) = self.checked(features, cameras)
        bev, x, again = self.cycle(given, cameras)
        if not self.cycle_weight:
            return bev, {}
        return bev, {"cycle": self.cycle_weight * cycle_loss(again, x, present_weights(given, cameras))}

    def cycle(
        self, features: Float[Tensor, "b n c h w"], cameras: Cameras | None
    ) -> tuple[Float[Tensor, "b c R C"], Float[Tensor, "z c t"], Float[Tensor, "z c t"]]:
        """Return the bird's-eye view, X and X''."""
        b = features.shape[0]
        x = rearrange(features, "b n c h w -> (b n) c (h w)")
        bev = self.transform(x)  # z c RC, z = b·n
        q = _project(self.to_q, bev)  # z c/8 RC
        k = _project(self.to_k, x)  # z c/8 hw
        chosen = (q.detach().mT @ k.detach()).argmax(-1)  # z RC
        score = (q * _gather(k, chosen)).sum(1)  # z RC
        again = self.retransform(bev)  # z c hw
        found = _gather(_project(self.to_v, again), chosen)  # z c RC
        base = x if self.residual == "image" else bev
        out = self.fuse(torch.cat([base, found], 1).unflatten(2, self.target_shape))  # z c R C
        out = torch.addcmul(
            base.unflatten(2, self.target_shape), out, score.unflatten(1, self.target_shape).unsqueeze(1)
        )
        return average_views(out.unflatten(0, (b, -1)), cameras), x, again

    @torch.no_grad()
    def load_original(self, state_dict: Mapping[str, Any]) -> "MLPAttention":
        """Load the weights of the published ``CycledViewProjection`` and ``CrossViewTransformer``.

        Built with ``residual="image"`` this gives their output, ``transformer(x, *projection(x))``.

        Args:
            state_dict: of both, ``{**projection.state_dict(), **transformer.state_dict()}``: the keys
                ``transform_module.…`` and ``retransform_module.…`` of the first, ``query_conv.…``, ``key_conv.…``,
                ``value_conv.…`` and ``f_conv.…`` of the second. The unused ``res_conv.…`` and the ``epoch`` of their
                checkpoints are skipped.

        Raises:
            InputError: if weights are missing, left over or of another size.
        """
        given = {}
        for key, value in state_dict.items():
            if not key.startswith(UNUSED):
                prefix = next((prefix for prefix in RENAMED if key.startswith(prefix)), "")
                given[RENAMED.get(prefix, "original ") + key.removeprefix(prefix)] = value
        self.check_original(given, "give both modules' weights together, and build it for the same features and cells")
        self.load_state_dict(given)
        return self


def _project(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1×1 convolution to tokens, (z, c, tokens), as a matrix product."""
    assert conv.bias is not None
    return torch.baddbmm(conv.bias[:, None], conv.weight.flatten(1).expand(x.shape[0], -1, -1), x)


def _gather(x: Float[Tensor, "z c t"], chosen: Tensor) -> Float[Tensor, "z c j"]:
    """Gather the chosen tokens of every channel."""
    return x.gather(2, chosen.unsqueeze(1).expand(-1, x.shape[1], -1))
