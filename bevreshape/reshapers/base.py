"""The contract of a view transformer: ``reshaper(features, cameras) -> bev``."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras


@dataclass(frozen=True)
class FeatureShape:
    """What an encoder delivers and a reshaper is built for.

    Attributes:
        channels: c.
        height: h, rows of the feature map.
        width: w, columns of the feature map.
        cameras: n.
        stride: pixels between the centres of neighbouring features.
        offset_px: pixel on which feature 0 is centred; feature j is centred on pixel ``stride·j + offset_px``.
    """

    channels: int
    height: int
    width: int
    cameras: int = 1
    stride: int = 1
    offset_px: float = 0.0

    @property
    def tokens(self) -> int:
        """Features of one camera, h·w."""
        return self.height * self.width


class Reshaper(nn.Module):
    """Base of all view transformers: knows its source and its target, compares them with what it is given.

    A subclass implements :meth:`reshape` on ``(b, n, c, h, w)``. Reshapers that use no geometry are also plain adapters
    for any h×w → R×C on ``(b, c, h, w)``, with no camera.

    Args:
        source: the features it will get.
        grid: the cells it fills, or just (R, C) for a plain adapter that knows no metres.
        out_channels: d.

    Raises:
        InputError: when a geometric reshaper is given (R, C) in place of a grid.
    """

    needs_cameras: ClassVar[bool] = False
    """Whether it reads the calibration; then ``cameras`` must be given and ``grid`` be a :class:`BEVGrid`."""

    def __init__(self, source: FeatureShape, grid: BEVGrid | tuple[int, int], out_channels: int) -> None:
        super().__init__()
        if self.needs_cameras and not isinstance(grid, BEVGrid):
            raise InputError(
                f"{self.name}: the target is {grid} cells without metres; pass a BEVGrid, it projects them"
            )
        self.source = source
        self.grid = grid
        self.out_channels = out_channels

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    @property
    def target_shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.grid.shape if isinstance(self.grid, BEVGrid) else (self.grid[0], self.grid[1])

    def forward(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"],
        cameras: Cameras | None = None,
    ) -> Float[Tensor, "b d R C"]:
        """Turn camera features into a bird's-eye view.

        Args:
            features: (b, n, c, h, w), or (b, c, h, w) for one camera.
            cameras: the calibration, of the full-size pictures; may be left out where it is not read.

        Returns:
            (b, d, R, C).

        Raises:
            InputError: when the features are not what this was built for, or a needed calibration is missing.
        """
        if features.ndim == 4:
            features = features.unsqueeze(1)
        built = self.source
        if tuple(features.shape[1:]) != (built.cameras, built.channels, built.height, built.width):
            n, c, h, w = features.shape[1:]
            raise InputError(
                f"{self.name}: features are {n} cameras × {c} channels × {h}×{w} but it was built for {built.cameras} × "
                f"{built.channels} × {built.height}×{built.width}; rebuild it with source=FeatureShape(channels={c}, "
                f"height={h}, width={w}, cameras={n}), or change the encoder's stride"
            )
        if cameras is None and self.needs_cameras:
            raise InputError(
                f"{self.name}: it projects through the calibration; call it as reshaper(features, cameras)"
            )
        if cameras is not None and cameras.intrinsics.shape[:2] != features.shape[:2]:
            raise InputError(
                f"{self.name}: features are of {tuple(features.shape[:2])} (batch, cameras) but the calibration is of "
                f"{cameras.batch_shape}; give every picture its camera"
            )
        if cameras is not None and self.needs_cameras:
            self._compare_with_pictures(cameras)
        return self.reshape(features, cameras)

    def _compare_with_pictures(self, cameras: Cameras) -> None:
        # padding and unpadded convolutions make features cover a little more or less than the picture
        built = self.source
        for cells, pixels in zip((built.height, built.width), cameras.image_size, strict=True):
            if abs(cells * built.stride - pixels) > max(built.stride, pixels / 4):
                raise InputError(
                    f"{self.name}: features of {built.height}×{built.width} at stride {built.stride} do not cover pictures "
                    f"of {cameras.image_size[0]}×{cameras.image_size[1]}; set FeatureShape's stride, or call it with "
                    "cameras.resized(...) to the size that the encoder sees"
                )

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        """(b, n, c, h, w) → (b, d, R, C), sizes already compared."""
        raise NotImplementedError


def present_weights(features: Tensor, cameras: Cameras | None) -> Tensor:
    """(b, n) weights that average over the cameras that are there; all cameras when no mask is given."""
    b, n = features.shape[:2]
    if cameras is None or cameras.mask is None:
        return features.new_full((b, n), 1.0 / n)
    present = cameras.mask.to(features.dtype)
    return present / present.sum(1, keepdim=True).clamp(min=1)


def average_views(views: Tensor, cameras: Cameras | None) -> Tensor:
    """(b, n, d, R, C) → (b, d, R, C), averaged over the cameras that are there."""
    return torch.einsum("bndrc,bn->bdrc", views, present_weights(views, cameras))
