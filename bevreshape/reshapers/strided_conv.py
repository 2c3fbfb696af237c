"""A convolution whose stride changes the size."""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import Width, checked
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.reshapers.base import Reshaper, average_views


@checked
class StridedConv(Reshaper):
    """A learned convolution with kernel = stride = (h/R, w/C), even or uneven.

    If R and C do not divide h and w, or exceed them, the features are first resized bilinearly to the nearest integer
    multiple (≥ 1) of R×C. Every size works, and the whole image is covered. All cameras share the convolution, and the
    present cameras are averaged.

    Can it reproduce X at a cell that observes exactly one token? Yes, the convolution is linear.

    Args:
        source: the shape of its features.
        grid: the cells it fills, or (R, C).
        channels: d; ``None`` keeps c.

    Raises:
        InputError: if ``channels`` is 0.
    """

    def __init__(self, source: FeatureShape, grid: BEVGrid | tuple[int, int], *, channels: Width | None = None) -> None:
        super().__init__(source, grid, source.channels if channels is None else channels)
        rows, cols = self.target_shape
        stride = max(1, round(source.height / rows)), max(1, round(source.width / cols))
        self.size = rows * stride[0], cols * stride[1]
        self.conv = nn.Conv2d(source.channels, self.out_channels, stride, stride)

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        x = rearrange(features, "b n c h w -> (b n) c h w")
        if tuple(x.shape[-2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return average_views(rearrange(self.conv(x), "(b n) d R C -> b n d R C", n=features.shape[1]), cameras)
