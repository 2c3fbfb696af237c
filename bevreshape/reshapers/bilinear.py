"""Bilinear sampling of a volume, as in Simple-BEV."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers.base import FeatureShape, GeometricReshaper
from bevreshape.reshapers.reading import look, read, tabulate


class Bilinear(GeometricReshaper):
    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        heights: int = 8,
        height_m: Sequence[float | int] = (-1.0, 3.0),
        compress: bool = True,
        channels: int | None = None,
    ) -> None:
        super().__init__(source, grid, channels or source.channels)
        self.heights = heights
        low, high = height_m
        self.height_m = tuple(low + (i + 0.5) * (high - low) / heights for i in range(heights))
        self.compress = nn.Sequential(
            nn.Conv2d(heights * source.channels, self.out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(self.out_channels),
            nn.GELU(),
        )

    def locate(self, cameras: Cameras) -> tuple[Tensor, ...]:
        return look(cameras, self.grid, self.height_m, self.source)

    def gather(self, features: Tensor, located: tuple[Tensor, ...]) -> Tensor:
        voxels = read(features, located).to(features.dtype)
        return self.compress(rearrange(voxels, "b (R C k) c -> b (k c) R C", R=self.grid.rows, k=self.heights))
