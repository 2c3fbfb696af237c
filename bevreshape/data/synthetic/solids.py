"""Boxes and ellipsoids seen by rays: where a ray meets them, and the colour that it finds there."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bevreshape.data.synthetic.world import Look, Solid

Array = NDArray[np.floating]
Coordinate = TypeVar("Coordinate", Array, np.float32)
Window = tuple[slice, slice]

CUT_M = 0.1
"""Depth at which what reaches behind the camera is cut off."""
NEVER = np.float32(np.inf)
_SIGNS = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
_PAIRS = np.triu_indices(8, 1)


class Solids:
    """The solids of a scene as columns, each in its own frame: a along its length, b to its left, c up."""

    def __init__(self, solids: Sequence[Solid]) -> None:
        self.solids = solids
        self.round = np.array([s.round for s in solids], bool)
        self.vehicle = np.array([s.lights or s.wheels or s.glass[0] < 1 for s in solids], bool)
        self.facade = np.array([s.windows_m > 0 for s in solids], bool)
        self.rgb = np.array([s.rgb for s in solids], np.float32).reshape(-1, 3).T
        self.frames = np.array(
            [
                (s.x, s.y, (s.bottom_m + s.top_m) / 2, np.cos(s.yaw), np.sin(s.yaw),
                 s.length_m / 2, s.width_m / 2, (s.top_m - s.bottom_m) / 2)
                for s in solids
            ],
            np.float32,
        ).reshape(-1, 8).T  # fmt: skip
        self.paint = np.array(
            [(s.glass[0], s.glass[1], s.side_glass_from, s.wheels, s.lights, s.windows_m) for s in solids], np.float32
        ).reshape(-1, 6).T  # fmt: skip

    def corners(self) -> Array:
        """(m, 8, 3) corners in the ego frame."""
        x, y, z, cos, sin, *half = self.frames.astype(np.float64)[..., None]
        a, b, c = (_SIGNS[:, k] * half[k] for k in range(3))
        return np.stack([x + cos * a - sin * b, y + sin * a + cos * b, z + c], axis=-1)

    def shadow_corners(self, sun: tuple[float, float, float]) -> Array:
        """(m, 8, 3) where the corners' shadows fall on the ground; the shadow lies in their convex hull."""
        corners = self.corners()
        return corners - corners[..., 2:] * (np.array(sun) / sun[2])

    def intersect(self, i: int, origin: Sequence[Coordinate], direction: Sequence[Coordinate]) -> Array:
        """Ray parameter at which rays enter solid ``i``; infinite where they miss it.

        Origins or directions may be constant; they are broadcast against each other. Rays start outside the solid.
        """
        x, y, z, cos, sin, *half = self.frames[:, i]
        ox, oy, oz = origin[0] - x, origin[1] - y, origin[2] - z
        dx, dy, dz = direction
        local = (
            (cos * ox + sin * oy, cos * dx + sin * dy),
            (cos * oy - sin * ox, cos * dy - sin * dx),
            (oz, dz),
        )
        if self.round[i]:
            (oa, da), (ob, db), (oc, dc) = ((o / h, d / h) for (o, d), h in zip(local, half, strict=True))
            square = da * da + db * db + dc * dc
            toward = -(oa * da + ob * db + oc * dc)
            under = toward * toward - square * (oa * oa + ob * ob + oc * oc - 1)
            t = (toward - np.sqrt(np.maximum(under, 0))) / square
            return np.where((under > 0) & (t > 0), t, NEVER)
        enter, leave = -NEVER, NEVER
        with np.errstate(divide="ignore"):  # a ray along a slab meets it at ±infinity, with the right sign
            for (o, d), h in zip(local, half, strict=True):
                inverse = 1 / d
                low, high = (-h - o) * inverse, (h - o) * inverse
                enter = np.maximum(enter, np.minimum(low, high))
                leave = np.minimum(leave, np.maximum(low, high))
        return np.where((enter <= leave) & (leave > 0), np.maximum(enter, 0), NEVER)

    def shade(self, solid: NDArray[np.intp], points: Sequence[Array], look: Look) -> list[Array]:
        """Colours of points, each coordinate (p,), on the surfaces of the solids ``solid`` (p,)."""
        x, y, z, cos, sin, *half = np.take(self.frames, solid, axis=1)
        dx, dy = points[0] - x, points[1] - y
        local = (cos * dx + sin * dy, cos * dy - sin * dx, points[2] - z)
        relative = [p / h for p, h in zip(local, half, strict=True)]
        size = [np.abs(r) for r in relative]
        end = (size[0] >= size[1]) & (size[0] >= size[2])  # the front or the back
        side = ~end & (size[1] >= size[2])
        sun = (cos * np.float32(look.sun[0]) + sin * np.float32(look.sun[1]),
               cos * np.float32(look.sun[1]) - sin * np.float32(look.sun[0]), np.float32(look.sun[2]))  # fmt: skip
        facing = np.where(end, np.sign(local[0]) * sun[0], np.where(side, np.sign(local[1]) * sun[1], sun[2]))
        skyward = np.where(end | side, np.float32(0.165), np.float32(0.3))

        curved = np.flatnonzero(self.round[solid])
        if curved.size:
            normal = [(r[curved] / h[curved]) for r, h in zip(relative, half, strict=True)]
            length = np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
            a, b, c = (p[curved] for p in local)
            facing[curved] = (normal[0] * sun[0][curved] + normal[1] * sun[1][curved] + normal[2] * sun[2]) / length
            skyward[curved] = 0.15 + 0.15 * relative[2][curved]
            leaves = 1 + 0.45 * np.sin(7 * a + 3 * c) * np.sin(6 * b - 4 * a) * np.sin(8 * c + 2 * b)
        light = 0.34 + skyward + np.float32(0.75 * (1.25 - look.shade)) * np.maximum(facing, 0)
        if curved.size:
            light[curved] *= leaves
        colours = [self.rgb[k, solid] * light for k in range(3)]

        for chosen, paint in ((self.facade, self._facade), (self.vehicle, self._vehicle)):
            at = np.flatnonzero(chosen[solid])
            if at.size:
                part = [colour[at] for colour in colours]
                paint(
                    part, solid[at], [p[at] for p in local], [r[at] for r in relative], points[2][at], light[at],
                    end[at], side[at], look,
                )  # fmt: skip
                for colour, painted in zip(colours, part, strict=True):
                    colour[at] = painted
        return colours

    def _facade(
        self,
        colours: list[Array],
        solid: NDArray[np.intp],
        local: list[Array],
        relative: list[Array],
        height: Array,
        light: Array,
        end: NDArray[np.bool_],
        side: NDArray[np.bool_],
        look: Look,
    ) -> None:
        """Storeys of 3 m with windows, on all four sides."""
        column = np.where(end, local[1], local[0]) / self.paint[5, solid]
        storey = height * np.float32(1 / 3)
        window = (np.abs(column - np.rint(column)) < 0.27) & (np.abs(storey - np.floor(storey) - 0.55) < 0.27)
        at = np.flatnonzero(window & (end | side))
        for k, colour in enumerate(colours):
            colour[at] = 0.1 + 0.16 * look.horizon[k] * (0.9 + 0.5 * relative[2][at])

    def _vehicle(
        self,
        colours: list[Array],
        solid: NDArray[np.intp],
        local: list[Array],
        relative: list[Array],
        height: Array,
        light: Array,
        end: NDArray[np.bool_],
        side: NDArray[np.bool_],
        look: Look,
    ) -> None:
        """Windows with pillars, wheels, a dark underside, lamps and a number plate."""
        glass_low, glass_high, glass_from, wheels, lights, _ = np.take(self.paint, solid, axis=1)
        a, b, _ = local
        length = self.frames[5, solid]
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
        for k, colour in enumerate(colours):
            colour[pane] = 0.1 + 0.22 * look.horizon[k] * (0.4 + level[pane])
            colour[plate] = 0.85 * light[plate]
            colour[dark] = 0.05
            colour[rim] = 0.42 * light[rim]
            colour[front] = (1.0, 0.98, 0.86)[k]
            colour[back] = (0.8, 0.06, 0.05)[k]


def windows(
    corners: Array, pixel_from_ego: Array, shape: tuple[int, int], stagger: float
) -> Iterator[tuple[int, Window, float]]:
    """The hulls that may be in a picture of ``shape`` samples, the nearest first.

    A hull that reaches behind the camera is cut at ``CUT_M``, so that no point is projected from behind.

    Args:
        corners: (m, 8, 3) in the ego frame.
        pixel_from_ego: (3, 4).
        shape: rows and columns.
        stagger: rows by which a sample may lie off its row.

    Yields:
        The hull's number, the samples that its projection may cover, and the depth of its nearest corner.
    """
    homogeneous = corners @ pixel_from_ego[:, :3].T + pixel_from_ego[:, 3]  # m 8 3
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
    slack = np.array([0.0, stagger])
    first = np.clip(np.ceil(low - slack), 0, shape[::-1]).astype(int)
    stop = np.clip(np.floor(high + slack) + 1, 0, shape[::-1]).astype(int)
    seen = np.flatnonzero((farthest > CUT_M) & (first < stop).all(1))
    for i in seen[np.argsort(nearest[seen], kind="stable")].tolist():
        yield i, (slice(first[i, 1], stop[i, 1]), slice(first[i, 0], stop[i, 0])), float(nearest[i])
