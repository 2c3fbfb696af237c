"""Draw the random scene of a seed.

All values are drawn in a fixed order from one generator. The ego vehicle is at the origin on the first road, drives
along +x and keeps to the right.
"""

import math
from dataclasses import replace

import numpy as np

from bevreshape.data.sources.synthetic.world import (
    FILLET_M,
    Crossing,
    Ground,
    Look,
    Marking,
    Road,
    Scene,
    Solid,
    Vehicle,
)

RANGE_M = (-60.0, 75.0)
"""Range of the first road with vehicles and scenery, behind and ahead of the ego vehicle."""
CROSS_RANGE_M = (-45.0, 45.0)
"""Range of the second road, to both sides of the junction."""

PAINTS = (
    (0.85, 0.86, 0.87), (0.62, 0.64, 0.66), (0.33, 0.34, 0.36), (0.13, 0.13, 0.15), (0.09, 0.1, 0.12),
    (0.62, 0.09, 0.08), (0.1, 0.2, 0.5), (0.16, 0.36, 0.6), (0.1, 0.3, 0.18), (0.7, 0.62, 0.45), (0.85, 0.62, 0.1),
)  # fmt: skip
FACADES = np.array(
    [(0.66, 0.6, 0.52), (0.55, 0.36, 0.29), (0.72, 0.7, 0.66), (0.5, 0.5, 0.52), (0.74, 0.64, 0.44), (0.42, 0.33, 0.3)]
)
TERRAINS = np.array([(0.27, 0.4, 0.16), (0.33, 0.42, 0.18), (0.42, 0.4, 0.24), (0.45, 0.38, 0.28), (0.24, 0.34, 0.15)])


def draw_scene(*key: int) -> Scene:
    """Draw the scene of a key (seed, split, index), always the same one."""
    rng = np.random.default_rng(key)
    look = _look(rng)
    main = _first_road(rng)
    roads: tuple[Road, ...] = (main,)
    if rng.random() < 0.45:
        roads = _junction(rng, main)
    elif rng.random() < 0.45:
        middle = float(_ego_s(main) + rng.uniform(9, 32))
        roads = (replace(main, crossings=(_zebra(rng, middle),)),)
    vehicles = _traffic(rng, roads)
    scenery = _roadside(rng, roads, look.pavement_m)
    s_ego = _ego_s(main)
    patches = [
        (s_ego + rng.uniform(-5, 45), rng.uniform(main.right_m, main.left_m), rng.uniform(0.5, 5),
        rng.uniform(0.3, 1.6),
         rng.uniform(0.75, 1.08))
        for _ in range(rng.integers(2, 7))
    ]  # fmt: skip
    return Scene(roads, vehicles, scenery, look, tuple(tuple(float(v) for v in patch) for patch in patches))  # type: ignore[misc]


def _ego_s(road: Road) -> float:
    """Return the ego vehicle's position along the first road."""
    s, _ = road.along_across(np.zeros(1), np.zeros(1))
    return float(s[0])


def _look(rng: np.random.Generator) -> Look:
    azimuth, elevation = rng.uniform(-math.pi, math.pi), math.radians(rng.uniform(22, 65))
    sun = (math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation))
    overcast = rng.random()
    blue, grey = np.array([0.33, 0.53, 0.83]), np.array([0.66, 0.69, 0.72])
    zenith = blue + (grey - blue) * overcast
    horizon = zenith + (np.array([0.88, 0.9, 0.92]) - zenith) * rng.uniform(0.6, 0.9)
    town = rng.random() < 0.65
    asphalt = rng.uniform(0.26, 0.42) * (1 + rng.normal(0, 0.02, 3))
    gain = rng.uniform(0.72, 1.15) * (1 + rng.normal(0, 0.03, 3))
    return Look(
        sun=sun,
        shade=float(0.48 + 0.4 * overcast),
        zenith=_rgb(zenith),
        horizon=_rgb(horizon),
        clouds=float(rng.uniform(0, 0.5)),
        terrain=_rgb(TERRAINS[rng.integers(len(TERRAINS))] * rng.uniform(0.8, 1.2)),
        asphalt=_rgb(asphalt),
        pavement=_rgb(rng.uniform(0.5, 0.66) * np.array([1.0, 0.97, 0.92])),
        pavement_m=float(rng.uniform(1.5, 3.5)) if town else 0.0,
        wear=float(rng.uniform(0.0, 0.35)),
        grain=float(rng.uniform(0.06, 0.2)),
        surface=(float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0, 200)), float(rng.uniform(0, 200))),
        haze_m=float(rng.uniform(120, 500)),
        gain=_rgb(gain),
        noise=float(rng.uniform(0.004, 0.018)),
    )


