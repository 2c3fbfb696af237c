"""The whole network, in one line: ``head(reshaper(encoder(images), cameras))``."""

from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.geometry import Cameras


class BEVModel(nn.Module):
    """Camera images to class logits on the BEV grid.

    Args:
        encoder: (b, n, 3, H, W) → (b, n, c, h, w).
        reshaper: the view transformer, (features, cameras) → (b, d, R, C).
        head: (b, d, R, C) → (b, k, rows, cols).
    """

    def __init__(self, encoder: nn.Module, reshaper: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.reshaper = reshaper
        self.head = head

    def forward(
        self, images: Float[Tensor, "b n 3 H W"], cameras: Cameras | None = None
    ) -> Float[Tensor, "b k rows cols"]:
        """Images in 0..1 to logits; the cameras may be left out where a reshaper reads none or has a fixed rig."""
        features = self.encoder(images)  # b n c h w
        bev = self.reshaper(features, cameras)  # b d R C
        return self.head(bev)  # b k rows cols
