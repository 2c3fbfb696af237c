"""Intersect rays with boxes and ellipsoids, and shade the hits."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bevreshape.data.sources.synthetic.rays import Array, Rays, Window
from bevreshape.data.sources.synthetic.world import Look, Solid

CUT_M = 0.1
"""Depth at which solids that reach behind the camera are cut off."""
NEVER = np.float32(0)
"""Nearness of a missed solid."""
_SIGNS = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
_PAIRS = np.triu_indices(8, 1)


@dataclass(frozen=True)
class _Surface:
    """Describe p points on the surfaces of solids.

    Attributes:
        solid: (p,) indices of the solids.
        local: coordinates ahead, left and up from the solid's centre, metres, (p,) each.
        relative: the same relative to half its length, width and height.
        height: (p,) above the ground, metres.
        light: (p,) brightness.
        end: (p,) on the front or the back.
        side: (p,) on the left or the right.
    """

    solid: NDArray[np.intp]
    local: list[Array]
    relative: list[Array]
    height: Array
    light: Array
    end: NDArray[np.bool_]
    side: NDArray[np.bool_]


class Solids:
    """Hold the solids of a scene as columns, each in its own frame: a along its length, b to its left, c up."""

    def __init__(self, solids: Sequence[Solid]) -> None:
        self.solids = solids
        self.round = np.array([s.round for s in solids], bool)
        self.vehicle = np.array([s.lights or s.wheels or s.glass[0] < 1 for s in solids], bool)
        self.facade = np.array([s.windows_m > 0 for s in solids], bool)
        self.rgb = np.array([s.rgb for s in solids], np.float32).reshape(-1, 3).T
        self.frames = np.array(
            [
                (s.x, s.y, (s.bottom_m + s.top_m) / 2, math.cos(s.yaw), math.sin(s.yaw),
                 s.length_m / 2, s.width_m / 2, (s.top_m - s.bottom_m) / 2)
                for s in solids
            ],
            np.float32,
        ).reshape(-1, 8).T  # fmt: skip
        self.paint = np.array(
            [(s.glass[0], s.glass[1], s.side_glass_from, s.wheels, s.lights, s.windows_m) for s in solids], np.float32
        ).reshape(-1, 6).T  # fmt: skip

    def corners(self) -> Array:
        """Return corners (m, 8, 3) in the ego frame."""
        x, y, z, cos, sin, *half = self.frames.astype(np.float64)[..., None]
        a, b, c = (_SIGNS[:, k] * half[k] for k in range(3))
        return np.stack([x + cos * a - sin * b, y + sin * a + cos * b, z + c], axis=-1)

    def shadow_corners(self, sun: tuple[float, float, float]) -> Array:
        """Return the corners' shadows on the ground, (m, 8, 3); the solid's shadow is in their convex hull."""
        corners = self.corners()
        return corners - corners[..., 2:] * (np.array(sun) / sun[2])

    def seen(self, rays: Rays) -> "Bounds":
        """Return the bounds of the solids along the rays of a camera; nearness is 1 over depth.

        A ray ``o + depth · d`` meets the plane at ``h`` across an axis at a nearness of ``d / (h - o)``, linear in the
        pixel. It is in a box from the last plane that it enters to the first that it leaves. It meets the ellipsoid at
        ``(toward + √(toward² - c · square)) / c``, with ``c = o · o - 1`` in the sphere's frame.
        """
        half = self.frames[5:].T.astype(np.float64)  # m 3
        origin = self._local(rays.center[:, None] - self.frames[:3].T[..., None])[..., 0]
        direction = self._local(np.broadcast_to(rays.ego_from_pixel, (len(half), 3, 3)))
        gap = np.stack([-(origin + half), half - origin], axis=1)  # m 2 3
        planes = direction[:, None] / _away_from_zero(gap)[..., None]
        entered = np.stack([origin < -half, origin > half], axis=1).reshape(-1, 6)
        order = np.argsort(~entered, axis=1, kind="stable")
        planes = np.take_along_axis(planes.reshape(-1, 6, 3), order[..., None], axis=1)

        origin, direction = (origin / half)[..., None], direction / half[..., None]
        beyond = np.maximum((origin**2).sum(1) - 1, 1e-6)[..., None]
        toward = -(origin * direction).sum(1, keepdims=True) / beyond
        cone = np.concatenate([toward, toward, direction / np.sqrt(beyond), np.zeros_like(toward)], axis=1)
        return Bounds(self.round, np.where(self.round[:, None, None], cone, planes), entered.sum(1))

    def shadows(self, rays: Rays, sun: tuple[float, float, float]) -> "Bounds":
        """Return the bounds along rays from the pixels' ground points to the sun; nearness is above 0 in a shadow.

        In homogeneous coordinates the ground point is linear in the pixel. So is the distance from it to a plane along
        the sun's ray, times the point's weight. Above the horizon the weight is negative and the values are undefined.
        """
        half = self.frames[5:].T.astype(np.float64)[..., None]  # m 3 1
        weight = -rays.ego_from_pixel[2]  # linear in the pixel as well
        ground = rays.center[:, None] * weight + rays.center[2] * rays.ego_from_pixel  # 3 3
        point = self._local(ground - self.frames[:3].T[..., None] * weight)
        to_sun = self._local(np.broadcast_to(np.array(sun)[:, None], (len(half), 3, 1)))
        slope = _away_from_zero(to_sun)
        reach = np.abs(half / slope) * weight
        planes = np.concatenate([reach - point / slope, -reach - point / slope], axis=1)

        point, to_sun = point / half, to_sun / half
        to_sun /= np.linalg.norm(to_sun, axis=1, keepdims=True)
        toward = -(point * to_sun).sum(1, keepdims=True)
        aside = np.cross(point, to_sun, axis=1)
        radius = np.broadcast_to(weight, toward.shape)
        cylinder = np.concatenate([toward, radius, aside, np.zeros_like(toward)], axis=1)
        return Bounds(self.round, np.where(self.round[:, None, None], cylinder, planes), np.full(len(half), 3))

    def _local(self, vectors: Array) -> Array:
        """Rotate vectors (m, 3, k) of the ego frame into the frames of the solids."""
        cos, sin = self.frames[3:5, :, None]
        x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
        return np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)

    def shade(self, solid: NDArray[np.intp], points: Array, look: Look) -> list[Array]:
        """Return colors of points (3, p) on the surfaces of the solids ``solid`` (p,)."""
        x, y, z, cos, sin, *half = np.take(self.frames, solid, axis=1)
        dx, dy = points[0] - x, points[1] - y
        local = (cos * dx + sin * dy, cos * dy - sin * dx, points[2] - z)
        relative = [p / h for p, h in zip(local, half, strict=True)]
        size = [np.abs(r) for r in relative]
        end = (size[0] >= size[1]) & (size[0] >= size[2])  # the front or the back
        side = ~end & (size[1] >= size[2])
        sun = self._local(np.broadcast_to(np.array(look.sun, np.float32)[:, None], (len(self.solids), 3, 1)))[..., 0]
        strength = np.float32(0.75 * (1.25 - look.shade))
        ahead, left, up = sun.T
        facing = np.stack([-ahead, ahead, -left, left, up], axis=1)  # the back, front, right, left and top
        skyward = np.array([0.165, 0.165, 0.165, 0.165, 0.3], np.float32)
        face = np.where(end, local[0] > 0, np.where(side, 2 + (local[1] > 0), 4))
        light = (0.34 + skyward + strength * np.maximum(facing, 0)).ravel()[5 * solid + face]

        curved = np.flatnonzero(self.round[solid])
        if curved.size:
            normal = np.stack([r[curved] / h[curved] for r, h in zip(relative, half, strict=True)])
            facing_sun = (normal * sun[solid[curved]].T).sum(0) / np.sqrt((normal**2).sum(0))
            a, b, c = (p[curved] for p in local)
            leaves = 1 + 0.45 * np.sin(7 * a + 3 * c) * np.sin(6 * b - 4 * a) * np.sin(8 * c + 2 * b)
            light[curved] = (0.49 + 0.15 * relative[2][curved] + strength * np.maximum(facing_sun, 0)) * leaves
        colors = [color * light for color in np.take(self.rgb, solid, axis=1)]

        for chosen, paint in ((self.facade, self._facade), (self.vehicle, self._vehicle)):
            at = np.flatnonzero(chosen[solid])
            if at.size:
                part = [color[at] for color in colors]
                near, share = [p[at] for p in local], [r[at] for r in relative]
                paint(part, _Surface(solid[at], near, share, points[2][at], light[at], end[at], side[at]), look)
                for color, painted in zip(colors, part, strict=True):
                    color[at] = painted
        return colors

    def _facade(self, colors: list[Array], at: _Surface, look: Look) -> None:
        """Paint storeys of 3 m with windows, on all four sides."""
        column = np.where(at.end, at.local[1], at.local[0]) / self.paint[5, at.solid]
        storey = at.height * np.float32(1 / 3)
        window = (np.abs(column - np.rint(column)) < 0.27) & (np.abs(storey - np.floor(storey) - 0.55) < 0.27)
        pane = np.flatnonzero(window & (at.end | at.side))
        for k, color in enumerate(colors):
            color[pane] = 0.1 + 0.16 * look.horizon[k] * (0.9 + 0.5 * at.relative[2][pane])

    def _vehicle(self, colors: list[Array], at: _Surface, look: Look) -> None:
        """Paint windows with pillars, wheels, a dark underside, lamps and a number plate."""
        relative, height, end, side = at.relative, at.height, at.end, at.side
        glass_low, glass_high, glass_from, wheels, lights, _ = np.take(self.paint, at.solid, axis=1)
        a, b, _ = at.local
        length = self.frames[5, at.solid]
        level = 0.5 + 0.5 * relative[2]
        glass = (
            (level > glass_low)
            & (level < glass_high)
            & (np.where(end, np.abs(relative[1]), np.abs(relative[0])) < 0.93)
        )
        pillar = np.abs(a - 1.1 * np.rint(a * np.float32(1 / 1.1))) < 0.05
        glass &= (end & ((a > 0) | (glass_from < 0))) | (side & (relative[0] > glass_from) & ~pillar)
        hub = (np.abs(a) - 0.62 * length) ** 2 + (height - 0.33) ** 2
        wheel = (wheels > 0) & side & (hub < 0.34**2)
        lit = lights > 0
        dark = np.flatnonzero((lit & (height < 0.24)) | wheel)
        rim = np.flatnonzero(wheel & (hub < 0.17**2))
        lamp = lit & end & (np.abs(relative[1]) > 0.58) & (np.abs(height - 0.68) < 0.13)
        front, back = np.flatnonzero(lamp & (a > 0)), np.flatnonzero(lamp & (a < 0))
        plate = np.flatnonzero(lit & end & (np.abs(b) < 0.27) & (np.abs(height - 0.5) < 0.07))
        pane = np.flatnonzero(glass)
        for k, color in enumerate(colors):
            color[pane] = 0.1 + 0.22 * look.horizon[k] * (0.4 + level[pane])
            color[plate] = 0.85 * at.light[plate]
            color[dark] = 0.05
            color[rim] = 0.42 * at.light[rim]
            color[front] = (1.0, 0.98, 0.86)[k]
            color[back] = (0.8, 0.06, 0.05)[k]


class Bounds:
    """Bound solids in an image by functions linear in the pixel.

    Args:
        round: (m,) which of them are ellipsoids.
        functions: (m, 6, 3) of (u, v, 1): for a box of the planes where a ray enters it, then of those where it leaves;
            for an ellipsoid ``f`` with its nearness ``f0 + √(f1² - f2² - f3² - f4²)``.
        entered: (m,) number of planes where a ray enters.
    """

    def __init__(self, round: NDArray[np.bool_], functions: Array, entered: NDArray[np.intp]) -> None:
        self.round = round.tolist()
        self.functions = functions.astype(np.float32)
        self.entered = entered.tolist()

    def nearness(self, i: int, rays: Rays, window: Window) -> Array:
        """Return the nearness of solid ``i`` along a window's rays (h, w); not above 0 where they miss it."""
        fields = rays.evaluate(self.functions[i], window)
        if self.round[i]:
            squares = fields[1:5] ** 2
            under = squares[0] - squares[1] - squares[2] - squares[3]
            return np.where(under > 0, fields[0] + np.sqrt(np.maximum(under, 0)), NEVER)
        enter = np.minimum.reduce(fields[: self.entered[i]], axis=0, initial=np.inf)
        leave = np.maximum.reduce(fields[self.entered[i] :], axis=0)
        return np.where(enter > leave, enter, NEVER)


