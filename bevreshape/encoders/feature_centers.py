"""Pixels on which the features of a network are centred, from its layers or from gradients."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.encoders.trunk import Size, build_trunk, cut_trunk, first_line, tap
from bevreshape.errors import InputError


@dataclass(frozen=True)
class Lattice:
    """The pixels on which the features of a map are centred.

    Attributes:
        stride: pixels between neighbours (down, right).
        offset: pixel (v, u) of the first.
        parent: size of the map that it was computed from.
        clear: false if another path leads to this size with other pixels.
    """

    stride: Size
    offset: tuple[float, float]
    parent: Size
    clear: bool = True


def measure(trunk: Any, name: str, levels: list[int], image_size: Size) -> tuple[list[Size], dict[Size, Lattice]]:
    """Run one empty image through the network. Return the sizes of the levels, and the lattice of every size.

    A layer with kernel k, dilation d and ``pad`` zeros before the first pixel centres its output 0 on its input
    ``(k − 1)/2·d − pad``. Of layers with the same input map and output size only the first counts; a shortcut parallel
    to the main branch does not. Maps of two sizes may lead to one: attention may shrink its keys to the size of a later
    level. That size is clear only if both agree.
    """
    lattices = {image_size: Lattice((1, 1), (0.0, 0.0), image_size)}

    def follow(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before, after = map_size(inputs[0]), map_size(output)
        if before not in lattices or after in (before, image_size):
            return
        (down, right), (v, u) = lattices[before].stride, lattices[before].offset
        shifts = [_first_center(layer, axis, before[axis]) for axis in (0, 1)]
        offset = (v + down * shifts[0], u + right * shifts[1])
        stride = (down * _pair(layer.stride)[0], right * _pair(layer.stride)[1])
        known = lattices.setdefault(after, Lattice(stride, offset, before, lattices[before].clear))
        if known.parent != before and (known.stride, known.offset) != (stride, offset):
            lattices[after] = replace(known, clear=False)

    hooks = [
        layer.register_forward_hook(follow)
        for layer in trunk.modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    ]
    trunk.eval()
    try:
        with torch.no_grad():
            features = tap(trunk, torch.zeros(1, 3, *image_size), levels)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"encoder: {name} cannot take images of {image_size} (H, W) ({first_line(error)}); choose another size"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        trunk.train()
    return [map_size(x) for x in features], lattices


def _first_center(layer: Any, axis: int, size: int) -> float:
    kernel, stride = _pair(layer.kernel_size)[axis], _pair(layer.stride)[axis]
    reach = (kernel - 1) * _pair(getattr(layer, "dilation", 1))[axis]
    if isinstance(layer, Conv2dSame | MaxPool2dSame | AvgPool2dSame) or getattr(layer, "same_pad", False):
        # TensorFlow's "same": as many zeros as the last output needs; an odd one comes last
        pad = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0) // 2
    else:
        pad = _pair(layer.padding)[axis]
    return reach / 2 - pad


def offset_px_of(
    lattices: dict[Size, Lattice], stride: int, size: Size, name: str, image_size: Size, offered: Collection[int]
) -> float:
    """Return the pixel on which the first feature of a level is centred, the same down and right."""
    found = lattices.get(size)
    if found is not None and found.clear and found.stride == (stride, stride):
        down, right = found.offset
    else:
        down, right = offset_by_gradient(name, image_size, stride, _base(lattices, stride, name, image_size, offered))
    if down != right:
        raise InputError(
            f"encoder: the padding of {name} puts feature 0 on pixel {down:g} down but {right:g} to the right; choose "
            f"an image size with both sides divisible by stride {stride}"
        )
    return down


def _base(
    lattices: dict[Size, Lattice], stride: int, name: str, image_size: Size, offered: Collection[int]
) -> tuple[int, float, float]:
    """Return stride and offsets (down, right) of the coarsest lattice before a level; they bound its offset."""
    followed = max(
        (known.stride[0], *known.offset)
        for known in lattices.values()
        if known.clear and known.stride[0] == known.stride[1] < stride and stride % known.stride[0] == 0
    )
    half = stride // 2
    if followed[0] >= half or half not in offered:
        return followed
    return half, *offset_by_gradient(name, image_size, half, _base(lattices, half, name, image_size, offered))


APART = 4
"""Distance in features between those differentiated together, so that their gradients do not overlap."""

BROAD = 8
"""Smallest number of features along a side for a gradient."""

FEWEST, MOST = 3, 48
"""Smallest and largest number of random images for the gradient."""


@lru_cache(maxsize=64)
def offset_by_gradient(name: str, image_size: Size, stride: int, base: tuple[int, float, float]) -> tuple[float, float]:
    """Return the pixel (v, u) on which feature 0 is centred, found by the centre of squared gradients by the image.

    The model has fixed random weights with symmetrised kernels, since trained and random kernels lean to a side. Random
    mixtures of channels at random images are differentiated, at features away from the border. A Gaussian window of one
    stride excludes distant influences by attention or squeeze-and-excitation; it is moved until it is centred on its
    content.

    Args:
        name: name of the model.
        image_size: (H, W).
        stride: stride of the level.
        base: stride and offsets (v, u) of the lattice before. Each step moves by none, half or all of its stride, so
            only offsets at multiples of half this stride from its own are possible.

    Raises:
        InputError: if the random images do not agree on one of these.
    """
    # few features are all at the border; a larger image with the same remainders has the same padding
    step = math.lcm(stride, 32)
    height, width = (side + step * max(0, -(-(BROAD * stride - side) // step)) for side in image_size)
    image_size = height, width
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(0)  # torch.manual_seed would also seed the devices' generators
        trunk = build_trunk(name, image_size, pretrained=False)
    finally:
        torch.set_rng_state(state)
    levels, _ = cut_trunk(trunk, name, (stride,))
    trunk.eval().requires_grad_(False)
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(layer.weight.mean((2, 3), keepdim=True).expand_as(layer.weight))
    generator = torch.Generator().manual_seed(0)
    quantum, *origin = base[0] / 2, *base[1:]
    seen: list[tuple[float, float]] = []
    for number in range(MOST):
        seen.append(_centre_of_gradient(trunk, levels, image_size, stride, number, generator))
        if number + 1 < FEWEST:
            continue
        found = torch.tensor(seen, dtype=torch.float64)
        mean, doubt = found.mean(0), 2 * found.std(0) / len(found) ** 0.5
        nearest = [
            start + quantum * round((at - start) / quantum) for start, at in zip(origin, mean.tolist(), strict=True)
        ]
        if ((mean - torch.tensor(nearest)).abs() + doubt < quantum / 2).all():
            return nearest[0], nearest[1]
    v, u = mean.tolist()
    raise InputError(
        f"encoder: the features of {name} at stride {stride} have no clear centre (about {v:.1f} down, {u:.1f} to the "
        f"right, ± {doubt.max():.1f}); give the pixel on which the first one is centred: encoder.offset_px=…"
    )


def _centre_of_gradient(
    trunk: Any, levels: list[int], image_size: Size, stride: int, number: int, generator: torch.Generator
) -> tuple[float, float]:
    """Return the gradient centre (v, u) of features (i, j) relative to ``stride·(i, j)``, by one random image."""
    image = torch.randn(1, 3, *image_size, generator=generator).requires_grad_()
    with torch.enable_grad():
        features = tap(trunk, image, levels)[0]
        cells = [_inner(side, number) for side in map_size(features)]
        mixture = torch.zeros_like(features)
        mixture[:, :, cells[0][:, None], cells[1]] = torch.randn(
            features.shape[1], *map(len, cells), generator=generator
        )
        (gradient,) = torch.autograd.grad((features * mixture).sum(), image)
    reach, middle = 2 * stride, (stride - 1) // 2
    energy = F.pad(gradient[0].double().square().sum(0), (reach,) * 4)
    total = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for i in cells[0].tolist():
        for j in cells[1].tolist():
            top, left = (min(stride * cell + middle, side - 1) for cell, side in zip((i, j), image_size, strict=True))
            around = energy[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
            total += around / around.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return _centre(total.sum(1), stride) + middle, _centre(total.sum(0), stride) + middle


def _inner(side: int, number: int) -> Tensor:
    """Return features along a side, ``APART``, shifted by ``number``, and two away from the border where possible."""
    border = min(2, (side - 1) // 2)
    inner = torch.arange(border, side - border)
    return inner[number % min(APART, len(inner)) :: APART]


def _centre(profile: Tensor, stride: int) -> float:
    """Return the mean of a profile about its middle, in a Gaussian window about that mean."""
    places = torch.arange(len(profile), dtype=profile.dtype) - len(profile) // 2
    centre = 0.0
    profile = (profile - profile.median()).clamp(min=0)
    for _ in range(100):
        weights = profile * torch.exp(-0.5 * ((places - centre) / stride) ** 2)
        before, centre = centre, ((weights * places).sum() / weights.sum()).item()
        if abs(centre - before) < 1e-4:
            break
    return centre


def map_size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
