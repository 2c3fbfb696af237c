"""The decoder of CVT: every step doubles the grid, and receives the coarse features again."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le, Len
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import Upsample, Width, checked
from bevreshape.errors import InputError


@checked
class PyramidHead(nn.Module):
    """Decoder of Cross-View Transformers (Zhou and Krähenbühl 2022), for 25×25 → 200×200.

    A step doubles rows and columns bilinearly and applies relu(conv1×1(relu(conv3×3(x))) + conv1×1(coarse features)),
    with normalisation. The original aligns the corners of coarse and fine map, which displaces fine cells by up to half
    a coarse cell at the edges. Here cells share their edges.

    Args:
        in_channels: d of the reshaper.
        out_channels: k.
        widths: output channels of every step, at least 2; inside a step there are half as many.
        upsample: 2 to the power of the number of steps.
        final_channels: width of the last 3×3 convolution.

    Raises:
        InputError: if ``upsample`` does not agree with the number of steps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: Width,
        *,
        widths: Annotated[Sequence[Annotated[int, Ge(2), Le(65_536)]], Len(1)] = (128, 128, 64),
        upsample: Upsample = 8,
        final_channels: Width = 64,
    ) -> None:
        super().__init__()
        if upsample != 2 ** len(widths):
            raise InputError(
                f"upsample={upsample} but widths={list(widths)} double the grid {len(widths)} times; set "
                f"upsample={2 ** len(widths)}, or other widths"
            )
        self.steps = nn.ModuleList(
            Step(own, width, in_channels) for own, width in zip((in_channels, *widths), widths, strict=False)
        )
        self.last = nn.Sequential(
            nn.Conv2d(widths[-1], final_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(final_channels),
            nn.ReLU(),
            nn.Conv2d(final_channels, out_channels, 1),
        )

    def forward(self, bev: Tensor) -> Tensor:
        """Decode (b, d, R, C) → (b, k, R·upsample, C·upsample)."""
        x = bev
        for step in self.steps:
            x = step(x, bev)
        return self.last(x)


class Step(nn.Module):
    """One step of the decoder: twice the rows and columns."""

    def __init__(self, in_channels: int, channels: int, coarse_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.skip = nn.Conv2d(coarse_channels, channels, 1)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Decode (b, c, R, C) and the coarse features → (b, channels, 2·R, 2·C)."""
        fine = self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return (fine + F.interpolate(self.skip(coarse), fine.shape[-2:])).relu()