def _away_from_zero(values: Array) -> Array:
    """Return the values, replaced near 0 so that reciprocals are finite."""
    return np.copysign(np.maximum(np.abs(values), 1e-6), values)


def windows(corners: Array, rays: Rays) -> Iterator[tuple[int, Window, float]]:
    """Yield the hulls that may be in an image, the nearest first.

    A hull that reaches behind the camera is cut at ``CUT_M``, so that no point is projected from behind.

    Args:
        corners: (m, 8, 3) in the ego frame.
        rays: of the image.

    Yields:
        The hull's index, the samples that its projection may cover, and the depth of its nearest corner.
    """
    homogeneous = corners @ rays.pixel_from_ego[:, :3].T + rays.pixel_from_ego[:, 3]  # m 8 3
    depth = homogeneous[..., 2]
    nearest, farthest = depth.min(1), depth.max(1)
    pixels = homogeneous[..., :2] / np.where(np.abs(depth) < CUT_M, CUT_M, depth)[..., None]
    low, high = pixels.min(1), pixels.max(1)
    for i in np.flatnonzero((nearest < CUT_M) & (farthest > CUT_M)).tolist():
        a, b = homogeneous[i, _PAIRS[0]], homogeneous[i, _PAIRS[1]]
        cut = (a[:, 2] > CUT_M) != (b[:, 2] > CUT_M)
        a, b = a[cut], b[cut]
        between = a + (b - a) * ((CUT_M - a[:, 2]) / (b[:, 2] - a[:, 2]))[:, None]
        kept = np.concatenate([homogeneous[i][depth[i] > CUT_M], between])
        kept = kept[:, :2] / kept[:, 2:]
        low[i], high[i] = kept.min(0), kept.max(0)
    slack = np.array([0.0, rays.stagger])
    first = np.clip(np.ceil(low - slack), 0, rays.shape[::-1]).astype(int)
    stop = np.clip(np.floor(high + slack) + 1, 0, rays.shape[::-1]).astype(int)
    seen = np.flatnonzero((farthest > CUT_M) & (first < stop).all(1))
    seen = seen[np.argsort(nearest[seen], kind="stable")]
    boxes = np.concatenate([first[seen], stop[seen]], axis=1).tolist()
    for i, (left, top, right, bottom), depth_m in zip(seen.tolist(), boxes, nearest[seen].tolist(), strict=True):
        yield i, (slice(top, bottom), slice(left, right)), depth_m
