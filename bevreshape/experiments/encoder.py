"""Features of an encoder instead of random fields: images of one camera through a network with selectable padding.

The network is resnet18 up to stride 8 (He et al. 2016) with random weights, since the question is how convolutions
encode positions, not streets. A fixed random projection reduces its 128 channels to 16, as an untrained neck of 1×1
convolutions does. Unlike principal components, it keeps correlations between channels. Each of the 16 channels is then
standardised over the training images.
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
"""Padding of all convolutions and of the pooling. Zeros differ from image content, so features near a border reveal
their position. A network with circular padding commutes with every shift and reveals nothing."""

Content = Literal["streets", "noise"]
"""Images of the synthetic world, or white noise. Noise is stationary, so that only the padding reveals a position."""

Part = Literal["tune", "choose", "train", "test"]
"""Disjoint sets of images: training and measuring during tuning, then training and measuring with the best recipes."""

PARTS: tuple[Part, ...] = get_args(Part)

IMAGE_SIZE = 64, 128
"""(H, W) in pixels."""

SOURCE = FeatureShape(16, 8, 16, 1, 8, offset_px=0.0)
"""Shape of the features. All layers are symmetric about a feature's center, so the first is on pixel 0."""

WIDTH = 128
"""Channels before the projection."""

CHUNK = 32
"""Images per forward pass of the network."""


@dataclass(frozen=True)
class Encoder:
    """A network and its images.

    Attributes:
        padding: of the network.
        content: of the images.
        tune: number of training images, and also of measuring images, while recipes are chosen.
        train: number of training images.
        test: number of measuring images.
    """

    padding: Padding = "zeros"
    content: Content = "streets"
    tune: int = 256
    train: int = 1024
    test: int = 256

    @property
    def name(self) -> str:
        """Return a unique name."""
        return f"resnet18_{self.padding}_{self.content}"

    def count(self, part: Part) -> int:
        """Return the number of images of a part."""
        return {"tune": self.tune, "choose": self.tune, "train": self.train, "test": self.test}[part]

    def draw(self, part: Part, count: int, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
        """Draw features of images of a part, without replacement.

        Raises:
            InputError: when the part has fewer images.
        """
        if count > self.count(part):
            raise InputError(
                f"study: {count} samples at a time are more than the {self.count(part)} images to "
                f"{part}; choose a smaller batch, fewer held-out samples, or more images"
            )
        kept = features(self, part)
        return kept[torch.randperm(len(kept), generator=generator)[:count]]


def place_readable(encoder: Encoder) -> tuple[float, float]:
    """Return the fraction of the variance of a feature's row and column that is linear in its channels.

    Least squares are fitted on the training images and measured on the test images. 0 means that features do not reveal
    their position; values below 0 occur by chance.
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
    """Return features of all images of a part, each channel standardised over the training images."""
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
    """Build the network with fixed random weights; it maps normalised images to (n, 128, H/8, W/8)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # the default initialises the last scale of every residual branch with 0, which leaves little more than the stem
        network = timm.create_model("resnet18", features_only=True, out_indices=(2,), zero_init_last=False)
    if padding != "zeros":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = padding
        around = nn.ReflectionPad2d(1) if padding == "reflect" else nn.CircularPad2d(1)
        network.maxpool = nn.Sequential(around, nn.MaxPool2d(3, 2))
    return network.eval()


def _images(content: Content, part: int, chosen: range) -> Float[Tensor, "n 3 H W"]:
    """Return images normalised to about mean 0 and standard deviation 1."""
    if content == "noise":
        return torch.stack([torch.randn(3, *IMAGE_SIZE, generator=seeded(part, index)) for index in chosen])
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.stack([_street(part, index) for index in chosen]) / 255 - mean) / std


@cache  # bytes, which three paddings share
def _street(part: int, index: int) -> UInt8[Tensor, "3 H W"]:
    """Render a street of the synthetic world with the camera of the study."""
    rig = ring(1, IMAGE_SIZE, 1, torch.device("cpu"))
    pixel_from_cam, ego_from_cam = (x[0, 0].double().numpy() for x in (rig.intrinsics, rig.ego_from_cam))
    scene, sensor = draw_scene(part, index, 1), np.random.default_rng((part, index, 2))
    image = render(scene, pixel_from_cam, ego_from_cam, IMAGE_SIZE, sensor)
    return torch.from_numpy(image).permute(2, 0, 1)
