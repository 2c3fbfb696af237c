"""The world of the study: random features, a camera with varying pose, and the features' positions on the ground."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bevreshape.analysis.costs import ring
from bevreshape.data.batch import seeded
from bevreshape.errors import InputError
from bevreshape.experiments.fields import smooth_fields
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.geometry.cameras import apply_homography
from bevreshape.geometry.ipm import sample
from bevreshape.reshapers import FeatureShape

Pose = Literal["unknown", "visible", "given"]
"""Source of the camera's pose: none, X (channels with the direction of every feature's ray), or the given
calibration."""

DIRECTION_CHANNELS = 4
"""Channels of the pose in X: cosine and sine of azimuth and elevation, standardised over the nominal camera."""


Draw = Callable[[int, torch.Generator], Tensor]
"""``draw(count, generator)``: features X, (count, c, h, w)."""


class Batch(NamedTuple):
    """Samples of several seeds."""

    x: Float[Tensor, "s b t c"]
    pose: Float[Tensor, "s b 3"]
    """Yaw, pitch and roll relative to the nominal pose, in radians; zeros if not given."""
    directions: Float[Tensor, "s b t 2"]
    """Azimuth and elevation of every token's ray in the ego frame, in radians; nominal values if not given."""
    target: Float[Tensor, "s b q o"]
    visible: Bool[Tensor, "s b q"]


