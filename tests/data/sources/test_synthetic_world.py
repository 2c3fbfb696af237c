"""Test the description of a scene against sampled curves and loops over cells that share no formula with it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from bevreshape.data.sources.synthetic.draw import draw_scene
from bevreshape.data.sources.synthetic.world import CLASSES, FILLET_M, Road, bev_labels
from bevreshape.geometry import BEVGrid

SCENES = [draw_scene(11, index, 4) for index in range(16)]
GRID = BEVGrid((2.0, 38.0), (-18.0, 18.0), 1.2)
STEP_M = 0.02


def walk(road: Road) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample the road's curve in small steps from its reference point: positions (p, 2), lengths and headings (p,)."""
    parts = []
    for sign, kappa in ((-1, road.curvature_behind), (1, road.curvature_ahead)):
        position, heading, points = np.array([road.x, road.y]), road.heading, []
        for step in range(int(110 / STEP_M)):
            points.append((*position, sign * step * STEP_M, heading))
            middle = heading + sign * kappa * STEP_M / 2
            position = position + sign * STEP_M * np.array([math.cos(middle), math.sin(middle)])
            heading += sign * kappa * STEP_M
        parts.append(np.array(points))
    curve = np.concatenate([parts[0][::-1], parts[1]])
    return curve[:, :2], curve[:, 2], curve[:, 3]


