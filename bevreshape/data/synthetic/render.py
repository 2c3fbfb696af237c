"""Pictures of a scene: the ground through a homography, what stands on it by ray casting, one sample per half pixel.

A picture is computed at twice its size and averaged, so a sample lies a quarter of a pixel beside the pixel's centre.
Every sample's ray is ``center + depth · direction`` in the ego frame, with depth along the optical axis. The ground's
patterns are textures that Kornia warps through the plane's homography, in a near and a far level; its surfaces and
markings are the scene's own functions, averaged exactly over the footprint of a sample, so that thin lines far away
neither vanish nor flicker. Boxes are intersected by slabs within their projected rectangles, against a depth buffer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from kornia.geometry.transform import remap
from numpy.typing import NDArray

from bevreshape.data.synthetic.world import WHITE, YELLOW, Marking, Scene, Solid
from bevreshape.geometry.cameras import NEAR

Array = NDArray[np.floating]
Window = tuple[slice, slice]

FAR_M = 400.0
"""Depth beyond which the ground is not resolved; haze and horizon stand there."""
CUT_M = 0.1
"""Depth at which what reaches behind the camera is cut off."""
TILE = 512
NEAR_TEXEL_M, FAR_TEXEL_M = 0.05, 0.45
"""Sizes of a texel of the surface's pattern, drawn once near and once far."""

_PAIRS = np.triu_indices(8, 1)


@dataclass(frozen=True)
class Rays:
    """Where a camera stands and looks: ``center`` (3,), ``direction`` (3, h, w) of every sample per metre of depth."""

    center: tuple[float, float, float]
    direction: Array
    pixel_from_ego: Array

    @classmethod
    def of(cls, pixel_from_cam: Array, ego_from_cam: Array, shape: tuple[int, int]) -> "Rays":
        """The rays of a picture of ``shape`` pixels, for calibration in float64."""
        ego_from_pixel = ego_from_cam[:3, :3] @ np.linalg.inv(pixel_from_cam)
        u, v = np.arange(shape[1]), np.arange(shape[0])[:, None]
        direction = np.stack([row[0] * u + row[1] * v + row[2] for row in ego_from_pixel]).astype(np.float32)
        cam_from_ego = np.linalg.inv(ego_from_cam)
        x, y, z = (float(c) for c in ego_from_cam[:3, 3])
        return cls((x, y, z), direction, pixel_from_cam @ cam_from_ego[:3])


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
    half_pixel = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])  # u' = 2 (u + ½) - ½
    rays = Rays.of(half_pixel @ pixel_from_cam, ego_from_cam, (2 * height, 2 * width))
    look = scene.look
    solids = [*(solid for car in scene.vehicles for solid in car.solids), *scene.scenery]
    table = _Table(solids)

    canvas, depth = _sky_and_ground(scene, table, rays)
    hit = np.full(depth.shape, -1, np.int16)
    for i, window in table.windows(table.corners(), rays):
        t = table.intersect(i, rays.center, rays.direction[:, *window])
        nearer = t < depth[window]
        depth[window][nearer] = t[nearer]
        hit[window][nearer] = i
    where = np.nonzero(hit >= 0)
    if where[0].size:
        solid, at = hit[where], depth[where]
        points = [c + at * rays.direction[k][where] for k, c in enumerate(rays.center)]
        colour = table.shade(solid, points, scene)
        haze = 1 - np.exp(at * (-1 / look.haze_m))
        for k in range(3):
            canvas[k][where] = colour[k] + (look.horizon[k] - colour[k]) * haze

    picture = canvas.reshape(3, height, 2, width, 2)
    picture = (picture[:, :, 0] + picture[:, :, 1]).astype(np.float32)
    picture = picture[..., 0] + picture[..., 1]
    picture *= np.array(look.gain, np.float32)[:, None, None] * np.float32(0.25)
    if rng is not None:
        picture += rng.standard_normal(picture.shape, np.float32) * np.float32(look.noise)
    levels = np.rint(np.clip(picture, 0, 1) * np.float32(255))
    return np.ascontiguousarray(levels.transpose(1, 2, 0).astype(np.uint8))


