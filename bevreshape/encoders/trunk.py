"""Networks of timm, truncated after the deepest wanted level."""

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor

from bevreshape.errors import InputError, suggest

Size = tuple[int, int]
"""(height, width)."""


def build_trunk(name: str, image_size: Size, pretrained: bool) -> Any:
    """Build a network of timm without its classifier.

    Raises:
        InputError: if timm has no model of that name, or its weights cannot be loaded.
    """
    if not timm.is_model(name):
        raise InputError(f"encoder: timm has no model name={name}; {suggest(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise InputError(f"encoder: timm describes no preprocessing of name={name}; choose another model")
    # transformers are built for one image size, convolutional networks accept any
    options: dict[str, Any] = {"img_size": image_size} if config.fixed_input_size else {}
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:
        if pretrained:
            raise InputError(
                f"encoder: the pretrained weights of {name} could not be loaded ({first_line(error)}); connect to the "
                "network once, or set encoder.pretrained=false"
            ) from error
        raise InputError(
            f"encoder: {name} cannot be built for images of {image_size} (H, W) ({first_line(error)}); choose another "
            "size or model"
        ) from error
    if not hasattr(trunk, "forward_intermediates"):
        raise InputError(f"encoder: {name} gives no intermediate features; choose another model")
    return trunk


def cut_trunk(trunk: Any, name: str, strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Remove the layers after the deepest wanted level. Return the wanted levels, and their widths."""
    info = [(level["reduction"], level["num_chs"]) for level in trunk.feature_info]
    offered = [reduction for reduction, _ in info]
    if not strides or len(set(strides)) < len(strides) or not set(strides) <= set(offered):
        raise InputError(
            f"encoder: strides={list(strides)} but {name} offers {sorted(set(offered))}; choose one or several of "
            "these, each once"
        )
    # of several levels at one stride the last has the largest receptive field
    levels = [len(offered) - 1 - offered[::-1].index(stride) for stride in strides]
    trunk.prune_intermediate_layers(sorted(levels), prune_norm=True)
    return levels, [info[level][1] for level in levels]


def tap(trunk: Any, image: Tensor, levels: list[int]) -> list[Tensor]:
    """Return the features of the levels, in their order."""
    rising = sorted(levels)
    features = trunk.forward_intermediates(image, indices=rising, stop_early=True, intermediates_only=True)
    return [features[rising.index(level)] for level in levels]


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
