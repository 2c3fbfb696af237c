"""The experiment without pictures: features in, their own homography onto the ground out, and a reshaper that learns it.

A view transformation of a fixed camera is one fixed matrix, the bilinear sampling of tokens by cells, which a one-layer
MLP can hold exactly (A8). A camera whose pose changes from sample to sample makes it another matrix each time (A9).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.costs import count_flops, ring
from bevreshape.data.batch import seeded
from bevreshape.data.synthetic.rig import Spread
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels
from bevreshape.geometry.ipm import sample
from bevreshape.optimizer import AdamWOneCycle
from bevreshape.reshapers import FeatureShape, Reshaper

CALIBRATIONS = ("exact", "nominal", "none", "shown")
TRAINING, HELD_OUT, ORDER = 1, 2, 3
"""What a stream of random numbers is for, the last word of its key."""

SHOWN = 4
"""Channels that say where a feature looks."""

SOURCE = FeatureShape(channels=8, height=8, width=16, stride=16, offset_px=7.5)
GRID = BEVGrid((0.0, 16.0), (-8.0, 8.0), 1.0)
FIXED = Spread()
ONE_CYCLE = AdamWOneCycle(lr=1e-2)

Build = Callable[[FeatureShape, BEVGrid], Reshaper]


@dataclass(frozen=True)
class Settings:
    """All that an experiment depends on, beside the reshaper.

    At the defaults a linear one-layer MLP comes below an error of 0.1 in 100 steps, and to 0.0046 in 500, a second on
    one core.

    Attributes:
        source: shape of X.
        grid: cells of the target.
        correlation_length: of the random fields, in features, see :func:`smooth_fields`.
        jitter: how far a sample's cameras are off their nominal poses.
        calibration: what the reshaper is told: the ``exact`` poses, the ``nominal`` ones, or ``none``, and then X says
            nothing of them either: no mapping does better than the best fixed one. ``shown`` is ``none``, but X has four
            more channels, cosine and sine of azimuth and elevation in the vehicle's frame of where every feature really
            looks (standardised over the nominal rig), as a picture shows horizon and vanishing point.
        training_samples: how many there are, each with its poses, to be drawn from with replacement; ``None`` for new
            ones in every step (of given features: all).
        steps: of training.
        batch: samples a step.
        optimizer: AdamW and its one-cycle schedule over these steps.
        evaluate_every: steps between points of the curve; what is reached is known to so many steps.
        held_out: random samples, never trained on, whose error is measured; the same whatever is trained.
        seed: of initialisation, of the order of training, and of what a reshaper draws.
        data_seed: of the fields and poses trained on.
        held_out_seed: of the others.

    Raises:
        InputError: an unknown calibration, or a number out of range.
    """

    source: FeatureShape = SOURCE
    grid: BEVGrid = GRID
    correlation_length: float | int = 1.0
    jitter: Spread = FIXED
    calibration: str = "exact"
    training_samples: int | None = None
    steps: int = 500
    batch: int = 32
    optimizer: AdamWOneCycle = ONE_CYCLE
    evaluate_every: int = 25
    held_out: int = 128
    seed: int = 0
    data_seed: int = 0
    held_out_seed: int = 0

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise InputError(
                f"tensor level: there is no calibration={self.calibration}; {suggest(self.calibration, CALIBRATIONS)}"
            )
        ones = dict.fromkeys(("batch", "evaluate_every", "held_out", "training_samples"), 1)
        for key, least in ({"steps": 2, "seed": 0, "data_seed": 0, "held_out_seed": 0} | ones).items():
            value = getattr(self, key)
            if key == "training_samples" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise InputError(f"tensor level: {key}={value} must be a whole number of at least {least}")
        if self.correlation_length < 0:
            raise InputError(
                f"tensor level: correlation_length={self.correlation_length} must be 0 (white noise) or more, in features"
            )


@dataclass(frozen=True)
class Point:
    """Where a training stood.

    Attributes:
        steps: done.
        samples: seen in these, counted again where they come again.
        seconds: of forward, backward and update, without the making of data and the measuring.
        error: on held-out samples, squared, over the cells that cameras see, in parts of the target's variance there: 1
            is what every channel's mean would get.
    """

    steps: int
    samples: int
    seconds: float
    error: float


@dataclass(frozen=True)
class Reached:
    """When the error first was at a threshold or below.

    Attributes:
        at: that point of the curve; the last one where it never was.
        censored: it never was, so that all that is known is "later than that".
    """

    at: Point
    censored: bool

    @classmethod
    def of(cls, curve: Sequence[Point], threshold: float | int) -> "Reached":
        """The first point whose error is at most ``threshold``, and whether there is none."""
        for point in curve:
            if point.error <= threshold:
                return cls(point, censored=False)
        return cls(curve[-1], censored=True)


class ReadOut(nn.Module):
    """A reshaper and, where it delivers other channels than are wanted, a 1×1 convolution behind it."""

    def __init__(self, reshaper: Reshaper, channels: int) -> None:
        super().__init__()
        self.reshaper = reshaper
        d = reshaper.out_channels
        self.readout = nn.Identity() if d == channels else nn.Conv2d(d, channels, 1)

    def forward(self, features: Float[Tensor, "b n c h w"], cameras: Cameras | None = None) -> Float[Tensor, "b d R C"]:
        """Features to as many channels on the ground as are wanted, d."""
        return self.readout(self.reshaper(features, cameras))


@dataclass(frozen=True)
class Result:
    """What came of an experiment.

    Attributes:
        curve: error before the first step, every ``evaluate_every`` steps, and after the last. Flat, from the first
            step to the last, where nothing can be trained.
        parameters: how many numbers were trained, the readout's included.
        flops: of a forward pass of one sample, a multiply-add counted as two, the readout's included.
        network: the trained one; ``network.reshaper`` is the reshaper.
    """

    curve: tuple[Point, ...]
    parameters: int
    flops: int
    network: ReadOut = field(repr=False, compare=False)

    @property
    def final_error(self) -> float:
        """After the last step."""
        return self.curve[-1].error


def smooth_fields(
    count: int, source: FeatureShape, correlation_length: float | int, generator: torch.Generator
) -> Float[Tensor, "b n c h w"]:
    """Gaussian random fields of mean 0 and variance 1, every channel and camera its own.

    Two features a distance of r features apart are correlated by ``exp(−r² / 2ℓ²)``, exactly: white noise is multiplied
    by the root of that covariance, from the left for rows and from the right for columns.

    Args:
        count: b.
        source: their shape.
        correlation_length: ℓ, in features; 0 is white noise.
        generator: of the noise, on the device where they are wanted.
    """
    shape = (count, source.cameras, source.channels, source.height, source.width)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    rows, cols = (_root(size, float(correlation_length)).to(noise) for size in (source.height, source.width))
    return rows @ noise @ cols


@cache
def _root(size: int, correlation_length: float) -> Tensor:
    """The symmetric root of the covariance along one axis; symmetric, since any other would depend on the solver."""
    if correlation_length == 0:
        return torch.eye(size)
    place = torch.arange(size, dtype=torch.float64)
    covariance = torch.exp(-0.5 * ((place[:, None] - place) / correlation_length).square())
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.mT).float()


def homography_target(
    features: Float[Tensor, "b n c h w"], cameras: Cameras, source: FeatureShape, grid: BEVGrid
) -> tuple[Float[Tensor, "b c R C"], Bool[Tensor, "b R C"]]:
    """Features laid onto the ground by Kornia, averaged over the cameras that see a cell.

    Args:
        features: X.
        cameras: where they really are, of the full-size pictures.
        source: which pixel a feature is centred on.
        grid: the cells.

    Returns:
        The target, 0 where nobody looks, and where somebody does.
    """
    pixels, seen = ground_pixels(cameras, grid)  # b n R C 2, b n R C
    views = sample(features, (pixels - source.offset_px) / source.stride)  # b n c R C
    counts = seen.sum(1)  # b R C
    bev = torch.where(seen.unsqueeze(2), views, 0).sum(1) / counts.clamp(min=1).unsqueeze(1)
    return bev, counts > 0


def sampling_matrix(cameras: Cameras, source: FeatureShape, grid: BEVGrid) -> Float[Tensor, "cells nt"]:
    """W with ``target = W·X``, the bilinear sampling of all cameras' tokens by the cells: what an MLP must learn (A8).

    Args:
        cameras: of one rig, b = 1.
        source: the features.
        grid: R·C cells.

    Returns:
        A row sums to 1, or is 0 where nobody looks.

    Raises:
        InputError: when the cameras are of several rigs, or of another number than the source's.
    """
    if cameras.batch_shape != (1, source.cameras):
        raise InputError(
            f"sampling_matrix: the cameras are of {cameras.batch_shape} (batch, cameras) but the source has {source.cameras}; "
            "give one rig of as many"
        )
    n, h, w = source.cameras, source.height, source.width
    units = torch.eye(n * h * w, dtype=cameras.intrinsics.dtype, device=cameras.intrinsics.device)
    units = rearrange(units, "nt (n h w) -> 1 n nt h w", n=n, h=h, w=w)  # a channel for every token
    return rearrange(homography_target(units, cameras, source, grid)[0], "1 nt R C -> (R C) nt")


def sampling_distance(weights: Float[Tensor, "_ _"], sampling: Float[Tensor, "cells nt"]) -> float:
    """How far W is from the sampling matrix S, ``‖W − S‖_F / ‖S‖_F`` over the cells that somebody sees.

    Args:
        weights: W, (cells, nt), such as ``mlp.layers[0].weight[0]`` of a one-layer MLP of one camera.
        sampling: S, from :func:`sampling_matrix`.

    Raises:
        InputError: when they are of different shapes, or nobody sees a cell.
    """
    if weights.shape != sampling.shape or not sampling.any():
        raise InputError(
            f"sampling_distance: weights {tuple(weights.shape)} and the sampling matrix {tuple(sampling.shape)} must be of "
            "the same cells and tokens, some of which a camera sees"
        )
    seen = sampling.sum(1) > 0
    return ((weights - sampling)[seen].norm() / sampling[seen].norm()).item()


def run(
    build: Build,
    settings: Settings = Settings(),
    *,
    cameras: Cameras | None = None,
    features: tuple[Float[Tensor, "_ _ _ _ _"], Float[Tensor, "_ _ _ _ _"]] | None = None,
    device: torch.device | str = "cpu",
) -> Result:
    """Train a reshaper to lay features onto the ground, and measure it on features that it has not seen.

    The loss is the mean squared error over the cells that a sample's cameras see. The same settings give the same
    errors on the same machine.

    Args:
        build: makes the reshaper of a source and a grid, for instance ``partial(MLP, activation="none")``.
        settings: the experiment.
        cameras: the nominal rig, b = 1, of pictures that the features cover; left out, ``source.cameras`` in a ring, of
            which a single one looks ahead with 80° of view, 1.5 m above the ground and 5° down.
        features: to train and to measure with, (samples, n, c, h, w) each, for instance of an encoder; left out, random
            fields.
        device: where all of it happens.

    Raises:
        InputError: when rig or features are not of the source's shape, when fewer features are given than
            ``training_samples``, or when the target does not vary, for instance since no camera sees a cell.
    """
    source, device = settings.source, torch.device(device)
    if cameras is None:
        cameras = ring(source.cameras, (source.height * source.stride, source.width * source.stride), 1, device)
    if cameras.batch_shape != (1, source.cameras):
        raise InputError(
            f"tensor level: the rig is of {cameras.batch_shape} (batch, cameras) but the source has {source.cameras}; give "
            "one calibration of as many cameras"
        )
    shape = (source.cameras, source.channels, source.height, source.width)
    for x in features or ():
        if tuple(x.shape[1:]) != shape or not len(x):
            raise InputError(
                f"tensor level: features are {tuple(x.shape)} (samples, n, c, h, w) but settings.source says "
                f"{shape}; make them alike, and give one at least"
            )
    wanted = settings.training_samples or 0
    if features is not None and wanted > len(features[0]):
        raise InputError(
            f"tensor level: training_samples={wanted} but {len(features[0])} are given; lower it, or give more"
        )
    given = [x.detach().to(device, torch.float32) for x in features or ()]
    world = _World(settings, cameras.to(device))
    held_out = world.samples(HELD_OUT)(given[1] if given else settings.held_out)
    shown = source if settings.calibration != "shown" else replace(source, channels=source.channels + SHOWN)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        network = ReadOut(build(shown, settings.grid), source.channels).to(device)
        curve = _train(network, settings, world.training(given[0] if given else None), tuple(world.split(*held_out)))
        network.eval()
        one = world.lesson(held_out[0][:1], held_out[1][:1])
        flops = count_flops(lambda: network(one.features, one.told))
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Result(tuple(curve), parameters, flops, network)


class _Lesson(NamedTuple):
    """A batch: what a reshaper is given, what is wanted of it, and where."""

    features: Tensor
    told: Cameras | None
    target: Tensor
    valid: Tensor


class _World:
    """Features, the poses of the cameras that they are seen by, and what is told of these."""

    def __init__(self, settings: Settings, rig: Cameras) -> None:
        self.settings = settings
        self.rig = rig
        self.mounted = rig.ego_from_cam[0].double().cpu().numpy()
        looked = self.directions(rig)
        self.mean, self.spread = (of((0, 1, 3, 4), keepdim=True) for of in (looked.mean, looked.std))

    def training(self, given: Tensor | None) -> Iterator[_Lesson]:
        """Batches without end."""
        draw, count = self.samples(TRAINING), self.settings.training_samples
        if given is not None:
            features, poses = draw(given[:count])
        elif count is not None:
            features, poses = draw(count)
        else:
            while True:
                yield self.lesson(*draw(self.settings.batch))
        order = seeded(self.settings.seed, ORDER)
        while True:
            chosen = torch.randint(len(features), (self.settings.batch,), generator=order).to(features.device)
            yield self.lesson(features[chosen], poses[chosen])

    def samples(self, purpose: int) -> Callable[[int | Tensor], tuple[Tensor, Tensor]]:
        """Draws so many new fields, or takes the features given, and draws poses."""
        settings, mounted = self.settings, self.rig.ego_from_cam
        key = settings.held_out_seed if purpose == HELD_OUT else settings.data_seed
        noise, lots = seeded(key, purpose), np.random.default_rng((key, purpose))

        def draw(wanted: int | Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(wanted, int):
                fields = smooth_fields(wanted, settings.source, settings.correlation_length, noise)
                wanted = fields.to(mounted.device)
            poses = mounted.expand(len(wanted), -1, -1, -1)
            if settings.jitter != FIXED:
                drawn = settings.jitter.draw(np.tile(self.mounted, (len(wanted), 1, 1)), lots)
                poses = torch.from_numpy(drawn).to(mounted).view_as(poses)
            return wanted, poses

        return draw

    def split(self, features: Tensor, poses: Tensor) -> Iterator[_Lesson]:
        """All of them, in batches."""
        size = self.settings.batch
        return map(self.lesson, features.split(size), poses.split(size))

    def lesson(self, features: Tensor, poses: Tensor) -> _Lesson:
        """What is told and wanted of features whose cameras have these poses."""
        settings, true = self.settings, self.posed(poses)
        nominal = self.posed(self.rig.ego_from_cam.expand_as(poses)) if settings.calibration == "nominal" else None
        told = {"exact": true, "nominal": nominal}.get(settings.calibration)
        target, valid = homography_target(features, true, settings.source, settings.grid)
        if settings.calibration == "shown":
            features = torch.cat([features, (self.directions(true) - self.mean) / self.spread], dim=2)
        return _Lesson(features, told, target, valid)

    def directions(self, cameras: Cameras) -> Float[Tensor, "b n 4 h w"]:
        """Cosine and sine of azimuth and elevation of where features look, in the vehicle's frame."""
        source = self.settings.source
        pixels = source.pixels(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)
        x, y, z = F.normalize(cameras.rays(pixels), dim=-1).unbind(-1)  # b n hw
        level = torch.hypot(x, y)
        looked = torch.stack([x / level, y / level, level, z], dim=2)
        return rearrange(looked, "b n k (h w) -> b n k h w", h=source.height)

    def posed(self, poses: Tensor) -> Cameras:
        """The rig in poses (b, n, 4, 4)."""
        rig, b = self.rig, len(poses)
        mask = None if rig.mask is None else rig.mask.expand(b, -1)
        return Cameras(rig.intrinsics.expand(b, -1, -1, -1), poses, rig.image_size, mask)


