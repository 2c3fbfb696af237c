"""Describe a scene, in metres; images and labels are both computed from this description.

Nothing here is rasterised. A road is a curve of two arcs that meet with a common tangent, so that the distance along it
``s`` and the distance to the left of it ``t`` of any ground point have closed forms. Surfaces are signed distances,
negative inside; markings are intervals of ``t``, with dashes in ``s``. The labels evaluate these functions at the
cells' centres, the renderer at its samples.

Functions of ground points take arrays x, y of one shape, in float32 or float64, and return the same type.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from bevreshape.geometry import BEVGrid

Array = NDArray[np.floating]

CLASSES = ("drivable", "lane", "crossing", "vehicle")
FILLET_M = 4.0
"""Radius of the rounded corner between two roads that meet."""
JUNCTION_CLEAR_M = 2.5
"""Lane markings end this far from the surface of another road."""
CROSSING_CLEAR_M = 0.8
"""Lane markings end this far from a pedestrian crossing."""
CROSSING_INSET_M = 0.3
"""A crossing ends this far from the road's edge."""

YELLOW, WHITE = (0.88, 0.66, 0.14), (0.93, 0.93, 0.9)


@dataclass(frozen=True)
class Marking:
    """Describe a line along a road: ``offset_m`` to the left of its curve, solid when ``dash_m == period_m``."""

    offset_m: float
    width_m: float
    dash_m: float = 1.0
    period_m: float = 1.0
    phase_m: float = 0.0
    yellow: bool = False

    def painted_length(self, s: Array) -> Array:
        """Return the integral of the dashes from 0 to ``s``, in metres."""
        turn = (s + self.phase_m) * (1.0 / self.period_m)
        whole = np.floor(turn)
        return whole * self.dash_m + np.minimum((turn - whole) * self.period_m, self.dash_m)

    def is_painted(self, s: Array) -> NDArray[np.bool_]:
        """Return whether ``s`` is on a dash."""
        turn = (s + self.phase_m) / self.period_m
        return (turn - np.floor(turn)) * self.period_m < self.dash_m


@dataclass(frozen=True)
class Crossing:
    """Describe a zebra crossing over the whole road: from ``s_m - length_m / 2`` to ``s_m + length_m / 2`` along it."""

    s_m: float
    length_m: float
    stripes: Marking
    """The stripes as a line's dashes, with ``t`` instead of ``s``."""