def _sky_and_ground(scene: Scene, table: "_Table", rays: Rays) -> tuple[Array, Array]:
    """The picture of the ground and sky (3, h, w), and the depth of the ground; infinite in the sky."""
    look = scene.look
    dz = rays.direction[2]
    canvas = np.empty_like(rays.direction)
    depth = np.full(dz.shape, np.inf, np.float32)
    drop = rays.center[2] / FAR_M  # below this slope the ground is nearer than FAR_M
    sky_rows = np.flatnonzero((dz > -drop).any(1))
    ground_rows = np.flatnonzero((dz <= -drop).any(1))
    if sky_rows.size:
        sky = slice(sky_rows[0], sky_rows[-1] + 1)
        rise = np.clip(dz[sky] * 2.2, 0, 1)
        rise = rise * (2 - rise)
        if look.clouds > 0.1:
            lift = 300 / np.maximum(dz[sky], 0.02)
            x, y = (rays.direction[k, sky] * lift for k in (0, 1))
            cloud = np.clip(_pattern(look, x, y, 9.0), 0, 1) * np.clip(dz[sky] * 9, 0, 1) * (look.clouds * 0.9)
        else:
            cloud = None
        for k in range(3):
            canvas[k, sky] = look.horizon[k] + (look.zenith[k] - look.horizon[k]) * rise
            if cloud is not None:
                canvas[k, sky] += (0.95 - canvas[k, sky]) * cloud
    if ground_rows.size:
        rows = slice(ground_rows[0], ground_rows[-1] + 1)
        on_ground = dz[rows] <= -drop
        at = rays.center[2] / np.maximum(-dz[rows], drop)
        x = rays.center[0] + at * rays.direction[0, rows]
        y = rays.center[1] + at * rays.direction[1, rows]
        ground = _ground(scene, x, y)
        shadow = _shadows(scene, table, rays, rows, x, y)
        haze = 1 - np.exp(at * (-1 / look.haze_m))
        for k in range(3):
            lit = ground[k] * shadow
            lit += (look.horizon[k] - lit) * haze
            canvas[k, rows] = np.where(on_ground, lit, canvas[k, rows])
        depth[rows] = np.where(on_ground, at, np.inf)
    return canvas, depth


def footprint(values: Array) -> Array:
    """Range of a quantity over one sample of the picture: the sum of its steps to the next column and row."""
    steps = np.empty_like(values)
    steps[:, :-1] = np.abs(values[:, 1:] - values[:, :-1])
    steps[:, -1] = steps[:, -2]
    down = np.abs(values[1:] - values[:-1])
    steps[:-1] += down
    steps[-1] += down[-1]
    return np.maximum(steps, 1e-4)


def _inside(distance: Array, width: Array) -> Array:
    """Part of a footprint of ``width`` that lies where ``distance`` is negative."""
    return np.clip(0.5 - distance / width, 0, 1)


def _strip(t: Array, half: float, width: Array) -> Array:
    """Part of a footprint of ``width`` around ``t`` that lies in ±``half``: exact, also for strips thinner than it."""
    return (np.clip(t + 0.5 * width, -half, half) - np.clip(t - 0.5 * width, -half, half)) / width


def _dashes(marking: Marking, s: Array, width: Array) -> Array:
    """Part of a footprint of ``width`` around ``s`` that is painted."""
    return (marking.painted_length(s + 0.5 * width) - marking.painted_length(s - 0.5 * width)) / width