def _train(
    network: ReadOut, settings: Settings, lessons: Iterator[_Lesson], held_out: Sequence[_Lesson]
) -> list[Point]:
    """The learning curve."""
    first = _error(network, held_out)
    curve = [Point(0, 0, 0.0, first)]
    if not any(p.requires_grad for p in network.parameters()):
        return [*curve, Point(settings.steps, settings.steps * settings.batch, 0.0, first)]
    optimizer, schedule = settings.optimizer.build(network, settings.steps)
    seconds = 0.0
    for step in range(1, settings.steps + 1):
        features, told, target, valid = next(lessons)
        network.train()
        start = _clock(target.device)
        missed = torch.where(valid.unsqueeze(1), network(features, told) - target, 0)
        loss = missed.square().sum() / (valid.sum() * target.shape[1]).clamp(min=1)
        auxiliary = network.reshaper.pop_auxiliary_loss()
        (loss if auxiliary is None else loss + auxiliary).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        seconds += _clock(target.device) - start
        if step % settings.evaluate_every == 0 or step == settings.steps:
            curve.append(Point(step, step * settings.batch, seconds, _error(network, held_out)))
    return curve


@torch.no_grad()
def _error(network: ReadOut, lessons: Sequence[_Lesson]) -> float:
    """Squared error over seen cells in parts of the variance there, see :class:`Point`."""
    network.eval()
    sums = []
    for features, told, target, valid in lessons:
        there = valid.unsqueeze(1).expand_as(target).double()  # b c R C
        missed = torch.where(there > 0, network(features, told) - target, 0).double()
        target = target.double()  # 0 where nobody looks
        sums.append(torch.stack([there, target, target.square(), missed.square()]).sum((1, 3, 4)))  # 4 c
    count, total, squares, wrong = torch.stack(sums).sum(0)
    variance = (squares - total.square() / count.clamp(min=1)).sum().item()
    if not variance > 0:
        raise InputError(
            f"tensor level: in the {int(count[0])} cells of held-out samples that cameras see the target does not vary; "
            "give other features, or a grid where the cameras look"
        )
    return wrong.sum().item() / variance


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