@dataclass(frozen=True)
class World:
    """One camera over flat ground: 80° field of view, 1.5 m high, pitched down by 5°.

    Attributes:
        source: the features X; c is ``source.channels``.
        grid: its cells that are visible to the nominal camera are the targets.
        correlation_length: of the random fields, in features; 0 is white noise.
        sigma_deg: standard deviation of yaw about the nominal pose; half as much of pitch and of roll.
        pose: source of the pose.
    """

    source: FeatureShape
    grid: BEVGrid
    correlation_length: float = 1.0
    sigma_deg: float = 0.0
    pose: Pose = "unknown"

    @cached_property
    def rig(self) -> Cameras:
        """Return the nominal camera, b = n = 1."""
        size = self.source.height * self.source.stride, self.source.width * self.source.stride
        return ring(1, size, 1, torch.device("cpu"))

    @cached_property
    def cells(self) -> Float[Tensor, "q 2"]:
        """Return the centres (x, y) in metres of the cells that are visible to the nominal camera.

        Raises:
            InputError: when no cell is visible.
        """
        centers = self.grid.centers().flatten(0, 1)
        seen = self._pixels(self.rig, centers)[1][0]
        if not seen.any():
            raise InputError(
                f"study: the camera sees no cell of the grid forward {self.grid.forward_m}, left {self.grid.left_m}; "
                "choose one that begins nearer and reaches farther"
            )
        return centers[seen]

    @property
    def in_channels(self) -> int:
        """Return c, including the channels of the pose."""
        return self.source.channels + (DIRECTION_CHANNELS if self.pose == "visible" else 0)

    @cached_property
    def covariance(self) -> Float[Tensor, "t t"]:
        """Return the covariance Σ of a channel over tokens, ``exp(−r² / 2ℓ²)`` at a distance of r features."""
        source, length = self.source, self.correlation_length
        row, col = (torch.arange(size, dtype=torch.float64) for size in (source.height, source.width))
        place = torch.cartesian_prod(row, col)
        if length == 0:
            return torch.eye(source.tokens)
        return torch.exp(-0.5 * (torch.cdist(place, place) / length).square()).float()

    def posed(self, angles: Float[Tensor, "b 3"]) -> Cameras:
        """Return the camera rotated by yaw (to the left), pitch (down) and roll, in radians, n = 1."""
        nominal = self.rig.ego_from_cam[0].double()  # 1 4 4
        cos, sin = angles.double().cos().unbind(-1), angles.double().sin().unbind(-1)
        one, zero = torch.ones_like(cos[0]), torch.zeros_like(cos[0])
        # In the camera frame (x right, y down, z forward) a turn about -y goes left and a turn about -x goes down.
        yaw = [cos[0], zero, -sin[0], zero, one, zero, sin[0], zero, cos[0]]
        pitch = [one, zero, zero, zero, cos[1], sin[1], zero, -sin[1], cos[1]]
        roll = [cos[2], -sin[2], zero, sin[2], cos[2], zero, zero, zero, one]
        turns = [torch.stack(turn, -1).unflatten(-1, (3, 3)) for turn in (yaw, pitch, roll)]
        poses = nominal.repeat(len(angles), 1, 1)
        poses[:, :3, :3] = poses[:, :3, :3] @ turns[0] @ turns[1] @ turns[2]
        intrinsics = self.rig.intrinsics.expand(len(angles), -1, -1, -1)
        return Cameras(intrinsics, poses[:, None].float(), self.rig.image_size)

    def random_fields(self, count: int, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
        """Draw Gaussian fields of mean 0 and variance 1 with the world's correlation, independent for every channel."""
        return smooth_fields(count, self.source, self.correlation_length, generator)

    def project(
        self, x: Float[Tensor, "b c h w"], cameras: Cameras
    ) -> tuple[Float[Tensor, "b q c"], Bool[Tensor, "b q"]]:
        """Project features onto the ground by IPM (Mallot et al. 1991); return them and the visible cells."""
        pixels, seen = self._pixels(cameras, self.cells)
        source = self.source
        places = rearrange((pixels - source.offset_px) / source.stride, "b q uv -> b 1 1 q uv")
        return rearrange(sample(x[:, None], places), "b 1 c 1 q -> b q c") * seen[..., None], seen

    def sampling(self, cameras: Cameras) -> Float[Tensor, "b q t"]:
        """Return S with ``target = S·X``: bilinear weights of every cell over the tokens, 0 if it is not visible."""
        height, width = self.source.height, self.source.width
        units = torch.eye(height * width).view(-1, height, width).expand(len(cameras.intrinsics), -1, -1, -1)
        return self.project(units, cameras)[0]

    def directions(self, cameras: Cameras) -> Float[Tensor, "b t 2"]:
        """Return azimuth and elevation of every token's ray in the ego frame, in radians."""
        rays = cameras.rays(self.source.pixels().flatten(0, 1))[:, 0]  # b t 3
        x, y, z = F.normalize(rays, dim=-1).unbind(-1)
        return torch.stack([torch.atan2(y, x), torch.asin(z)], -1)

    def make(self, fields: Float[Tensor, "b c h w"], angles: Float[Tensor, "b 3"]) -> Batch:
        """Make the samples of one seed with these poses, s = 1."""
        cameras = self.posed(angles)
        target, visible = self.project(fields, cameras)
        x = rearrange(fields, "b c h w -> b (h w) c")
        if self.pose == "visible":
            x = torch.cat([x, self._visible_pose(self.directions(cameras))], -1)
        given = self.pose == "given"
        directions = self.directions(cameras) if given else self.nominal_directions.expand(len(fields), -1, -1)
        batch = Batch(x, angles if given else torch.zeros_like(angles), directions, target, visible)
        return Batch(*(part[None] for part in batch))

    @cached_property
    def nominal_directions(self) -> Float[Tensor, "1 t 2"]:
        """Return the directions of the nominal camera."""
        return self.directions(self.rig)

    def _visible_pose(self, directions: Tensor) -> Float[Tensor, "b t 4"]:
        def raw(angles: Tensor) -> Tensor:
            return torch.cat([angles.cos(), angles.sin()], -1)

        nominal = raw(self.nominal_directions)[0]
        return (raw(directions) - nominal.mean(0)) / nominal.std(0)

    def _pixels(self, cameras: Cameras, points: Tensor) -> tuple[Float[Tensor, "b q 2"], Bool[Tensor, "b q"]]:
        pixels, depth = apply_homography(cameras.pixel_from_ground, points)  # b 1 q 2, b 1 q
        return pixels[:, 0], cameras.sees(pixels, depth)[:, 0]


class Stream:
    """An endless stream of samples of one seed: new ones, or draws with replacement from a fixed number.

    Args:
        world: the world.
        key: of all random numbers; streams of different keys are independent.
        samples: number of samples; ``None`` for new ones every time.
        draw: draws the features; by default the world's random fields.
    """

    def __init__(self, world: World, key: Sequence[int], samples: int | None = None, draw: Draw | None = None) -> None:
        self.world = world
        self.draw = draw or world.random_fields
        self.generator = seeded(*key)
        self.order = seeded(*key, 1)
        self.kept = None if samples is None else self._new(samples)

    def next(self, count: int) -> Batch:
        """Return the next samples, s = 1."""
        if self.kept is None:
            return self._new(count)
        chosen = torch.randint(self.kept.x.shape[1], (count,), generator=self.order)
        return Batch(*(part[:, chosen] for part in self.kept))

    def _new(self, count: int) -> Batch:
        fields = self.draw(count, self.generator)
        spread = torch.tensor([1.0, 0.5, 0.5]) * math.radians(self.world.sigma_deg)
        return self.world.make(fields, torch.randn(count, 3, generator=self.generator) * spread)


def stack(batches: Sequence[Batch]) -> Batch:
    """Stack the batches of several seeds."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def best_fixed_map(world: World, angles: Float[Tensor, "b 3"]) -> tuple[Float[Tensor, "q t"], float]:
    """Return W*, the best mapping without knowledge of the pose, and its error, in closed form.

    All channels have the same distribution, independent of the pose, with covariance Σ over tokens. So row q of W* is
    the mean of the sampling matrices' rows over the poses from which cell q is visible, ``E[v_q s_q] / E[v_q]``, for
    any Σ. The error is ``Σ_q E[v_q (s_q − w_q) Σ (s_q − w_q)ᵀ]`` relative to the target's variance.

    Args:
        world: the world.
        angles: poses for the expectation.
    """
    sampled = world.sampling(world.posed(angles)).double()  # b q t
    visible = sampled.sum(-1) > 0
    fixed = sampled.sum(0) / visible.sum(0).clamp(min=1)[:, None]  # q t
    covariance = world.covariance.double()
    missed = torch.where(visible[..., None], sampled - fixed, 0)

    def energy(rows: Tensor) -> float:
        return torch.einsum("bqt,tu,bqu->", rows, covariance, rows).item()

    return fixed.float(), energy(missed) / energy(sampled)