def _ground(scene: Scene, x: Array, y: Array) -> list[Array]:
    """Colour of the ground at samples x, y (h, w), in full light."""
    look = scene.look
    shape = x.shape
    near, far = _pattern(look, x, y, NEAR_TEXEL_M), _pattern(look, x, y, FAR_TEXEL_M)
    size = footprint(x) + footprint(y)
    grain = near * np.clip(1.5 - size * (0.5 / NEAR_TEXEL_M / 4), 0, 1) + far * np.clip(
        1.5 - size * (0.2 / FAR_TEXEL_M), 0, 1
    )
    rough = 1 + (1.6 * look.grain) * grain
    colour = [look.terrain[k] * rough for k in range(3)]

    reach = scene.ground(x, y)
    surface = reach.surface()
    width = footprint(surface)
    smooth = 1 + (0.55 * look.grain) * grain
    if look.pavement_m:
        paved = _inside(surface - look.pavement_m, width)
        s = reach.st[0][0]
        joints = _strip(s - np.rint(s), 0.03, np.minimum(footprint(s), 1.0))
        tone = smooth * (1 - 0.35 * joints) * (1 + 0.25 * _inside(surface - 0.2, width))
        for k in range(3):
            colour[k] += (look.pavement[k] * tone - colour[k]) * paved

    on_road = np.nonzero(surface < 0.5 * width)
    if not on_road[0].size:
        return colour
    tar = _inside(surface[on_road], width[on_road])
    tone = smooth[on_road]
    s, t = (axis[on_road] for axis in reach.st[0])
    for s0, t0, half_s, half_t, brightness in scene.patches:
        mended = (
            (np.abs(s - s0) < half_s)
            & (np.abs(t - t0) < half_t)
            & (np.abs(t - scene.roads[0].middle_m) < scene.roads[0].half_m)
        )
        tone = np.where(mended, tone * brightness, tone)
    white, yellow = np.zeros_like(tone), np.zeros_like(tone)
    for i, road in enumerate(scene.roads):
        s, t = reach.st[i]
        width_s, width_t = footprint(s)[on_road], footprint(t)[on_road]
        clear = reach.paintable(i)
        on = _inside(reach.distances[i][on_road], width_t)
        if np.isfinite(clear.flat[0]):
            on = on * _inside(-clear[on_road], footprint(clear)[on_road])
        s, t = s[on_road], t[on_road]
        for marking in road.markings:
            paint = _strip(t - marking.offset_m, 0.5 * marking.width_m, width_t)
            if marking.dash_m < marking.period_m:
                paint = paint * _dashes(marking, s, width_s)
            paint = paint * on
            if marking.yellow:
                yellow += paint
            else:
                white += paint
        for crossing in road.crossings:
            area = reach.crossing(i, crossing)
            white += _inside(area[on_road], footprint(area)[on_road]) * _dashes(crossing.stripes, t, width_t)
    left = 1 - look.wear * np.clip(0.6 + 1.2 * grain[on_road], 0, 1)
    white, yellow = np.clip(white, 0, 1) * left, np.clip(yellow, 0, 1) * left
    for k in range(3):
        painted = look.asphalt[k] * tone
        painted += (WHITE[k] - painted) * white + (YELLOW[k] - painted) * yellow
        before = colour[k][on_road]
        colour[k][on_road] = before + (painted - before) * tar
    assert colour[0].shape == shape
    return colour


@cache
def _tile() -> torch.Tensor:
    """A surface's pattern (1, 1, TILE, TILE): noise of several scales, mean 0, standard deviation 1/2."""
    rng = np.random.default_rng(0x5EED)
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]) * TILE
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / np.maximum(frequency, 2.0) ** 0.8
    spectrum[0, 0] = 0
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return torch.from_numpy((tile * (0.5 / tile.std())).astype(np.float32))[None, None]


def _pattern(look: object, x: Array, y: Array, texel_m: float) -> Array:
    """The surface's pattern at ground points, its tile laid out in mirrored repetition."""
    turn, shift_x, shift_y = look.surface  # type: ignore[attr-defined]
    cos, sin = np.cos(turn) / texel_m, np.sin(turn) / texel_m
    cos, sin = float(cos), float(sin)
    u = torch.from_numpy(cos * x - sin * y + shift_x / texel_m)[None]
    v = torch.from_numpy(sin * x + cos * y + shift_y / texel_m)[None]
    return remap(_tile(), u, v, mode="bilinear", padding_mode="reflection", align_corners=True)[0, 0].numpy()


def _shadows(scene: Scene, table: "_Table", rays: Rays, rows: slice, x: Array, y: Array) -> Array:
    """Light (h, w) that reaches the ground samples of ``rows``, of 1."""
    light = np.ones_like(x)
    sun = scene.look.sun
    base = rows.start
    for i, (across, along) in table.windows(table.shadow_corners(sun), rays):
        start, stop = max(across.start - base, 0), min(across.stop, rows.stop) - base
        if start >= stop:
            continue
        window = (slice(start, stop), along)
        direction = tuple(np.float32(c) for c in sun)
        t = table.intersect(i, (x[window], y[window], np.float32(0)), direction)
        light[window][np.isfinite(t)] = scene.look.shade
    return light


