"""The shape of a feature map, and the pixels on which its features are centred."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bevreshape.errors import InputError


@dataclass(frozen=True)
class FeatureShape:
    """The feature map that an encoder returns and a reshaper is built for.

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
        """Return the number of features of one camera, h·w."""
        return self.height * self.width

    def pixels(
        self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "h w 2"]:
        """Return the pixel (u, v) of the image on which every feature is centred."""
        v, u = torch.meshgrid(
            torch.arange(self.height, device=device, dtype=torch.float64),
            torch.arange(self.width, device=device, dtype=torch.float64),
            indexing="ij",
        )
        return (torch.stack([u, v], dim=-1) * self.stride + self.offset_px).to(dtype)

    def check_covers(self, image_size: tuple[int, int], who: str) -> None:
        """Raise unless these features can belong to images of (H, W) pixels.

        Raises:
            InputError: if they cannot; the message begins with ``who``.
        """
        # padding and unpadded convolutions make features cover a little more or less than the image
        for cells, pixels in zip((self.height, self.width), image_size, strict=True):
            if abs(cells * self.stride - pixels) > 2 * self.stride:
                raise InputError(
                    f"{who}: features of {self.height}×{self.width} at stride {self.stride} do not cover images of "
                    f"{image_size[0]}×{image_size[1]}; set FeatureShape's stride, or call it with "
                    "cameras.resized(...) to the size that the encoder sees"
                )