def nearest(road: Road, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (s, t) of points (q, 2) by the nearest point of the sampled curve and the side of it."""
    curve, length, heading = walk(road)
    s, t = [], []
    for point in points:
        away = point - curve
        i = int(np.argmin((away**2).sum(1)))
        direction = np.array([math.cos(heading[i]), math.sin(heading[i])])
        s.append(length[i] + away[i] @ direction)
        t.append(direction[0] * away[i][1] - direction[1] * away[i][0])
    return np.array(s), np.array(t)


def centers() -> np.ndarray:
    """Return ground points of the grid's cells (q, 2), row by row from the farthest left."""
    return np.array(
        [
            (38.0 - 1.2 * (row + 0.5), 18.0 - 1.2 * (col + 0.5))
            for row, col in itertools.product(range(GRID.rows), range(GRID.cols))
        ]
    )


def test_along_across_is_the_nearest_point_of_the_curve() -> None:
    road = SCENES[3].roads[0]
    points = centers()
    s, t = road.along_across(points[:, 0], points[:, 1])
    expected_s, expected_t = nearest(road, points)
    np.testing.assert_allclose(t, expected_t, atol=2e-3)
    np.testing.assert_allclose(s, expected_s, atol=2e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("behind", "ahead"), [(1e-4, -1e-4), (1 / 55, -1 / 60), (-1 / 80, 1 / 55)])
def test_point_and_along_across_are_inverse(behind: float, ahead: float, dtype: type) -> None:
    road = Road(3.0, -2.0, 0.7, behind, ahead, -4.0, 4.0)
    s, t = (a.ravel() for a in np.meshgrid(np.linspace(-70, 80, 31), np.linspace(-9, 9, 7)))
    x, y, _ = road.point(s, t)
    got_s, got_t = road.along_across(x.astype(dtype), y.astype(dtype))
    assert got_s.dtype == dtype
    tolerance = 2e-3 if dtype is np.float32 else 1e-9
    np.testing.assert_allclose(got_s, s, atol=tolerance)
    np.testing.assert_allclose(got_t, t, atol=tolerance)


def test_labels_of_road_lane_and_crossing_by_brute_force() -> None:
    """Compare every cell except those within 3 cm of an edge, where the sampled curve is too coarse."""
    single = [scene for scene in SCENES if len(scene.roads) == 1]
    chosen = [next(s for s in single if s.roads[0].crossings), next(s for s in single if not s.roads[0].crossings)]
    compared = np.zeros(3, int)
    for scene in chosen:
        road = scene.roads[0]
        got = bev_labels(scene, GRID, 0.75).reshape(4, -1)
        s, t = nearest(road, centers())
        for cell in range(s.size):
            inside = min(road.left_m - t[cell], t[cell] - road.right_m)
            zebra = [abs(s[cell] - c.s_m) - c.length_m / 2 for c in road.crossings]
            margins = [inside, *zebra, *(z - 0.8 for z in zebra), inside - 0.3]
            lane = False
            for marking in road.markings:
                side = 0.375 - abs(t[cell] - marking.offset_m)
                dash = (s[cell] + marking.phase_m) % marking.period_m
                margins.append(side)
                if marking.dash_m < marking.period_m:
                    margins += [dash, marking.dash_m - dash, marking.period_m - dash]
                lane |= side > 0 and dash < marking.dash_m
            if min(abs(m) for m in margins) < 0.03:
                continue
            lane = lane and inside > 0 and all(z > 0.8 for z in zebra)
            crossing = inside > 0.3 and any(z < 0 for z in zebra)
            assert got[0, cell] == (inside > 0), (s[cell], t[cell])
            assert got[1, cell] == lane, (s[cell], t[cell])
            assert got[2, cell] == crossing, (s[cell], t[cell])
            compared += [inside > 0, lane, crossing]
    assert (compared > [200, 40, 10]).all(), compared


def test_labels_of_vehicles_by_brute_force() -> None:
    """A point is in a convex footprint if it is left of all edges, in counterclockwise order."""
    grid = BEVGrid((0.0, 40.0), (-20.0, 20.0), 0.5)
    found = 0
    for scene in SCENES[:4]:
        got = bev_labels(scene, grid, 0.75)[3]
        expected = np.zeros(grid.shape, bool)
        for car in scene.vehicles:
            ahead = np.array([math.cos(car.yaw), math.sin(car.yaw)]) * car.length_m / 2
            left = np.array([-math.sin(car.yaw), math.cos(car.yaw)]) * car.width_m / 2
            at = np.array([car.x, car.y])
            corners = [at + ahead + left, at - ahead + left, at - ahead - left, at + ahead - left]
            for row, col in itertools.product(range(80), range(80)):
                point = np.array([39.75 - 0.5 * row, 19.75 - 0.5 * col])
                if abs(point - at).max() < 8:
                    turns = [
                        (b - a)[0] * (point - a)[1] - (b - a)[1] * (point - a)[0]
                        for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
                    ]
                    expected[row, col] |= min(turns) >= 0
        np.testing.assert_array_equal(got, expected)
        found += expected.sum()
    assert found > 100


def test_junction_is_the_union_of_its_roads_and_rounded_corners() -> None:
    rounded = 0
    for scene in [scene for scene in SCENES if len(scene.roads) == 2][:3]:
        points = centers()
        got = bev_labels(scene, GRID, 0.75)[0].ravel()
        distance = []
        for road in scene.roads:
            s, t = nearest(road, points)
            outside = np.maximum(t - road.left_m, road.right_m - t)
            distance.append(np.maximum(outside, np.maximum(road.start_m - s, s - road.end_m)))
        near_edge = np.minimum(abs(distance[0]), abs(distance[1])) < 0.03
        union = np.minimum(*distance) <= 0
        assert (got | near_edge)[union].all()
        corner = (got & ~union & ~near_edge).nonzero()[0]
        for cell in corner:  # a cell beyond both edges is road only in the bight of a circle that touches both
            away = FILLET_M - np.array([distance[0][cell], distance[1][cell]])
            assert away.min() > -0.03
            assert np.hypot(*away) > FILLET_M - 0.03
        rounded += corner.size
    assert rounded > 3


def test_vehicles_do_not_collide() -> None:
    for scene in SCENES:
        for a, b in itertools.permutations(scene.vehicles, 2):
            along, left = np.meshgrid(np.linspace(-0.5, 0.5, 9) * a.length_m, np.linspace(-0.5, 0.5, 5) * a.width_m)
            x = a.x + math.cos(a.yaw) * along - math.sin(a.yaw) * left
            y = a.y + math.sin(a.yaw) * along + math.cos(a.yaw) * left
            assert not b.covers(x, y).any()
        x, y = np.meshgrid(np.linspace(-3, 4, 20), np.linspace(-1.2, 1.2, 9))
        assert not any(car.covers(x, y).any() for car in scene.vehicles)


def test_vehicles_are_on_the_road_and_scenery_off_it() -> None:
    for scene in SCENES:
        x, y = np.array([(car.x, car.y) for car in scene.vehicles]).T
        assert (scene.ground(x, y).surface() < 0).all()
        for solid in scene.scenery:
            if solid.bottom_m == 0:  # not the crowns of trees
                along, left = np.meshgrid(
                    np.linspace(-0.5, 0.5, 9) * solid.length_m, [-solid.width_m / 2, solid.width_m / 2]
                )
                x = solid.x + math.cos(solid.yaw) * along - math.sin(solid.yaw) * left
                y = solid.y + math.sin(solid.yaw) * along + math.cos(solid.yaw) * left
                assert (scene.ground(x, y).surface() > 0).all()


def test_ego_vehicle_keeps_to_its_lane_on_the_right() -> None:
    for scene in SCENES:
        road = scene.roads[0]
        s, t = road.along_across(np.zeros(1), np.zeros(1))
        assert -road.half_m * 2 < t[0] < 0.5  # t = 0 separates the directions
        _, _, heading = road.point(s, t)
        assert abs(math.remainder(float(heading[0]), math.tau)) < math.radians(6)


@pytest.mark.slow
def test_scenes_vary_and_have_every_class() -> None:
    scenes = [draw_scene(0, index, 4) for index in range(40)]
    shares = np.array([bev_labels(scene, BEVGrid(), 0.75).mean((1, 2)) for scene in scenes])
    present = dict(zip(CLASSES, (shares > 0).mean(0), strict=True))
    assert present["drivable"] == 1
    assert present["lane"] > 0.97
    assert 0.3 < present["crossing"] < 0.9
    assert present["vehicle"] > 0.97
    assert 0.2 < np.mean([len(scene.roads) == 2 for scene in scenes]) < 0.7
    assert len({len(scene.roads[0].lanes) for scene in scenes}) >= 4
    assert np.std([scene.roads[0].curvature_ahead for scene in scenes]) > 0.005


def test_wider_label_only_adds_lane_cells() -> None:
    scene = replace(SCENES[0], vehicles=())
    thin, wide = (bev_labels(scene, BEVGrid(), width)[1] for width in (0.2, 0.75))
    assert (wide | ~thin).all()
    assert wide.sum() > 1.5 * thin.sum()


def test_scenes_are_reproducible() -> None:
    assert draw_scene(1, 0, 5) == draw_scene(1, 0, 5)
    assert draw_scene(1, 0, 5) != draw_scene(1, 0, 6)
