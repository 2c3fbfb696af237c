"""Inverse perspective mapping as a view transformer."""

from einops import rearrange
from torch import Tensor

from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.sampling import Positions, Taps, project_points, sample_features
from bevreshape.reshapers.base import GeometricReshaper


class IPM(GeometricReshaper):
    """Every cell samples the features at the projection of its centre on the ground (Mallot et al. 1991).

    It has no parameters and assumes a flat world. A cell seen by several cameras is their average; a cell that no
    camera sees is 0. Feature j is centred on pixel ``stride·j + offset_px``, with bilinear interpolation between.

    Can it reproduce X at a cell that observes exactly one token? Yes, the cell is that token.

    Args:
        source: the shape of its features, with their stride and offset.
        grid: the cells it fills.

    Raises:
        InputError: if the grid has no metres.
    """

    def __init__(self, source: FeatureShape, grid: BEVGrid | tuple[int, int]) -> None:
        super().__init__(source, grid, source.channels)

    def locate(self, cameras: Cameras) -> Taps | Positions:
        """Project the cells' centres into the cameras that see them."""
        return project_points(cameras, self.grid, (0.0,), self.source)

    def gather(self, features: Tensor, located: Taps | Positions) -> Tensor:
        cells = sample_features(features, located).to(features.dtype)
        return rearrange(cells, "b (R C) c -> b c R C", R=self.grid.rows)
