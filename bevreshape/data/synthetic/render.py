"""Pictures of a scene: the ground through a homography, what stands on it by ray casting.

Every ray is ``center + depth · direction`` in the ego frame, with depth along the optical axis. The ground is drawn by
:mod:`bevreshape.data.synthetic.ground`, one ray a pixel. What stands on it, and its shadows, are met by two, a quarter
of a pixel to the upper left and to the lower right of the pixel's centre, which smooths edges of every direction: boxes
by slabs within their projected rectangles, against a depth buffer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevreshape.data.synthetic.ground import ground_colours, pattern
from bevreshape.data.synthetic.solids import Array, Solids, windows
from bevreshape.data.synthetic.world import Look, Scene

FAR_M = 400.0
"""Depth beyond which the ground is not resolved; haze and horizon stand there."""
STAGGER = 0.25
"""Rows by which a pixel's two rays lie above and below its centre."""
BLOCK = 8192
"""Samples that are shaded at a time, so that what is in between stays in the processor's cache."""
CLOUD_HEIGHT_M, CLOUD_TEXEL_M = 300.0, 9.0
SHADOWS_TO_M = 45.0
"""Depth to which shadows are drawn."""


@dataclass(frozen=True)
class Rays:
    """Where a camera stands, and where every one of its rays goes.

    Attributes:
        center: (3,) in the ego frame, in metres.
        direction: (3, h, w), per metre of depth.
        pixel_from_ego: (3, 4).
    """

    center: tuple[np.float32, np.float32, np.float32]
    direction: Array
    pixel_from_ego: Array

    @classmethod
    def of(cls, pixel_from_cam: Array, ego_from_cam: Array, shape: tuple[int, int], stagger: float = 0.0) -> "Rays":
        """One ray through every pixel's centre, or ``stagger`` rows above it in even columns and below it in odd ones."""
        ego_from_pixel = ego_from_cam[:3, :3] @ np.linalg.inv(pixel_from_cam)
        column = np.arange(shape[1])
        across = ego_from_pixel[:, :1] * column + ego_from_pixel[:, 1:2] * (stagger * (2 * (column % 2) - 1))  # 3 w
        down = ego_from_pixel[:, 1:2] * np.arange(shape[0]) + ego_from_pixel[:, 2:]  # 3 h
        direction = across.astype(np.float32)[:, None] + down.astype(np.float32)[:, :, None]
        x, y, z = ego_from_cam[:3, 3].astype(np.float32)
        return cls((x, y, z), direction, pixel_from_cam @ np.linalg.inv(ego_from_cam)[:3])

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.direction.shape[1], self.direction.shape[2]


