"""Features of an encoder instead of random fields: images of one camera through a network whose padding can be chosen.

The network is resnet18 to its stride of 8 (He et al. 2016), with random weights: what it is asked is what a convolution
does to a place, not to a street. Its 128 channels are brought to 16 by a fixed random projection, as an untrained neck
of 1×1 convolutions would do it: the encoder's correlation between channels stays, which principal components would
remove. Each of the 16 is then standardised over the images to train on.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import timm
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.analysis.costs import ring
from bevreshape.data.batch import seeded
from bevreshape.data.sources.synthetic.draw import draw_scene
from bevreshape.data.sources.synthetic.render import render
from bevreshape.errors import InputError
from bevreshape.reshapers import FeatureShape

Padding = Literal["zeros", "reflect", "circular"]
"""Of all convolutions and of the pooling. Zeros differ from what an image shows, so features near a border reveal where
they are; a network with circular padding commutes with every shift, and reveals nothing."""

Content = Literal["streets", "noise"]
"""Images of the synthetic world, or white noise, which is alike everywhere: what reveals a position in it is the
padding alone."""

Part = Literal["tune", "choose", "train", "test"]
"""What images are for: to train on and to measure with while recipes are chosen, then the same with those chosen. No
image is in two of them."""

PARTS: tuple[Part, ...] = get_args(Part)

IMAGE_SIZE = 64, 128
"""(H, W) in pixels."""

SOURCE = FeatureShape(16, 8, 16, 1, 8, offset_px=0.0)
"""The features; every layer reaches as many pixels before a feature's center as behind, so the first is on pixel 0."""

WIDTH = 128
"""Channels before the projection."""

CHUNK = 32
"""Images that go through the network at a time."""


@dataclass(frozen=True)
class Encoder:
    """A network and its images.

    Attributes:
        padding: of the network.
        content: of the images.
        tune: how many images recipes are chosen with: so many to train on, and as many to measure with.
        train: how many there are to train on.
        test: how many there are to measure with.
    """

    padding: Padding = "zeros"
    content: Content = "streets"
    tune: int = 256
    train: int = 1024
    test: int = 256

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"resnet18_{self.padding}_{self.content}"

    def count(self, part: Part) -> int:
        """How many images a part has."""
        return {"tune": self.tune, "choose": self.tune, "train": self.train, "test": self.test}[part]

    def draw(self, part: Part, count: int, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
        """Features of some images of a part, none of them twice.

        Raises:
            InputError: when the part has fewer.
        """
        if count > self.count(part):
            raise InputError(
                f"study: {count} samples at a time are more than the {self.count(part)} images that there are to "
                f"{part}; choose a smaller batch, fewer held-out samples, or more images"
            )
        kept = features(self, part)
        return kept[torch.randperm(len(kept), generator=generator)[:count]]


def place_readable(encoder: Encoder) -> tuple[float, float]:
    """How much of the variance of a feature's row and column can be read from its channels, by least squares.

    Fitted on the images to train on, measured on those to test with. 0 where nothing in a feature reveals its place;
    below it by chance.
    """
    place = torch.cartesian_prod(torch.arange(SOURCE.height), torch.arange(SOURCE.width)).double()

    def tokens(part: Part) -> tuple[Tensor, Tensor]:
        found = rearrange(features(encoder, part).double(), "n c h w -> (n h w) c")
        return F.pad(found, (0, 1), value=1.0), place.repeat(encoder.count(part), 1)

    x, where = tokens("train")
    fitted = torch.linalg.lstsq(x, where).solution
    x, where = tokens("test")
    missed = (x @ fitted - where).square().mean(0) / where.var(0, correction=0)
    row, col = (1 - missed).tolist()
    return row, col


@cache
def features(encoder: Encoder, part: Part) -> Float[Tensor, "n c h w"]:
    """Features of all images of a part, standardised channel by channel over those to train on."""
    found, known = _projected(encoder, part), _projected(encoder, "train")
    return (found - known.mean((0, 2, 3), keepdim=True)) / known.std((0, 2, 3), keepdim=True)


@cache
def _projected(encoder: Encoder, part: Part) -> Float[Tensor, "n c h w"]:
    network, found = build(encoder.padding), []
    projection = torch.randn(WIDTH, SOURCE.channels, generator=torch.Generator().manual_seed(0)) * WIDTH**-0.5
    for first in range(0, encoder.count(part), CHUNK):
        chosen = range(first, min(first + CHUNK, encoder.count(part)))
        with torch.no_grad():
            made = network(_images(encoder.content, PARTS.index(part), chosen))[0]
        found.append(torch.einsum("nkhw,kc->nchw", made, projection))
    return torch.cat(found)


def build(padding: Padding) -> nn.Module:
    """The network, always of the same random weights: normalised images in, (n, 128, H/8, W/8) out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # by default the last scale of every residual branch begins at 0, and the network is little more than its stem
        network = timm.create_model("resnet18", features_only=True, out_indices=(2,), zero_init_last=False)
    if padding != "zeros":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = padding
        around = nn.ReflectionPad2d(1) if padding == "reflect" else nn.CircularPad2d(1)
        network.maxpool = nn.Sequential(around, nn.MaxPool2d(3, 2))
    return network.eval()


def _images(content: Content, part: int, chosen: range) -> Float[Tensor, "n 3 H W"]:
    """Normalised: of mean 0 and standard deviation 1, about."""
    if content == "noise":
        return torch.stack([torch.randn(3, *IMAGE_SIZE, generator=seeded(part, index)) for index in chosen])
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.stack([_street(part, index) for index in chosen]) / 255 - mean) / std


@cache  # bytes, which three paddings share
def _street(part: int, index: int) -> UInt8[Tensor, "3 H W"]:
    """What the camera of the study sees of a street of the synthetic world."""
    rig = ring(1, IMAGE_SIZE, 1, torch.device("cpu"))
    pixel_from_cam, ego_from_cam = (x[0, 0].double().numpy() for x in (rig.intrinsics, rig.ego_from_cam))
    scene, sensor = draw_scene(part, index, 1), np.random.default_rng((part, index, 2))
    image = render(scene, pixel_from_cam, ego_from_cam, IMAGE_SIZE, sensor)
    return torch.from_numpy(image).permute(2, 0, 1)
