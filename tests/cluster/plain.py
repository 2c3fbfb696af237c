"""A model without batch normalisation, whose gradient does not depend on how a batch is shared by processes."""

from torch import Tensor, nn
from torch.nn.functional import interpolate

from bevreshape.config.options import Upsample
from bevreshape.geometry import FeatureShape


class Patches(nn.Module):
    """Features of patches of 8×8 pixels."""

    def __init__(self, image_size: tuple[int, int], cameras: int, channels: int = 8) -> None:
        super().__init__()
        self.sources = (FeatureShape(channels, image_size[0] // 8, image_size[1] // 8, cameras, 8, 3.5),)
        self.conv = nn.Conv2d(3, channels, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images.flatten(0, 1)).unflatten(0, images.shape[:2]).relu()


class PerCell(nn.Module):
    """Logits of every coarse cell by itself, for all its fine cells."""

    def __init__(self, in_channels: int, out_channels: int, *, upsample: Upsample = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.upsample = upsample

    def forward(self, bev: Tensor) -> Tensor:
        return interpolate(self.conv(bev.relu()), scale_factor=self.upsample)