def _rgb(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _curvature(rng: np.random.Generator) -> float:
    """Draw a curvature: a third of all roads is almost straight, the others have radii from 55 m."""
    kappa = rng.uniform(1e-4, 1e-3) if rng.random() < 0.35 else rng.uniform(1e-3, 1 / 55)
    return float(kappa * rng.choice([-1, 1]))


def _section(rng: np.random.Generator, most: int) -> Road:
    """Draw a road at the origin: lanes, parking strips, edges and markings, the directions separated at t = 0."""
    lane_m = float(rng.uniform(2.9, 3.7))
    right_lanes, left_lanes = int(rng.integers(1, most + 1)), int(rng.integers(0 if most > 2 else 1, most))
    left_lanes = max(left_lanes, 2 - right_lanes)
    width = float(rng.uniform(0.1, 0.18))
    dash, period, phase = float(rng.uniform(2, 4)), float(rng.uniform(6, 10)), float(rng.uniform(0, 10))
    lanes = [(-lane_m * (i + 0.5), 1) for i in range(right_lanes)] + [
        (lane_m * (i + 0.5), -1) for i in range(left_lanes)
    ]
    markings = [Marking(-lane_m * i, width, dash, period, phase) for i in range(1, right_lanes)]
    markings += [Marking(lane_m * i, width, dash, period, phase) for i in range(1, left_lanes)]
    if left_lanes:
        yellow, style = bool(rng.random() < 0.5), rng.integers(3)
        if style == 0:
            markings.append(Marking(0.0, width, dash, period, phase, yellow))
        elif style == 1:
            markings.append(Marking(0.0, width, yellow=yellow))
        else:
            markings += [Marking(side * (0.08 + width / 2), width, yellow=yellow) for side in (-1, 1)]
    edges, parking = [], []
    for side, count in ((-1, right_lanes), (1, left_lanes)):
        edge, parked = lane_m * count, rng.random() < 0.4
        if parked:
            parking.append((side * (edge + 1.25), -side))
        if parked or rng.random() < 0.7:
            markings.append(Marking(side * (edge + 0.1), width))
        edges.append(side * (edge + (2.4 if parked else float(rng.uniform(0.35, 0.8)))))
    return Road(
        0.0, 0.0, 0.0, _curvature(rng), _curvature(rng), edges[0], edges[1], tuple(lanes), tuple(parking),
        markings=tuple(markings),
    )  # fmt: skip


def _first_road(rng: np.random.Generator) -> Road:
    """Draw the ego vehicle's road, placed so that the vehicle is at the origin and heads along +x."""
    road = _section(rng, most=3)
    mine = [t for t, direction in road.lanes if direction > 0]
    t = mine[rng.integers(len(mine))] + float(rng.normal(0, 0.2))
    x, y, heading = (float(v[0]) for v in road.point(-float(rng.uniform(0, 30)), t))
    turn = heading + float(rng.normal(0, 0.02))  # the vehicle's yaw in the road's frame
    cos, sin = math.cos(turn), math.sin(turn)
    return replace(road, x=-cos * x - sin * y, y=sin * x - cos * y, heading=-turn)


def _zebra(rng: np.random.Generator, s_m: float) -> Crossing:
    period = float(rng.uniform(0.9, 1.2))
    stripes = Marking(0.0, 0.0, dash_m=period / 2, period_m=period, phase_m=float(rng.uniform(0, 1)))
    return Crossing(s_m, float(rng.uniform(2.8, 4.2)), stripes)


def _junction(rng: np.random.Generator, main: Road) -> tuple[Road, Road]:
    """Draw a second road across the first, or ending on it, with zebra crossings on some of the arms."""
    s_main = _ego_s(main) + float(rng.uniform(10, 42))
    x, y, heading = (float(v[0]) for v in main.point(s_main, main.middle_m))
    angle = float(rng.uniform(math.radians(62), math.radians(118)))
    ends = [(-math.inf, math.inf), (0.0, math.inf), (-math.inf, 0.0)][rng.integers(3)]
    cross = _section(rng, most=2)
    cross = replace(cross, x=x, y=y, heading=heading + angle, start_m=ends[0], end_m=ends[1])

    def arms(road: Road, other: Road, s: float) -> tuple[Crossing, ...]:
        reach = (other.half_m + road.half_m * abs(math.cos(angle))) / math.sin(angle) + 0.5 * FILLET_M + 2.0
        stops = (s - reach, s + reach)
        return tuple(_zebra(rng, stop) for stop in stops if rng.random() < 0.55 and road.start_m < stop < road.end_m)

    return replace(main, crossings=arms(main, cross, s_main)), replace(cross, crossings=arms(cross, main, 0.0))


def _traffic(rng: np.random.Generator, roads: tuple[Road, ...]) -> tuple[Vehicle, ...]:
    """Draw vehicles in every lane and parking strip that collide neither with each other nor with the ego vehicle."""
    vehicles = [Vehicle(0.5, 0.0, 0.0, 7.0, 2.6, ())]  # the ego vehicle, with distance to the one ahead
    for i, road in enumerate(roads):
        low, high = (_ego_s(road) + RANGE_M[0], _ego_s(road) + RANGE_M[1]) if i == 0 else CROSS_RANGE_M
        for strips, parked in ((road.lanes, False), (road.parking, True)):
            for t, direction in strips:
                gap = rng.uniform(6, 9) if parked else rng.uniform(15, 40)
                s = low + np.cumsum(gap * rng.uniform(0.75, 1.6, int((high - low) / gap)))
                shift, turn = rng.normal(0, 0.05 if parked else 0.2, len(s)), rng.normal(0, 0.02, len(s))
                kept = (rng.random(len(s)) < (0.7 if parked else 0.85)) & (s > road.start_m) & (s < road.end_m)
                x, y, heading = road.point(s[kept], t + shift[kept])
                yaw = heading + turn[kept] + (0 if direction > 0 else math.pi)
                free = _may_park(roads, i, x, y) if parked else np.ones(len(x), bool)
                for at in np.column_stack([x, y, yaw])[free].tolist():
                    car = _vehicle(rng, at[0], at[1], at[2], parked)
                    if not any(_collide(car, other) for other in vehicles):
                        vehicles.append(car)
    return tuple(vehicles[1:])


def _collide(a: Vehicle, b: Vehicle) -> bool:
    """Return whether two footprints are closer than 0.3 m (or, corner to corner, a little farther)."""
    dx, dy = b.x - a.x, b.y - a.y
    if math.hypot(dx, dy) > (a.length_m + b.length_m + a.width_m + b.width_m) / 2:
        return False
    turn = b.yaw - a.yaw
    cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
    for own, other, sign in ((a, b, 1), (b, a, -1)):  # separating axes
        along = sign * (math.cos(own.yaw) * dx + math.sin(own.yaw) * dy)
        left = sign * (math.cos(own.yaw) * dy - math.sin(own.yaw) * dx)
        if abs(along) > (own.length_m + other.length_m * cos + other.width_m * sin) / 2 + 0.3:
            return False
        if abs(left) > (own.width_m + other.length_m * sin + other.width_m * cos) / 2 + 0.3:
            return False
    return True


def _may_park(roads: tuple[Road, ...], road: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return whether points of a road are six metres from any other road, and five from a crossing."""
    ground = Ground(roads, [other.along_across(x, y) for other in roads])
    free = np.ones(len(x), bool)
    for i, distance in enumerate(ground.distances):
        if i != road:
            free &= distance > 6
    for zebra in roads[road].crossings:
        free &= ground.crossing(road, zebra) > 5
    return free


def _vehicle(rng: np.random.Generator, x: float, y: float, yaw: float, parked: bool) -> Vehicle:
    lot, a, b, c = rng.random(4).tolist()
    paint, tone = PAINTS[rng.integers(len(PAINTS))], rng.uniform(0.85, 1.15)
    red, green, blue = (
        min(c * tone * tint, 1.0) for c, tint in zip(paint, rng.uniform(0.95, 1.05, 3).tolist(), strict=True)
    )
    rgb = red, green, blue
    cos, sin = math.cos(yaw), math.sin(yaw)

    def box(ahead: float, length: float, width: float, bottom: float, top: float, **kind: object) -> Solid:
        paint = {"rgb": rgb} | kind
        return Solid(x + cos * ahead, y + sin * ahead, yaw, length, width, bottom, top, **paint)  # type: ignore[arg-type]

    if lot < 0.82 or (parked and lot < 0.88):  # a car
        length, width, height = 3.9 + 0.9 * a, 1.72 + 0.16 * b, 1.42 + 0.3 * c
        waist = 0.56 * height
        cabin = length * (0.5 + 0.12 * b)
        shift = -length * (0.04 + 0.08 * c)
        body = box(0.0, length, width, 0.0, waist, wheels=True, lights=True)
        glass = box(shift, cabin, 0.86 * width, waist, height, glass=(0.12, 0.86), side_glass_from=-1.0)
        return Vehicle(x, y, yaw, length, width, (body, glass))
    if lot < 0.92 or parked:  # a van
        length, width, height = 4.8 + 1.0 * a, 1.9 + 0.15 * b, 2.0 + 0.6 * c
        van = box(0.0, length, width, 0.0, height, wheels=True, lights=True, glass=(0.52, 0.86), side_glass_from=0.35)
        return Vehicle(x, y, yaw, length, width, (van,))
    if lot < 0.97:  # a truck
        length, width, height = 6.6 + 2.6 * a, 2.3 + 0.2 * b, 3.0 + 0.7 * c
        cab = box(
            (length - 1.9) / 2, 1.9, width, 0.0, 0.8 * height, lights=True, glass=(0.5, 0.88), side_glass_from=-0.2
        )
        hold = _rgb(np.array([0.78, 0.78, 0.76]) * (0.7 + 0.4 * b))
        load = box(-1.05, length - 2.1, width, 0.0, height, wheels=True, lights=True, rgb=hold)
        return Vehicle(x, y, yaw, length, width, (cab, load))
    length, width, height = 10.0 + 2.0 * a, 2.5, 3.0 + 0.2 * c  # a bus
    bus = box(0.0, length, width, 0.0, height, wheels=True, lights=True, glass=(0.42, 0.8), side_glass_from=-1.0)
    return Vehicle(x, y, yaw, length, width, (bus,))


def _roadside(rng: np.random.Generator, roads: tuple[Road, ...], pavement_m: float) -> tuple[Solid, ...]:
    """Draw buildings, trees and poles along both sides of every road, off all other roads."""
    rows = []  # x, y, yaw, kind, size, size, size, tint
    built = rng.uniform(0.25, 0.75) if pavement_m else rng.uniform(0, 0.15)
    for i, road in enumerate(roads):
        low, high = (_ego_s(road) + RANGE_M[0], _ego_s(road) + RANGE_M[1] + 25) if i == 0 else (-60.0, 60.0)
        low, high = max(low, road.start_m), min(high, road.end_m)
        for edge, side in ((road.left_m, 1), (road.right_m, -1)):
            count = max(int((high - low) / 8.5), 0)
            s = low + 8.5 * (np.arange(count) + rng.uniform(0.1, 0.9, count))
            lots = rng.random((count, 5))
            kind = np.where(lots[:, 0] < built, 0, np.where(lots[:, 0] < built + (1 - built) * 0.6, 1, 2))
            setback = pavement_m + np.choose(kind, [8.0 + 4 * lots[:, 1], 1.2 + 4 * lots[:, 1], 0.4 + 0.5 * lots[:, 1]])
            x, y, heading = road.point(s, edge + side * setback)
            rows.append(np.column_stack([x, y, heading, kind, lots[:, 1:]]))
    table = np.concatenate(rows)
    clear = Ground(roads, [road.along_across(table[:, 0], table[:, 1]) for road in roads]).surface()
    solids: list[Solid] = []
    for (x, y, yaw, kind, a, b, c, d), room in zip(table.tolist(), clear.tolist(), strict=True):
        if math.hypot(x, y) < 9:  # a tree at the camera would occlude everything
            continue
        if kind == 0 and room > pavement_m + 7:
            reach = min(room - pavement_m - 0.5, 9.0)  # the corner stays off the pavement
            rgb = _rgb(FACADES[int(d * len(FACADES))] * (0.8 + 0.4 * c))
            half_width = reach * 0.6
            solids.append(
                Solid(x, y, yaw, 9.0 + 5 * b if room > 14 else 1.5 * reach, 2 * half_width, 0.0, 4.5 + 11 * c, rgb,
                      windows_m=1.8 + 1.5 * a)
            )  # fmt: skip
        elif kind == 1 and room > 1.0:
            height, radius = 3.5 + 3.5 * a, 1.0 + 1.1 * b
            leaf = _rgb(np.array([0.2 + 0.12 * c, 0.34 + 0.12 * d, 0.12]))
            solids.append(Solid(x, y, yaw, 0.3, 0.3, 0.0, height - radius, (0.3, 0.22, 0.15)))
            solids.append(
                Solid(x, y, yaw, 2 * radius, 2 * radius, height - 2.2 * radius, height + 0.5, leaf, round=True)
            )
        elif kind == 2 and room > 0.3:
            solids.append(
                Solid(x, y, yaw, 0.16, 0.16, 0.0, 4.5 + 3 * a, _rgb(np.array([0.5, 0.5, 0.5]) * (0.5 + 0.7 * b)))
            )
    return tuple(solids)