class _Table:
    """The solids of a scene as columns, so that all samples are shaded at once."""

    def __init__(self, solids: Sequence[Solid]) -> None:
        self.count = len(solids)

        def column(values: list[float]) -> Array:
            return np.array(values, np.float32).reshape(len(solids), -1).squeeze(-1)

        self.x, self.y = column([s.x for s in solids]), column([s.y for s in solids])
        self.cos, self.sin = column([np.cos(s.yaw) for s in solids]), column([np.sin(s.yaw) for s in solids])
        self.bottom, self.top = column([s.bottom_m for s in solids]), column([s.top_m for s in solids])
        self.half_length = column([0.5 * s.length_m for s in solids])
        self.half_width = column([0.5 * s.width_m for s in solids])
        self.half_height = 0.5 * (self.top - self.bottom)
        self.z = self.bottom + self.half_height
        self.rgb = np.array([s.rgb for s in solids], np.float32).reshape(-1, 3)
        self.round = np.array([s.round for s in solids], bool)
        self.wheels = np.array([s.wheels for s in solids], bool)
        self.lights = np.array([s.lights for s in solids], bool)
        self.glass_low, self.glass_high = column([s.glass[0] for s in solids]), column([s.glass[1] for s in solids])
        self.glass_from = column([s.side_glass_from for s in solids])
        self.windows_m = column([s.windows_m for s in solids])
        # Plain floats for the loop over solids, where an array's overhead would cost more than the arithmetic.
        names = ("x", "y", "z", "cos", "sin", "half_length", "half_width", "half_height")
        self.rows = list(zip(*(getattr(self, name).tolist() for name in names), strict=True))

    def corners(self) -> Array:
        """(m, 8, 3) corners in the ego frame."""
        signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
        along, left = signs[:, 0] * self.half_length[:, None], signs[:, 1] * self.half_width[:, None]
        cos, sin = self.cos[:, None], self.sin[:, None]
        x = self.x[:, None] + cos * along - sin * left
        y = self.y[:, None] + sin * along + cos * left
        return np.stack([x, y, self.z[:, None] + signs[:, 2] * self.half_height[:, None]], axis=-1)

    def shadow_corners(self, sun: tuple[float, float, float]) -> Array:
        """(m, 8, 3) where the corners' shadows fall on the ground; the shadow lies in their convex hull."""
        corners = self.corners()
        return corners - corners[..., 2:] * (np.array(sun) / sun[2])

    def windows(self, corners: Array, rays: Rays) -> Iterator[tuple[int, Window]]:
        """For every solid that may be in the picture: its number, and the samples that its hull's projection covers.

        A hull that reaches behind the camera is cut at ``CUT_M``, so that no point is projected from behind.
        """
        height, width = rays.direction.shape[1:]
        homogeneous = corners @ rays.pixel_from_ego[:, :3].T + rays.pixel_from_ego[:, 3]  # m 8 3
        depth = homogeneous[..., 2]
        straddles = (depth.min(1) < CUT_M) & (depth.max(1) > CUT_M)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = homogeneous[..., :2] / depth[..., None]
        low, high = pixels.min(1), pixels.max(1)
        for i in np.flatnonzero(straddles).tolist():
            a, b = homogeneous[i, _PAIRS[0]], homogeneous[i, _PAIRS[1]]
            cut = (a[:, 2] > CUT_M) != (b[:, 2] > CUT_M)
            a, b = a[cut], b[cut]
            between = a + (b - a) * ((CUT_M - a[:, 2]) / (b[:, 2] - a[:, 2]))[:, None]
            kept = np.concatenate([homogeneous[i][depth[i] > CUT_M], between])
            kept = kept[:, :2] / kept[:, 2:]
            low[i], high[i] = kept.min(0), kept.max(0)
        first = np.clip(np.ceil(low), 0, (width, height))
        stop = np.clip(np.floor(high) + 1, 0, (width, height))
        seen = (depth.max(1) > CUT_M) & (first < stop).all(1)
        for i in np.flatnonzero(seen).tolist():
            (u0, v0), (u1, v1) = first[i].astype(int).tolist(), stop[i].astype(int).tolist()
            yield i, (slice(v0, v1), slice(u0, u1))

    def intersect(self, i: int, origin: Sequence[Array | float], direction: Sequence[Array | float]) -> Array:
        """Ray parameter at which rays enter solid ``i``, infinite where they miss it or start beyond it.

        Origins or directions may be constant; they are broadcast against each other.
        """
        x, y, z, cos, sin, *half = self.rows[i]
        ox, oy = origin[0] - x, origin[1] - y
        dx, dy = direction[0], direction[1]
        local = (
            ((cos * ox + sin * oy), (cos * dx + sin * dy)),
            ((cos * oy - sin * ox), (cos * dy - sin * dx)),
            (origin[2] - z, direction[2]),
        )
        if self.round[i]:
            a = b = c = np.float32(0)
            for (o, d), h in zip(local, half, strict=True):
                o, d = o / h, d / h
                a, b, c = a + d * d, b + o * d, c + o * o
            under = b * b - a * (c - 1)
            t = (-b - np.sqrt(np.maximum(under, 0))) / a
            return np.where((under > 0) & (t > NEAR), t, np.float32(np.inf))
        enter, leave = np.float32(-np.inf), np.float32(np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for (o, d), h in zip(local, half, strict=True):
                inverse = 1 / np.asarray(d, np.float32)
                reach = np.abs(inverse) * np.float32(h)
                middle = -o * inverse
                enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
        return np.where((enter <= leave) & (leave > NEAR), np.maximum(enter, np.float32(0)), np.float32(np.inf))

    def shade(self, solid: NDArray[np.int16], points: Sequence[Array], scene: Scene) -> list[Array]:
        """Colours of points (each (p,)) on the surfaces of solids ``solid`` (p,)."""
        look = scene.look
        cos, sin = self.cos[solid], self.sin[solid]
        dx, dy = points[0] - self.x[solid], points[1] - self.y[solid]
        length, width, high = self.half_length[solid], self.half_width[solid], self.half_height[solid]
        a, b, c = cos * dx + sin * dy, cos * dy - sin * dx, points[2] - self.z[solid]
        rel_a, rel_b, rel_c = a / length, b / width, c / high
        size_a, size_b, size_c = np.abs(rel_a), np.abs(rel_b), np.abs(rel_c)
        end = (size_a >= size_b) & (size_a >= size_c)  # the front or back face
        side = ~end & (size_b >= size_c)
        upper = ~end & ~side

        curved = self.round[solid]
        sun_a, sun_b = cos * look.sun[0] + sin * look.sun[1], cos * look.sun[1] - sin * look.sun[0]
        facing = np.where(end, np.sign(a) * sun_a, np.where(side, np.sign(b) * sun_b, np.sign(c) * look.sun[2]))
        norm = np.sqrt((rel_a / length) ** 2 + (rel_b / width) ** 2 + (rel_c / high) ** 2)
        smooth = (rel_a / length * sun_a + rel_b / width * sun_b + rel_c / high * look.sun[2]) / norm
        facing = np.where(curved, smooth, facing)
        skyward = np.where(curved, 0.5 + 0.5 * rel_c, np.where(upper, 1.0, 0.55))
        light = 0.34 + 0.3 * skyward + (1.25 - look.shade) * 0.75 * np.maximum(facing, 0)
        leaves = np.sin(7 * a + 3 * c) * np.sin(6 * b - 4 * a) * np.sin(8 * c + 2 * b)
        light = np.where(curved, light * (1 + 0.45 * leaves), light)

        level = 0.5 + 0.5 * rel_c
        band = (level > self.glass_low[solid]) & (level < self.glass_high[solid])
        along = np.where(end, b, a)
        rim = np.where(end, size_b, size_a) < 0.93
        glass = band & rim & (end & ((a > 0) | (self.glass_from[solid] < 0)) | side & (rel_a > self.glass_from[solid]))
        glass &= end | (np.abs(a - 1.1 * np.rint(a / 1.1)) > 0.05)  # pillars
        pitch = np.maximum(self.windows_m[solid], 0.1)
        column, storey = along / pitch, points[2] / 3.0
        window = (np.abs(column - np.rint(column)) < 0.27) & (np.abs(storey - np.floor(storey) - 0.55) < 0.27)
        facade = self.windows_m[solid] > 0
        window &= facade & ~upper
        glass |= window

        low = points[2]
        wheeled = self.wheels[solid]
        hub = (np.abs(a) - 0.62 * length) ** 2 + (low - 0.33) ** 2
        dark = (self.lights[solid] & (low < 0.24)) | (wheeled & side & (hub < 0.34**2))
        rim_of_wheel = wheeled & side & (hub < 0.17**2)
        lamp = self.lights[solid] & end & (size_b > 0.58) & (np.abs(low - 0.68) < 0.13)
        plate = self.lights[solid] & end & (np.abs(b) < 0.27) & (np.abs(low - 0.5) < 0.07)

        colours = []
        for k in range(3):
            value = self.rgb[solid, k] * light
            value = np.where(glass, 0.1 + 0.22 * look.horizon[k] * (0.4 + level) * np.where(facade, 0.6, 1.0), value)
            value = np.where(plate, 0.85 * light, value)
            value = np.where(dark, 0.05, value)
            value = np.where(rim_of_wheel, 0.42 * light, value)
            value = np.where(lamp, np.where(a > 0, (1.0, 0.98, 0.86)[k], (0.8, 0.06, 0.05)[k]), value)
            colours.append(value.astype(np.float32))
        return colours