def render(
    scene: Scene,
    pixel_from_cam: Array,
    ego_from_cam: Array,
    image_size: tuple[int, int],
    rng: np.random.Generator | None,
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) that a camera takes of a scene.

    Args:
        scene: what there is.
        pixel_from_cam: (3, 3), in pixels of the picture.
        ego_from_cam: (4, 4), in metres.
        image_size: (H, W).
        rng: draws the sensor's noise; ``None`` for a sensor without.
    """
    height, width = image_size
    half_pixel = np.array([[2.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # u' = 2 (u + ½) - ½
    twins = Rays.of(half_pixel @ pixel_from_cam, ego_from_cam, (height, 2 * width), STAGGER)
    solids = Solids([*(solid for car in scene.vehicles for solid in car.solids), *scene.scenery])
    light = _shadows(scene.look, solids, twins)
    picture = _sky_and_ground(scene, Rays.of(pixel_from_cam, ego_from_cam, image_size), light)
    _stand_on(picture, scene.look, solids, twins)
    picture *= np.array(scene.look.gain, np.float32)[:, None, None]
    if rng is not None:
        picture += rng.standard_normal(picture.shape, np.float32) * np.float32(scene.look.noise)
    levels = np.rint(np.clip(picture, 0, 1) * np.float32(255))
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def _mean(twins: Array) -> Array:
    """Means (H, W) of the two values of every pixel."""
    return (twins[:, 0::2] + twins[:, 1::2]) * np.float32(0.5)


def _ground_depth(rays: Rays) -> Array:
    """Depth of the ground in every ray, infinite where it is farther than ``FAR_M`` or never met."""
    slope = -rays.direction[2]
    nearest = rays.center[2] / np.float32(FAR_M)
    return np.where(slope > nearest, rays.center[2] / np.maximum(slope, nearest), np.float32(np.inf))


def _shadows(look: Look, solids: Solids, twins: Rays) -> Array:
    """Light of 1 that the ground of every pixel gets, (H, W)."""
    depth = np.minimum(_ground_depth(twins), np.float32(FAR_M))
    light = np.ones(twins.shape, np.float32)
    sun = [np.float32(c) for c in look.sun]
    level = np.zeros((), np.float32)
    for i, window, nearest in windows(solids.shadow_corners(look.sun), twins.pixel_from_ego, twins.shape, STAGGER):
        if nearest > SHADOWS_TO_M:
            break
        at = depth[window]
        x, y = (twins.center[k] + at * twins.direction[k][window] for k in (0, 1))
        np.copyto(light[window], np.float32(look.shade), where=solids.intersect(i, (x, y, level), sun) < np.inf)
    return _mean(light)


def _stand_on(picture: Array, look: Look, solids: Solids, twins: Rays) -> None:
    """Draw what stands on the ground into a picture (3, H, W) of the ground."""
    depth = np.full(twins.shape, np.inf, np.float32)
    met = np.full(twins.shape, -1, np.int16)
    for i, window, nearest in windows(solids.corners(), twins.pixel_from_ego, twins.shape, STAGGER):
        if depth[window].max() < nearest:
            continue
        t = solids.intersect(i, twins.center, [d[window] for d in twins.direction])
        np.copyto(met[window], i, where=t < depth[window])
        np.minimum(depth[window], t, out=depth[window])
    bare = 1 - _mean((met >= 0).astype(np.float32))
    layers = np.zeros((3, *twins.shape), np.float32)
    every = np.flatnonzero(met >= 0)
    for first in range(0, len(every), BLOCK):
        where = every[first : first + BLOCK]
        at = depth.ravel()[where]
        points = [twins.center[k] + at * twins.direction[k].ravel()[where] for k in range(3)]
        haze = 1 - np.exp(at * np.float32(-1 / look.haze_m))
        for k, colour in enumerate(solids.shade(met.ravel()[where].astype(np.intp), points, look)):
            layers[k].ravel()[where] = colour + (np.float32(look.horizon[k]) - colour) * haze
    for k, layer in enumerate(layers):
        picture[k] = picture[k] * bare + _mean(layer)


def _sky_and_ground(scene: Scene, rays: Rays, light: Array) -> Array:
    """The picture (3, H, W) without anything standing on the ground, which gets ``light`` (H, W)."""
    look = scene.look
    picture = np.empty_like(rays.direction)
    depth = _ground_depth(rays)
    sky_rows, ground_rows = np.flatnonzero(np.isinf(depth).any(1)), np.flatnonzero(np.isfinite(depth).any(1))
    if sky_rows.size:
        sky = slice(sky_rows[0], sky_rows[-1] + 1)
        rise = np.clip(rays.direction[2, sky] * np.float32(2.2), 0, 1)
        lift = CLOUD_HEIGHT_M / np.maximum(rays.direction[2, sky], np.float32(0.02))
        cloud = pattern(look, rays.direction[0, sky] * lift, rays.direction[1, sky] * lift, CLOUD_TEXEL_M)
        cloud = np.clip(cloud, 0, 1) * np.minimum(4 * rise, 1) * np.float32(look.clouds)
        rise *= 2 - rise
        for k in range(3):
            blue = look.horizon[k] + (look.zenith[k] - look.horizon[k]) * rise
            picture[k, sky] = blue + (np.float32(0.95) - blue) * cloud
    if ground_rows.size:
        rows = slice(ground_rows[0], ground_rows[-1] + 1)
        at = np.minimum(depth[rows], np.float32(FAR_M))
        x, y = (rays.center[k] + at * rays.direction[k, rows] for k in (0, 1))
        haze = 1 - np.exp(at * np.float32(-1 / look.haze_m))
        on_ground = np.isfinite(depth[rows])
        for k, colour in enumerate(ground_colours(scene, x, y)):
            lit = colour * light[rows]
            lit += (np.float32(look.horizon[k]) - lit) * haze
            np.copyto(picture[k, rows], lit, where=on_ground)
    return picture
