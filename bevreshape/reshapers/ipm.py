"""Inverse perspective mapping as a view transformer."""

from torch import Tensor

from bevreshape.geometry import BEVGrid, Cameras, ground_pixels
from bevreshape.geometry.ipm import sample
from bevreshape.reshapers.base import FeatureShape, GeometricReshaper


class IPM(GeometricReshaper):
    """Every cell reads the features where its centre, on the ground, appears (Mallot et al. 1991).

    No parameter: all it knows is the calibration and that the world is flat. A cell seen by several cameras is their
    average, a cell that nobody sees is 0. A feature is read where it is centred, pixel ``stride·j + offset_px``, and
    bilinearly between.

    Args:
        source: the features it will get, with their stride and offset.
        grid: the cells it fills.

    Raises:
        InputError: when the grid has no metres.
    """

    def __init__(self, source: FeatureShape, grid: BEVGrid | tuple[int, int]) -> None:
        super().__init__(source, grid, source.channels)

    def locate(self, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Positions in features, (b, n, R, C, 2), and weights of the cameras, (b, n, R, C)."""
        pixels, seen = ground_pixels(cameras, self.grid)
        return (pixels - self.source.offset_px) / self.source.stride, seen / seen.sum(1, keepdim=True).clamp(min=1)

    def gather(self, features: Tensor, located: tuple[Tensor, Tensor]) -> Tensor:
        positions, weights = located
        views = sample(features, positions.expand(features.shape[0], -1, -1, -1, -1))  # b n c R C
        return (views * weights.unsqueeze(2)).sum(1).to(features.dtype)