@dataclass(frozen=True)
class Road:
    """Describe a strip along a curve through (x, y) with ``heading`` (radians); its curvature (1/m) changes there."""

    x: float
    y: float
    heading: float
    curvature_behind: float
    curvature_ahead: float
    right_m: float
    """Right edge, as ``t``."""
    left_m: float
    """Left edge, as ``t``."""
    lanes: tuple[tuple[float, int], ...] = ()
    """(middle as ``t``, direction +1 or -1) of every lane that is driven on."""
    parking: tuple[tuple[float, int], ...] = ()
    """The same for strips of parked vehicles."""
    start_m: float = -math.inf
    end_m: float = math.inf
    markings: tuple[Marking, ...] = ()
    crossings: tuple[Crossing, ...] = ()

    @property
    def middle_m(self) -> float:
        """Return the middle of the surface, as ``t``."""
        return 0.5 * (self.left_m + self.right_m)

    @property
    def half_m(self) -> float:
        """Return half the width of the surface."""
        return 0.5 * (self.left_m - self.right_m)

    def along_across(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return (s, t) of ground points: metres along the curve from its reference point, and to the left of it.

        With curvature κ and (u, v) in the frame of the reference point the curve's circle has its centre at v = 1/κ;
        ``t = (1 - √((κu)² + (1 - κv)²)) / κ``, written so that nothing cancels as κ → 0.
        """
        dx, dy = x - self.x, y - self.y
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        one = np.ones_like(u)
        kappa = np.where(u < 0, self.curvature_behind * one, self.curvature_ahead * one)
        q = kappa * (u * u + v * v) - 2 * v
        t = -q / (1 + np.sqrt(np.maximum(1 + kappa * q, 0)))
        s = np.arctan2(kappa * u, 1 - kappa * v) / kappa
        return s, t

    def point(self, s: float | Array, t: float | Array) -> tuple[Array, Array, Array]:
        """Return (x, y, heading) at (s, t), each (p,), the inverse of :meth:`along_across`."""
        s, t = np.atleast_1d(s).astype(np.float64), np.atleast_1d(t).astype(np.float64)
        kappa = np.where(s < 0, self.curvature_behind, self.curvature_ahead)
        radius = 1 / kappa
        u = np.sin(kappa * s) * (radius - t)
        v = radius - np.cos(kappa * s) * (radius - t)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return self.x + cos * u - sin * v, self.y + sin * u + cos * v, self.heading + kappa * s

    def distance(self, s: Array, t: Array) -> Array:
        """Return the signed distance to the surface's edge, negative inside."""
        across = np.abs(t - self.middle_m) - self.half_m
        if math.isinf(self.start_m) and math.isinf(self.end_m):
            return across
        return np.maximum(across, np.maximum(self.start_m - s, s - self.end_m))


@dataclass(frozen=True)
class Solid:
    """Describe a box (or the ellipsoid inside it) in the scene, and the paint of its faces.

    ``glass`` is a band of windows, in fractions of the height; ``side_glass_from`` is the fraction of the half length
    from which on (towards the front) the sides have it too. ``windows_m`` > 0 makes a façade with that pitch.
    """

    x: float
    y: float
    yaw: float
    length_m: float
    width_m: float
    bottom_m: float
    top_m: float
    rgb: tuple[float, float, float]
    round: bool = False
    wheels: bool = False
    lights: bool = False
    glass: tuple[float, float] = (2.0, 2.0)
    side_glass_from: float = 2.0
    windows_m: float = 0.0


@dataclass(frozen=True)
class Vehicle:
    """Describe a vehicle: its footprint on the ground and its solids."""

    x: float
    y: float
    yaw: float
    length_m: float
    width_m: float
    solids: tuple[Solid, ...]

    def covers(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Return whether ground points are under it."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        along = cos * (x - self.x) + sin * (y - self.y)
        left = cos * (y - self.y) - sin * (x - self.x)
        return (np.abs(along) <= self.length_m / 2) & (np.abs(left) <= self.width_m / 2)


@dataclass(frozen=True)
class Look:
    """Describe light, colors and the camera's sensor, which do not affect the labels."""

    sun: tuple[float, float, float]
    """Unit vector towards the sun."""
    shade: float
    """Fraction of the light that stays in the shadow."""
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    clouds: float
    terrain: tuple[float, float, float]
    asphalt: tuple[float, float, float]
    pavement: tuple[float, float, float]
    pavement_m: float
    """Width of the pavement along every road; 0 for a country road."""
    wear: float
    """Share of worn paint, 0..1."""
    grain: float
    """Contrast of the surfaces."""
    surface: tuple[float, float, float]
    """Rotation (radians) and shift (metres) of the surface's pattern."""
    haze_m: float
    gain: tuple[float, float, float]
    noise: float
    """Standard deviation of the sensor's noise; white is 1."""


@dataclass(frozen=True)
class Scene:
    """Hold roads (the ego vehicle drives on the first), vehicles and roadside objects, and the appearance."""

    roads: tuple[Road, ...]
    vehicles: tuple[Vehicle, ...]
    scenery: tuple[Solid, ...]
    look: Look
    patches: tuple[tuple[float, float, float, float, float], ...] = field(default=())
    """Repaired patches of the first road: s, t, half length, half width in metres, brightness."""

    def ground(self, x: Array, y: Array) -> "Ground":
        """Return the scene's ground at points x, y."""
        return Ground(self.roads, [road.along_across(x, y) for road in self.roads])


class Ground:
    """Describe the ground at given points.

    Attributes:
        st: (s, t) of the points for every road.
        distances: signed distance to every road's edge, negative inside.
    """

    def __init__(self, roads: tuple[Road, ...], st: list[tuple[Array, Array]]) -> None:
        self.roads = roads
        self.st = st
        self.distances = [road.distance(s, t) for road, (s, t) in zip(roads, st, strict=True)]

    def surface(self) -> Array:
        """Return the signed distance to the edge of all road surface; corners between two roads are rounded."""
        if len(self.distances) == 1:
            return self.distances[0]
        a, b = self.distances
        near = np.hypot(np.maximum(FILLET_M - a, 0), np.maximum(FILLET_M - b, 0))
        return np.maximum(FILLET_M, np.minimum(a, b)) - near

    def paintable(self, road: int) -> Array:
        """Return metres by which a point is inside the parts of a road with lane markings; negative outside."""
        s, _ = self.st[road]
        limits = [other - JUNCTION_CLEAR_M for i, other in enumerate(self.distances) if i != road]
        for crossing in self.roads[road].crossings:
            limits.append(np.abs(s - crossing.s_m) - (crossing.length_m / 2 + CROSSING_CLEAR_M))
        return np.minimum.reduce(limits) if limits else np.full_like(s, np.inf)

    def crossing(self, road: int, crossing: Crossing) -> Array:
        """Return the signed distance to a crossing's edge, negative inside."""
        s, t = self.st[road]
        strip = self.roads[road]
        along = np.abs(s - crossing.s_m) - crossing.length_m / 2
        return np.maximum(along, np.abs(t - strip.middle_m) - (strip.half_m - CROSSING_INSET_M))


@cache
def _centers(grid: BEVGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ground points x, y of the cells' centres, each (rows, cols)."""
    centers = grid.centers(dtype=torch.float64).numpy()
    return centers[..., 0], centers[..., 1]


def bev_labels(scene: Scene, grid: BEVGrid, lane_label_m: float) -> NDArray[np.bool_]:
    """Return the exact target, (4, rows, cols), of :data:`CLASSES`, evaluated at the cells' centres.

    A cell is ``lane`` when the middle of a marking, painted next to the cell's centre (dashes count, gaps do not),
    passes it within half of ``lane_label_m``, or of the marking's width where that is more.
    """
    x, y = _centers(grid)
    ground = scene.ground(x, y)
    lane, crossing, vehicle = (np.zeros(grid.shape, bool) for _ in range(3))
    for i, road in enumerate(scene.roads):
        s, t = ground.st[i]
        open_ = (ground.paintable(i) > 0) & (ground.distances[i] <= 0)
        for marking in road.markings:
            near = np.abs(t - marking.offset_m) <= max(marking.width_m, lane_label_m) / 2
            lane |= near & marking.is_painted(s) & open_
        for zebra in road.crossings:
            crossing |= ground.crossing(i, zebra) <= 0
    for car in scene.vehicles:
        reach = 0.5 * (car.length_m + car.width_m)
        if x[-1, 0] - reach <= car.x <= x[0, 0] + reach and y[0, -1] - reach <= car.y <= y[0, 0] + reach:
            around = np.ix_(np.abs(x[:, 0] - car.x) <= reach, np.abs(y[0] - car.y) <= reach)
            vehicle[around] |= car.covers(x[around], y[around])
    return np.stack([ground.surface() <= 0, lane, crossing, vehicle])
