"""The whole network, in two lines: ``bev = reshaper(encoder(images), cameras)``, ``{name: head(bev)}``."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.geometry import Cameras
from bevreshape.reshapers import Reshaper


class Outputs(NamedTuple):
    """What a model returns.

    Attributes:
        heads: by name: ``segmentation`` logits (b, k, rows, cols), and what other heads make.
        bev: (b, d, R, C), the features that all heads read.
        auxiliary: losses that the view transformer brings itself, weighted; empty but in training.
    """

    heads: dict[str, Tensor]
    bev: Tensor
    auxiliary: dict[str, Tensor]

    def total(self) -> Tensor:
        """A number that depends on all that losses read."""
        return sum((loss for loss in self.auxiliary.values()), start=sum(head.sum() for head in self.heads.values()))  # type: ignore[return-value]


class BEVModel(nn.Module):
    """Camera images to what heads make of the bird's-eye view.

    Args:
        encoder: (b, n, 3, H, W) → (b, n, c, h, w).
        reshaper: the view transformer, (features, cameras) → (b, d, R, C).
        heads: by name, (b, d, R, C) → (b, k, rows, cols).
    """

    def __init__(self, encoder: nn.Module, reshaper: nn.Module, heads: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
        super().__init__()
        self.encoder = encoder
        self.reshaper = reshaper
        self.heads = nn.ModuleDict(dict(heads.items()))

    def forward(self, images: Float[Tensor, "b n 3 H W"], cameras: Cameras | None = None) -> Outputs:
        """Images in 0..1 to outputs; the cameras may be left out where a reshaper reads none or has a fixed rig."""
        return self.decode(self.encoder(images), cameras)

    def decode(self, features: Any, cameras: Cameras | None = None, reshaper: nn.Module | None = None) -> Outputs:
        """Outputs of features (b, n, c, h, w), by another view transformer where one is given."""
        reshaper = self.reshaper if reshaper is None else reshaper
        auxiliary: dict[str, Tensor] = {}
        if self.training and isinstance(reshaper, Reshaper):
            bev, auxiliary = reshaper.forward_with_auxiliary(features, cameras)
        else:
            bev = reshaper(features, cameras)  # b d R C
        return Outputs({name: head(bev) for name, head in self.heads.items()}, bev, auxiliary)
