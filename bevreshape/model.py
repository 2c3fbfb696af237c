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
        heads: by name: ``segmentation`` logits (b, k, rows, cols), and the outputs of other heads.
        bev: (b, d, R, C), the features that all heads read.
        auxiliary: weighted losses of the view transformer itself; empty except in training.
    """

    heads: dict[str, Tensor]
    bev: Tensor
    auxiliary: dict[str, Tensor]

    def total(self) -> Tensor:
        """Return a scalar that depends on every output that losses read."""
        return sum((loss for loss in self.auxiliary.values()), start=sum(head.sum() for head in self.heads.values()))  # type: ignore[return-value]


class BEVModel(nn.Module):
    """Map camera images to the heads' outputs in the bird's-eye view.

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

    def forward(
        self, images: Float[Tensor, "b n 3 H W"], cameras: Cameras | None = None, located: Any = None
    ) -> Outputs:
        """Map images in 0..1 to outputs; a reshaper without geometry or with a fixed rig needs no cameras.

        Args:
            images: of all cameras.
            cameras: their calibration.
            located: its geometry, if all samples have the same rig, see :meth:`GeometricReshaper.forward_located`.
        """
        return self.decode(self.encoder(images), cameras, located=located)

    def decode(
        self, features: Any, cameras: Cameras | None = None, reshaper: nn.Module | None = None, located: Any = None
    ) -> Outputs:
        """Return the outputs for features (b, n, c, h, w); ``reshaper`` replaces the view transformer."""
        reshaper = self.reshaper if reshaper is None else reshaper
        auxiliary: dict[str, Tensor] = {}
        if located is not None:
            bev = reshaper.forward_located(features, cameras, located)  # type: ignore[operator]
        elif self.training and isinstance(reshaper, Reshaper):
            bev, auxiliary = reshaper.forward_with_auxiliary(features, cameras)
        else:
            bev = reshaper(features, cameras)  # b d R C
        return Outputs({name: head(bev) for name, head in self.heads.items()}, bev, auxiliary)
