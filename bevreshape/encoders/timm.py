"""Image encoders of timm, by name, truncated after the deepest wanted stride."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le, Len
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.config.options import Count, Width, checked
from bevreshape.encoders.feature_centers import measure, offset_px_of
from bevreshape.encoders.trunk import Size, build_trunk, cut_trunk, tap
from bevreshape.errors import InputError
from bevreshape.geometry import FeatureShape

Offset = Annotated[float, Ge(-1024), Le(1024)]
"""Pixel on which a feature is centred."""


@checked
class TimmEncoder(nn.Module):
    """Features of every camera at the wanted strides, projected to one width by a 1×1 neck.

    It includes image normalisation, with the model's own mean and standard deviation.

    Args:
        name: any of ``timm.list_models()`` with spatial features.
        image_size: (H, W) of the images, in pixels.
        cameras: n.
        strides: pixels between neighbouring features, one value per scale.
        channels: c, of every scale.
        pretrained: load the published weights; needs the network once.
        offset_px: pixel on which feature 0 is centred, one number per stride. By default it is derived from the strided
            layers. Where these do not explain the features (Swin, Hiera), it is the centre of the input's gradient.

    Raises:
        InputError: if the name or a stride is unknown, the weights are not available, the model does not accept the
            image size, or an offset cannot be determined.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "mobilenetv4_conv_small",
        *,
        image_size: Sequence[int],
        cameras: int,
        strides: Annotated[Sequence[Count], Len(1)] = (8,),
        channels: Width = 64,
        pretrained: bool = False,
        offset_px: Offset | Sequence[Offset] | None = None,
    ) -> None:
        super().__init__()
        self.image_size: Size = (image_size[0], image_size[1])
        self.cameras = cameras
        self.trunk = build_trunk(name, self.image_size, pretrained)
        offered = {level["reduction"] for level in self.trunk.feature_info}
        self.levels, widths = cut_trunk(self.trunk, name, strides)
        sizes, found = measure(self.trunk, name, self.levels, self.image_size)
        if offset_px is None:
            offsets = [
                offset_px_of(found, stride, size, name, self.image_size, offered)
                for stride, size in zip(strides, sizes, strict=True)
            ]
        else:
            offsets = [float(offset_px)] if isinstance(offset_px, int | float) else [float(o) for o in offset_px]
            if len(offsets) != len(strides):
                raise InputError(
                    f"encoder: offset_px={offset_px} has {len(offsets)} numbers for strides={list(strides)}; give one "
                    "per stride"
                )
        self.sources: tuple[FeatureShape, ...] = tuple(
            FeatureShape(channels, *size, cameras, stride, offset)
            for size, stride, offset in zip(sizes, strides, offsets, strict=True)
        )
        self.necks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
            for width in widths
        )
        for key in ("mean", "std"):
            value = torch.tensor(self.trunk.pretrained_cfg[key]).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, image: Float[Tensor, "b n 3 H W"]
    ) -> Float[Tensor, "b n c h w"] | tuple[Float[Tensor, "b n c _ _"], ...]:
        """Return the features of images in 0..1: one tensor, or a tuple for several strides.

        Raises:
            InputError: if the images differ in number or size from those the encoder was built for.
        """
        built = (self.cameras, *self.image_size)
        given = (image.shape[1], *image.shape[-2:])
        if given != built:
            raise InputError(
                "encoder: images are {} cameras × {}×{} but it was built for {} × {}×{}; ".format(*given, *built)
                + "resize them, or rebuild it with their image_size and cameras"
            )
        flat = rearrange((image - self.mean) / self.std, "b n k H W -> (b n) k H W")
        features = tap(self.trunk, flat.contiguous(memory_format=torch.channels_last), self.levels)
        scales = tuple(
            rearrange(neck(x), "(b n) c h w -> b n c h w", n=self.cameras)
            for neck, x in zip(self.necks, features, strict=True)
        )
        return scales[0] if len(scales) == 1 else scales
