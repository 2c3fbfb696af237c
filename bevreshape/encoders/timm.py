"""Image encoders of timm, by name, cut off behind the deepest wanted stride."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from einops import rearrange
from jaxtyping import Float
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

from bevreshape.errors import InputError, suggest
from bevreshape.reshapers.base import FeatureShape

Size = tuple[int, int]


class TimmEncoder(nn.Module):
    """Features of every camera at the wanted strides, brought to one width by a 1×1 neck.

    Picture normalisation, with the model's own mean and standard deviation, lies inside.

    Args:
        name: any of ``timm.list_models()`` with spatial features.
        image_size: (H, W) of the pictures, in pixels.
        cameras: n.
        strides: pixels between neighbouring features, one a wanted scale.
        channels: c, of every scale.
        pretrained: load the published weights; needs the network once.
        offset_px: pixel on which feature 0 is centred, one number a stride. Found by following the strided layers;
            give it for models that scale by other means.

    Raises:
        InputError: unknown name or stride, weights that cannot be had, a picture size that the model cannot take, or an
            offset that cannot be found.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "mobilenetv4_conv_small",
        *,
        image_size: Sequence[int],
        cameras: int,
        strides: Sequence[int] = (8,),
        channels: int = 64,
        pretrained: bool = False,
        offset_px: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.image_size: Size = (image_size[0], image_size[1])
        self.cameras = cameras
        self.trunk = _build(name, self.image_size, pretrained)
        self.levels, widths = _cut(self.trunk, name, strides)
        sizes, found = _measure(self.trunk, name, self.levels, self.image_size)
        if offset_px is None:
            offsets = [_offset(found, stride, size, name) for stride, size in zip(strides, sizes, strict=True)]
        else:
            offsets = [float(offset_px)] if isinstance(offset_px, int | float) else [float(o) for o in offset_px]
            if len(offsets) != len(strides):
                raise InputError(
                    f"encoder: offset_px={offset_px} has {len(offsets)} numbers for strides={list(strides)}; give one a stride"
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
        """Pictures in 0..1 → features, one tensor, or a tuple where several strides were asked for.

        Raises:
            InputError: when the pictures are not what this was built for.
        """
        built = (self.cameras, *self.image_size)
        given = (image.shape[1], *image.shape[-2:])
        if given != built:
            raise InputError(
                "encoder: pictures are {} cameras × {}×{} but it was built for {} × {}×{}; ".format(*given, *built)
                + "resize them, or rebuild it with their image_size and cameras"
            )
        picture = rearrange((image - self.mean) / self.std, "b n k H W -> (b n) k H W")
        features = _tap(self.trunk, picture.contiguous(memory_format=torch.channels_last), self.levels)
        scales = tuple(
            rearrange(neck(x), "(b n) c h w -> b n c h w", n=self.cameras)
            for neck, x in zip(self.necks, features, strict=True)
        )
        return scales[0] if len(scales) == 1 else scales


def _build(name: str, image_size: Size, pretrained: bool) -> Any:
    if not timm.is_model(name):
        raise InputError(f"encoder: timm has no model name={name}; {suggest(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise InputError(f"encoder: timm describes no preprocessing of name={name}; choose another model")
    # transformers are built for one picture size, convolutions take any
    options: dict[str, Any] = {"img_size": image_size} if config.fixed_input_size else {}
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:
        if pretrained:
            raise InputError(
                f"encoder: the pretrained weights of {name} could not be loaded ({_first_line(error)}); connect to the "
                "network once, or set encoder.pretrained=false"
            ) from error
        raise InputError(
            f"encoder: {name} cannot be built for pictures of {image_size} (H, W) ({_first_line(error)}); choose another "
            "size or model"
        ) from error
    if not hasattr(trunk, "forward_intermediates"):
        raise InputError(f"encoder: {name} gives no intermediate features; choose another model")
    return trunk


def _cut(trunk: Any, name: str, strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Drop what lies behind the deepest wanted level; which levels to read, and their widths."""
    info = [(level["reduction"], level["num_chs"]) for level in trunk.feature_info]
    offered = [reduction for reduction, _ in info]
    if not strides or len(set(strides)) < len(strides) or not set(strides) <= set(offered):
        raise InputError(
            f"encoder: strides={list(strides)} but {name} offers {sorted(set(offered))}; choose one or several of these, each once"
        )
    # of several levels at one stride the last has seen most
    levels = [len(offered) - 1 - offered[::-1].index(stride) for stride in strides]
    trunk.prune_intermediate_layers(sorted(levels), prune_norm=True)
    return levels, [info[level][1] for level in levels]


def _tap(trunk: Any, picture: Tensor, levels: list[int]) -> list[Tensor]:
    """Features of the levels, in their order."""
    rising = sorted(levels)
    features = trunk.forward_intermediates(picture, indices=rising, stop_early=True, intermediates_only=True)
    return [features[rising.index(level)] for level in levels]


Lattice = tuple[Size, tuple[float, float]]
"""Size of a feature map, and the pixel (v, u) on which its first feature is centred."""


def _measure(trunk: Any, name: str, levels: list[int], image_size: Size) -> tuple[list[Size], dict[Size, Lattice]]:
    """Run one empty picture through; the sizes of the levels, and the lattice at every stride (down, right) on the way.

    A layer with kernel k, dilation d and ``pad`` zeros before the first pixel centres its output 0 on its input
    ``(k − 1)/2·d − pad``. Only layers that take the current size and change it are followed, so that a shortcut beside
    the main branch does not count twice.
    """
    size, stride, offset = image_size, (1, 1), (0.0, 0.0)
    lattices: dict[Size, Lattice] = {stride: (size, offset)}

    def follow(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal size, stride, offset
        before, after = _size(inputs[0]), _size(output)
        if before != size or after == size:
            return
        shifts = [_first_center(layer, axis, before[axis]) for axis in (0, 1)]
        offset = (offset[0] + stride[0] * shifts[0], offset[1] + stride[1] * shifts[1])
        stride = (stride[0] * _pair(layer.stride)[0], stride[1] * _pair(layer.stride)[1])
        size = after
        lattices[stride] = (size, offset)

    hooks = [
        layer.register_forward_hook(follow)
        for layer in trunk.modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    ]
    trunk.eval()
    try:
        with torch.no_grad():
            features = _tap(trunk, torch.zeros(1, 3, *image_size), levels)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"encoder: {name} cannot take pictures of {image_size} (H, W) ({_first_line(error)}); choose another size"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        trunk.train()
    return [_size(x) for x in features], lattices


def _first_center(layer: Any, axis: int, size: int) -> float:
    kernel, stride = _pair(layer.kernel_size)[axis], _pair(layer.stride)[axis]
    reach = (kernel - 1) * _pair(getattr(layer, "dilation", 1))[axis]
    if isinstance(layer, Conv2dSame | MaxPool2dSame | AvgPool2dSame) or getattr(layer, "same_pad", False):
        # TensorFlow's "same": as many zeros as the last output needs, the odd one behind
        pad = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0) // 2
    else:
        pad = _pair(layer.padding)[axis]
    return reach / 2 - pad


def _offset(lattices: dict[Size, Lattice], stride: int, size: Size, name: str) -> float:
    remedy = "give the pixel on which the first feature is centred: encoder.offset_px=…"
    found, (down, right) = lattices.get((stride, stride), (None, (0.0, 0.0)))
    if found != size:
        raise InputError(
            f"encoder: the strided layers of {name} do not explain its features of {size} at stride {stride}; {remedy}"
        )
    if down != right:
        raise InputError(
            f"encoder: the padding of {name} puts feature 0 on pixel {down:g} down but {right:g} to the right; choose a "
            f"picture size of which stride {stride} divides both sides"
        )
    return down


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
