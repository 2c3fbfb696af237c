"""Render the ground in an image.

A homography maps pixels to ground points, at which Kornia samples the surfaces' texture, in a near and a far level.
Surfaces and markings are the scene's own functions, averaged over the footprint of a pixel. They are thus as sharp as
the pixels allow, and thin lines far away neither vanish nor flicker.
"""

import math
from functools import cache

import numpy as np
import torch
from kornia.geometry.transform import remap
from numpy.typing import NDArray

from bevreshape.data.sources.synthetic.world import WHITE, YELLOW, Array, Ground, Look, Marking, Scene

TILE = 512
"""Texels along a side of the surfaces' texture."""
NEAR_TEXEL_M, FAR_TEXEL_M = 0.05, 0.45
"""Sizes of a texel of the two levels."""
KERB_M = 0.2


def ground_colors(scene: Scene, x: Array, y: Array) -> list[Array]:
    """Return red, green and blue of the ground in full light at the pixels' ground points x, y (h, w)."""
    look = scene.look
    pixel_m = footprint(x) + footprint(y)
    grain = _grain(look, x, y, pixel_m, NEAR_TEXEL_M, 8 * NEAR_TEXEL_M)
    grain += _grain(look, x, y, pixel_m, FAR_TEXEL_M, 5 * FAR_TEXEL_M)
    ground = scene.ground(x, y)
    surface = ground.surface()
    width = footprint(surface)
    smooth = 1 + 0.55 * look.grain * grain
    rough = 1 + 1.6 * look.grain * grain
    colors = [rough * look.terrain[k] for k in range(3)]
    if look.pavement_m:
        s, _ = ground.st[0]
        joints = _strip(s - np.rint(s), 0.03, np.minimum(footprint(s), 1))
        tone = smooth * (1 - 0.35 * joints) * (1 + 0.25 * _inside(surface - KERB_M, width))
        paved = _inside(surface - look.pavement_m, width)
        for k, color in enumerate(colors):
            color += (look.pavement[k] * tone - color) * paved
    on = np.flatnonzero(surface < 0.5 * width)
    if on.size:
        tar = _inside(surface.take(on), width.take(on))
        tone = smooth.take(on) * _mended(scene, ground, on)
        left = 1 - look.wear * np.clip(0.6 + 1.2 * grain.take(on), 0, 1)
        white, yellow = (np.minimum(paint, 1) * left for paint in _paint(ground, on))
        for k, color in enumerate(colors):
            painted = look.asphalt[k] * tone
            painted += (WHITE[k] - painted) * white + (YELLOW[k] - painted) * yellow
            flat = color.ravel()
            flat[on] += (painted - flat[on]) * tar
    return colors


def _grain(look: Look, x: Array, y: Array, pixel_m: Array, texel_m: float, resolved_m: float) -> Array:
    """Return a level of the texture, which fades where pixels cover more of the ground than ``resolved_m``."""
    grain = np.clip(1.5 - pixel_m * (1 / resolved_m), 0, 1)
    rows = np.flatnonzero(grain.any(1))
    if rows.size:
        near = slice(rows[0], rows[-1] + 1)
        grain[near] *= pattern(look, x[near], y[near], texel_m)
    return grain


def _mended(scene: Scene, ground: Ground, on: NDArray[np.intp]) -> Array:
    """Return the brightness of the tar of pixels ``on``, 0 to 1."""
    s, t = (axis.take(on) for axis in ground.st[0])
    tone = np.ones_like(s)
    inside = ground.distances[0].take(on) < 0
    for middle_s, middle_t, half_s, half_t, brightness in scene.patches:
        tone[inside & (np.abs(s - middle_s) < half_s) & (np.abs(t - middle_t) < half_t)] = brightness
    return tone


def _paint(ground: Ground, on: NDArray[np.intp]) -> tuple[Array, Array]:
    """Return the shares of pixels ``on`` with white and with yellow paint; slightly above 1 where lines meet."""
    white, yellow = (np.zeros(len(on), np.float32) for _ in range(2))
    for i, road in enumerate(ground.roads):
        s, t = ground.st[i]
        width_s, width_t = footprint(s).take(on), footprint(t).take(on)
        s, t = s.take(on), t.take(on)
        open_ = _inside(ground.distances[i].take(on), width_t)
        if road.crossings or len(ground.roads) > 1:
            clear = ground.paintable(i)
            open_ *= _inside(-clear.take(on), footprint(clear).take(on))
        for marking in road.markings:
            line = _strip(t - marking.offset_m, 0.5 * marking.width_m, width_t) * open_
            if marking.dash_m < marking.period_m:
                line *= _dashes(marking, s, width_s)
            color = yellow if marking.yellow else white
            color += line
        for crossing in road.crossings:
            area = ground.crossing(i, crossing)
            white += _inside(area.take(on), footprint(area).take(on)) * _dashes(crossing.stripes, t, width_t)
    return white, yellow


def footprint(values: Array) -> Array:
    """Return the range (h, w) of a quantity over a pixel: the sum of its steps to the next column and row."""
    steps = np.empty_like(values)
    steps[:, :-1] = np.abs(values[:, 1:] - values[:, :-1])
    steps[:, -1] = steps[:, -2]
    down = np.abs(values[1:] - values[:-1])
    steps[:-1] += down
    steps[-1] += down[-1]
    return np.maximum(steps, 1e-4)


def _inside(distance: Array, width: Array) -> Array:
    """Return the share of a footprint of ``width`` with negative ``distance``."""
    return np.clip(0.5 - distance / width, 0, 1)


def _strip(t: Array, half: float, width: Array) -> Array:
    """Return the share of a footprint of ``width`` around ``t`` within ±``half``, exact also for thinner strips."""
    return (np.clip(t + 0.5 * width, -half, half) - np.clip(t - 0.5 * width, -half, half)) / width


def _dashes(marking: Marking, s: Array, width: Array) -> Array:
    """Return the painted share of a footprint of ``width`` around ``s``."""
    return (marking.painted_length(s + 0.5 * width) - marking.painted_length(s - 0.5 * width)) / width


def pattern(look: Look, x: Array, y: Array, texel_m: float) -> Array:
    """Return the texture at ground points (h, w), mean 0, standard deviation ½.

    Its tile is rotated, shifted and repeated by reflection.
    """
    turn, shift_x, shift_y = look.surface
    half_m = 0.5 * (TILE - 1) * texel_m  # of a tile, from the centre of its first texel to that of its last
    cos, sin = math.cos(turn) / half_m, math.sin(turn) / half_m
    u = torch.from_numpy(cos * x - sin * y + (shift_x / half_m - 1))[None]
    v = torch.from_numpy(sin * x + cos * y + (shift_y / half_m - 1))[None]
    sampled = remap(
        _tile(), u, v, mode="bilinear", padding_mode="reflection", align_corners=True, normalized_coordinates=True
    )
    return sampled[0, 0].numpy()


@cache
def _tile() -> torch.Tensor:
    """Return noise of several scales, (1, 1, TILE, TILE)."""
    rng = np.random.default_rng(0x5EED)
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]) * TILE
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / np.maximum(frequency, 2.0) ** 0.8
    spectrum[0, 0] = 0
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return torch.from_numpy((tile * (0.5 / tile.std())).astype(np.float32))[None, None]
