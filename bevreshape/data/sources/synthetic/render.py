"""Render images of a scene: the ground through a homography, solids by ray casting.

The ground is drawn by :mod:`bevreshape.data.sources.synthetic.ground`, one ray a pixel. Solids and their shadows
take two rays, a quarter of a pixel to the upper left and to the lower right of the pixel's centre, which smooths edges
of every direction. Solids are intersected by :class:`~bevreshape.data.sources.synthetic.solids.Bounds` within their
projected rectangles, against a buffer of nearness, which is 1 over depth.
"""

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bevreshape.data.sources.synthetic.ground import ground_colors, pattern
from bevreshape.data.sources.synthetic.rays import Array, Rays
from bevreshape.data.sources.synthetic.solids import Solids, windows
from bevreshape.data.sources.synthetic.world import Look, Scene

FAR_M = 400.0
"""Depth beyond which the ground is not resolved but shows haze and horizon."""
STAGGER = 0.25
"""Rows by which a pixel's two rays are above and below its centre."""
BLOCK = 8192
"""Samples that are shaded at a time, so that intermediate values stay in the processor's cache."""
CLOUD_HEIGHT_M, CLOUD_TEXEL_M = 300.0, 9.0
SHADOWS_TO_M = 45.0
"""Largest depth at which shadows are drawn."""


def render(
    scene: Scene,
    pixel_from_cam: Array,
    ego_from_cam: Array,
    image_size: tuple[int, int],
    rng: np.random.Generator | None,
) -> NDArray[np.uint8]:
    """Render a camera's image (H, W, 3) of a scene.

    Args:
        scene: to render.
        pixel_from_cam: (3, 3), in pixels of the image.
        ego_from_cam: (4, 4), in metres.
        image_size: (H, W).
        rng: draws the sensor's noise; ``None`` for a sensor without.
    """
    height, width = image_size
    half_pixel = np.array([[2.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # u' = 2 (u + ½) - ½
    twins = Rays(half_pixel @ pixel_from_cam, ego_from_cam, (height, 2 * width), STAGGER)
    solids = Solids([*(solid for car in scene.vehicles for solid in car.solids), *scene.scenery])
    light = _shadows(scene.look, solids, twins)
    image = _sky_and_ground(scene, Rays(pixel_from_cam, ego_from_cam, image_size), light)
    _stand_on(image, scene.look, solids, twins)
    image *= np.array(scene.look.gain, np.float32)[:, None, None]
    if rng is not None:
        image += _noise(rng, image.shape) * np.float32(scene.look.noise)
    image *= np.float32(255)
    levels = np.rint(np.clip(image, 0, 255, out=image), out=image)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return normal noise of a shape, every row a slice of one long sequence.

    Fresh noise for every pixel would take as long as the ground.
    """
    rows = sliding_window_view(_normals(), shape[-1])
    return rows[rng.integers(len(rows), size=shape[:-1])]


@cache
def _normals() -> Array:
    return np.random.default_rng(0x5E45).standard_normal(1 << 18, np.float32)


def _mean(twins: Array) -> Array:
    """Return means (H, W) of the two values of every pixel."""
    return (twins[:, 0::2] + twins[:, 1::2]) * np.float32(0.5)


def _shadows(look: Look, solids: Solids, twins: Rays) -> Array:
    """Return the share of light on the ground of every pixel, (H, W), 0 to 1."""
    shaded = np.zeros(twins.shape, bool)
    bounds = solids.shadows(twins, look.sun)
    for i, window, nearest in windows(solids.shadow_corners(look.sun), twins):
        if nearest > SHADOWS_TO_M:
            break
        shaded[window] |= bounds.nearness(i, twins, window) > 0
    return 1 - np.float32(1 - look.shade) * _mean(shaded.astype(np.float32))


def _stand_on(image: Array, look: Look, solids: Solids, twins: Rays) -> None:
    """Draw solids into an image (3, H, W) of the ground."""
    nearness = np.zeros(twins.shape, np.float32)
    met = np.full(twins.shape, -1, np.int16)
    bounds = solids.seen(twins)
    for i, window, nearest in windows(solids.corners(), twins):
        before = nearness[window]
        if before.min() * nearest > 1:
            continue
        near = bounds.nearness(i, twins, window)
        np.copyto(met[window], i, where=near > before)
        np.maximum(before, near, out=before)
    image *= 1 - _mean((met >= 0).astype(np.float32))
    for twin in (0, 1):
        covered = np.flatnonzero(met[:, twin::2] >= 0)
        for first in range(0, len(covered), BLOCK):
            pixel = covered[first : first + BLOCK]
            ray = 2 * pixel + twin
            at = 1 / nearness.ravel()[ray]
            haze = 1 - np.exp(at * np.float32(-1 / look.haze_m))
            for k, color in enumerate(solids.shade(met.ravel()[ray].astype(np.intp), twins.points(ray, at), look)):
                color += (np.float32(look.horizon[k]) - color) * haze
                image[k].ravel()[pixel] += np.float32(0.5) * color


def _sky_and_ground(scene: Scene, rays: Rays, light: Array) -> Array:
    """Render the image (3, H, W) without solids; the ground is lit by ``light`` (H, W)."""
    look = scene.look
    direction = rays.evaluate(rays.ego_from_pixel.astype(np.float32), (slice(None), slice(None)))
    image = np.empty_like(direction)
    slope, nearest = -direction[2], np.float32(rays.center[2] / FAR_M)
    depth = np.where(slope > nearest, np.float32(rays.center[2]) / np.maximum(slope, nearest), np.float32(np.inf))
    sky_rows, ground_rows = np.flatnonzero(np.isinf(depth).any(1)), np.flatnonzero(np.isfinite(depth).any(1))
    if sky_rows.size:
        sky = slice(sky_rows[0], sky_rows[-1] + 1)
        rise = np.clip(direction[2, sky] * np.float32(2.2), 0, 1)
        lift = CLOUD_HEIGHT_M / np.maximum(direction[2, sky], np.float32(0.02))
        cloud = pattern(look, direction[0, sky] * lift, direction[1, sky] * lift, CLOUD_TEXEL_M)
        cloud = np.clip(cloud, 0, 1) * np.minimum(4 * rise, 1) * np.float32(look.clouds)
        rise *= 2 - rise
        for k in range(3):
            blue = look.horizon[k] + (look.zenith[k] - look.horizon[k]) * rise
            image[k, sky] = blue + (np.float32(0.95) - blue) * cloud
    if ground_rows.size:
        rows = slice(ground_rows[0], ground_rows[-1] + 1)
        at = np.minimum(depth[rows], np.float32(FAR_M))
        x, y = (np.float32(rays.center[k]) + at * direction[k, rows] for k in (0, 1))
        haze = 1 - np.exp(at * np.float32(-1 / look.haze_m))
        on_ground = np.isfinite(depth[rows])
        for k, color in enumerate(ground_colors(scene, x, y)):
            lit = color * light[rows]
            lit += (np.float32(look.horizon[k]) - lit) * haze
            np.copyto(image[k, rows], lit, where=on_ground)
    return image
