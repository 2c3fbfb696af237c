"""Test images of the world against points projected one by one and known colors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bevreshape.data.sources.synthetic.draw import draw_scene
from bevreshape.data.sources.synthetic.ground import footprint, ground_colors
from bevreshape.data.sources.synthetic.rays import Rays
from bevreshape.data.sources.synthetic.render import render
from bevreshape.data.sources.synthetic.rig import nominal
from bevreshape.data.sources.synthetic.solids import Solids
from bevreshape.data.sources.synthetic.world import WHITE, Look, Marking, Road, Scene, Solid, bev_labels
from bevreshape.geometry import BEVGrid, Cameras, image_to_bev

SIZE = (128, 256)
FLAT = Look(
    sun=(0.0, 0.0, 1.0), shade=1.0, zenith=(0.2, 0.4, 0.9), horizon=(0.2, 0.4, 0.9), clouds=0.0,
    terrain=(0.2, 0.5, 0.1),
    asphalt=(0.3, 0.3, 0.3), pavement=(0.6, 0.6, 0.6), pavement_m=0.0, wear=0.0, grain=0.0, surface=(0.0, 0.0, 0.0),
    haze_m=1e9, gain=(1.0, 1.0, 1.0), noise=0.0,
)  # fmt: skip
"""Every surface has one color, whatever the light."""


def straight(*markings: Marking) -> Road:
    return Road(0.0, 0.0, 0.0, 1e-5, 1e-5, -4.0, 4.0, markings=markings)


def photograph(scene: Scene, size: tuple[int, int] = SIZE) -> np.ndarray:
    (k,), (pose,) = nominal("front", size)
    return render(scene, k, pose, size, None)


def project(point: tuple[float, float, float], size: tuple[int, int] = SIZE) -> tuple[float, float]:
    """Return (u, v) of one ego point by hand: the camera is at (1.2, 0, 1.65) and faces ahead and 5° down."""
    dip, focal = math.radians(5), size[1] / 2 / math.tan(math.radians(80) / 2)
    ahead, left, up = point[0] - 1.2, point[1], point[2] - 1.65
    depth = math.cos(dip) * ahead - math.sin(dip) * up
    down = -math.sin(dip) * ahead - math.cos(dip) * up
    return focal * -left / depth + (size[1] - 1) / 2, focal * down / depth + (size[0] - 1) / 2


def test_convention_ground_colors_are_where_the_labels_are() -> None:
    """IPM of a plain image has the terrain's and the road's color where the labels do, without a half-cell shift."""
    size = (512, 1024)
    (k,), (pose,) = nominal("front", size)
    cameras = Cameras(torch.tensor(k)[None, None].float(), torch.tensor(pose)[None, None].float(), size)
    grid = BEVGrid((4.0, 20.0), (-12.0, 12.0), 0.25)
    scene = replace(draw_scene(0, 0, 6), look=FLAT, vehicles=(), scenery=(), patches=())
    scene = replace(scene, roads=tuple(replace(road, markings=(), crossings=()) for road in scene.roads))
    image = torch.from_numpy(photograph(scene, size)).permute(2, 0, 1)[None, None].float() / 255
    views, seen = image_to_bev(image, cameras, grid)
    road = torch.from_numpy(bev_labels(scene, grid, 0.75)[0])
    looked = seen[0, 0]
    wrong = torch.zeros(grid.shape)
    for color, where in ((FLAT.asphalt, road), (FLAT.terrain, ~road)):
        off = (views[0, 0] - torch.tensor(color)[:, None, None]).abs().amax(0)
        wrong += (off > 0.1) & where & looked
    assert (looked & road).sum() > 500
    assert (looked & ~road).sum() > 500
    assert wrong.sum() < 0.005 * looked.sum()  # cells cut by the edge; a shift of half a cell makes 2 %


@pytest.mark.parametrize("dashed", [False, True])
def test_lines_are_painted_where_points_of_them_project(dashed: bool) -> None:
    dash, period = (3.0, 8.0) if dashed else (1.0, 1.0)
    lines = [Marking(t, 0.3, dash, period, 1.0) for t in (-2.0, 0.5, 3.0)]
    image = photograph(Scene((straight(*lines),), (), (), FLAT), (512, 1024)) / 255.0
    for line in lines:
        for s in np.arange(5, 14, 0.1):
            place = (s + 1.0) % period
            u, v = project((s, line.offset_m, 0.0), (512, 1024))
            if not (0 <= u <= 1023 and 0 <= v <= 511) or (
                dashed and min(abs(place - e) for e in (0, dash, period)) < 0.4
            ):
                continue
            painted = not dashed or place < dash
            expected = WHITE if painted else FLAT.asphalt
            assert image[round(v), round(u)] == pytest.approx(expected, abs=0.04), (s, line)
            beside = project((s, line.offset_m + 0.5, 0.0), (512, 1024))
            if 0 <= round(beside[0]) <= 1023:
                assert image[round(beside[1]), round(beside[0])] == pytest.approx(FLAT.asphalt, abs=0.04)


def test_thin_lines_far_away_keep_their_brightness() -> None:
    """A line adds its width over the row's ground sampling to a row, also where it is thinner than a pixel."""
    scene = Scene((straight(Marking(0.0, 0.1)),), (), (), FLAT)
    bare = Scene((straight(),), (), (), FLAT)
    added = (photograph(scene).astype(float) - photograph(bare))[:, :, 0].sum(1) / 255 / (WHITE[0] - FLAT.asphalt[0])
    dip, focal = math.radians(5), 128 / math.tan(math.radians(80) / 2)
    rows = np.arange(72, 120)
    angle = np.arctan((rows - 63.5) / focal) + dip
    depth = 1.65 / np.sin(angle) * np.cos(angle - dip)
    np.testing.assert_allclose(added[rows], 0.1 * focal / depth, rtol=0.12, atol=0.03)


def test_dashes_average_to_their_share() -> None:
    marking = Marking(0.0, 0.1, 2.5, 7.0, 1.3)
    fine = np.arange(-100, 100, 0.001) + 0.0005
    painted = marking.is_painted(fine)
    for low, high in ((-3.0, 4.0), (0.3, 0.8), (-51.2, 60.0), (1.1, 1.2)):
        expected = painted[(fine > low) & (fine < high)].sum() * 0.001
        got = marking.painted_length(np.array([high])) - marking.painted_length(np.array([low]))
        assert got[0] == pytest.approx(expected, abs=2e-3)


BOX = Solid(9.0, -1.5, 0.5, 4.0, 1.8, 0.0, 1.5, (0.9, 0.1, 0.1))


def test_a_box_covers_the_hull_of_its_corners() -> None:
    """The changed pixels extend from its leftmost to its rightmost corner, and from the highest to the lowest."""
    empty, full = (photograph(Scene((straight(),), (), boxes, FLAT)).astype(int) for boxes in ((), (BOX,)))
    rows, columns = np.nonzero(np.abs(empty - full).max(2) > 8)
    corners = []
    for a in (-2.0, 2.0):
        for b in (-0.9, 0.9):
            x = BOX.x + math.cos(0.5) * a - math.sin(0.5) * b
            y = BOX.y + math.sin(0.5) * a + math.cos(0.5) * b
            corners += [project((x, y, z)) for z in (0.0, 1.5)]
    u, v = np.array(corners).T
    assert [columns.min(), columns.max()] == pytest.approx([u.min(), u.max()], abs=1)
    assert [rows.min(), rows.max()] == pytest.approx([v.min(), v.max()], abs=1)


def test_occlusion_does_not_depend_on_the_order() -> None:
    wall = Solid(8.0, 0.0, 0.0, 0.5, 8.0, 0.0, 4.0, (0.5, 0.4, 0.3))
    behind = replace(BOX, x=14.0, y=0.0)
    alone, *both = (photograph(Scene((straight(),), (), s, FLAT)) for s in ((wall,), (wall, behind), (behind, wall)))
    assert not np.array_equal(alone, photograph(Scene((straight(),), (), (behind,), FLAT)))
    for image in both:
        np.testing.assert_array_equal(image, alone)


def test_a_box_that_reaches_behind_the_camera_is_cut() -> None:
    passing = Solid(1.0, 2.5, 0.0, 12.0, 1.0, 0.0, 3.0, (0.9, 0.1, 0.1))
    image = photograph(Scene((straight(),), (), (passing,), FLAT))
    assert (image[40:, :20, 0] > 2 * image[40:, :20, 1].astype(int)).all()  # red on the left
    assert not (image[:, 140:, 0] > 2 * image[:, 140:, 1].astype(int)).any()
    gone = Solid(-8.0, 0.0, 0.0, 3.0, 3.0, 0.0, 3.0, (0.9, 0.1, 0.1))
    np.testing.assert_array_equal(
        photograph(Scene((straight(),), (), (gone,), FLAT)), photograph(Scene((straight(),), (), (), FLAT))
    )


@pytest.mark.parametrize("shape", ["box", "ellipsoid"])
def test_rays_meet_solids_where_marching_finds_them(shape: str) -> None:
    solid = Solid(6.0, 1.0, 0.8, 4.0, 2.0, 0.5, 2.5, (1.0, 1.0, 1.0), round=shape == "ellipsoid")
    origin = np.array([0.3, -0.2, 1.4])
    pixel_from_cam = np.array([[13.0, 0.0, 8.0], [0.0, 13.0, 5.0], [0.0, 0.0, 1.0]])
    ego_from_cam = np.array([[0, 0, 1, 0.3], [-1, 0, 0, -0.2], [0, -1, 0, 1.4], [0, 0, 0, 1]])
    rays = Rays(pixel_from_cam, ego_from_cam, (10, 10), stagger=0.25)
    rows, columns = slice(2, 9), slice(1, 10)
    nearness = Solids([solid]).seen(rays).nearness(0, rays, (rows, columns))
    steps = np.arange(0, 12, 0.002)
    got = []
    for (row, column), near in np.ndenumerate(nearness):
        u, v = 1 + column, 2 + row
        v += -0.25 if u % 2 == 0 else 0.25
        ray = np.array([1.0, -(u - 8) / 13, -(v - 5) / 13])
        away = origin + steps[:, None] * ray - [6.0, 1.0, 1.5]
        a = (math.cos(0.8) * away[:, 0] + math.sin(0.8) * away[:, 1]) / 2.0
        b = (math.cos(0.8) * away[:, 1] - math.sin(0.8) * away[:, 0]) / 1.0
        c = away[:, 2] / 1.0
        inside = a**2 + b**2 + c**2 < 1 if shape == "ellipsoid" else np.maximum.reduce([abs(a), abs(b), abs(c)]) < 1
        if inside.any():
            assert 1 / near == pytest.approx(steps[np.argmax(inside)], abs=6e-3)
        else:
            assert near <= 0
        got.append(inside.any())
    assert 10 < sum(got) < 50


@pytest.mark.parametrize("shape", ["box", "ellipsoid"])
def test_ground_is_shaded_where_marching_to_the_sun_finds_a_solid(shape: str) -> None:
    """The part of a solid below the ground casts no shadow."""
    solid = Solid(8.0, 0.5, 0.7, 3.0, 1.6, -0.4, 2.2, (1.0, 1.0, 1.0), round=shape == "ellipsoid")
    sun = (0.3, -0.8, math.sqrt(1 - 0.09 - 0.64))
    (k,), (pose,) = nominal("front", (24, 48))
    rays = Rays(k, pose, (24, 48))
    below = slice(12, 24), slice(0, 48)
    shaded = Solids([solid]).shadows(rays, sun).nearness(0, rays, below) > 0
    away = np.arange(0, 8, 0.005)[:, None] * np.array(sun)
    wrong = 0
    for (row, column), dark in np.ndenumerate(shaded):
        ray = pose[:3, :3] @ np.linalg.inv(k) @ [column, row + 12, 1]
        x, y, z = (pose[:3, 3] - ray * pose[2, 3] / ray[2] + away - [8.0, 0.5, 0.9]).T
        a = (math.cos(0.7) * x + math.sin(0.7) * y) / 1.5
        b = (math.cos(0.7) * y - math.sin(0.7) * x) / 0.8
        c = z / 1.3
        inside = a**2 + b**2 + c**2 < 1 if shape == "ellipsoid" else np.maximum.reduce([abs(a), abs(b), abs(c)]) < 1
        wrong += inside.any() != dark
    assert 20 < shaded.sum() < 200
    assert wrong <= 1  # a pixel that the march barely misses


def test_shadow_lies_away_from_the_sun() -> None:
    """A pole 2 m high, 10 m ahead, the sun 45° high on the right: the shadow ends 2 m to the pole's left."""
    low_sun = replace(FLAT, sun=(0.0, -math.sqrt(0.5), math.sqrt(0.5)), shade=0.3)
    pole = Solid(10.0, 0.0, 0.0, 0.4, 0.4, 0.0, 2.0, (0.9, 0.9, 0.9))
    image = photograph(Scene((straight(),), (), (pole,), low_sun), (256, 512)) / 255.0

    def level(y: float) -> float:
        u, v = project((10.0, y, 0.0), (256, 512))
        return float(image[round(v), round(u), 0])

    assert level(1.0) == pytest.approx(0.3 * 0.3, abs=0.02)
    assert level(1.8) == pytest.approx(0.3 * 0.3, abs=0.02)
    assert level(2.6) == pytest.approx(0.3, abs=0.02)
    assert level(-1.0) == pytest.approx(0.3, abs=0.02)


def test_noise_has_the_sensors_deviation() -> None:
    scene = Scene((straight(),), (), (), replace(FLAT, noise=0.02))
    (k,), (pose,) = nominal("front", SIZE)
    noisy = render(scene, k, pose, SIZE, np.random.default_rng(1)).astype(float)
    residual = (noisy - photograph(scene)) / 255
    assert residual.std() == pytest.approx(0.02, rel=0.05)
    assert abs(residual.mean()) < 1e-3


def test_footprint_of_a_linear_field_is_its_steps() -> None:
    u, v = np.meshgrid(np.arange(7.0), np.arange(5.0))
    np.testing.assert_allclose(footprint((0.3 * u - 0.8 * v).astype(np.float32)), 1.1, rtol=1e-5)


def test_surfaces_have_grain_but_keep_their_mean() -> None:
    look = replace(FLAT, grain=0.2, surface=(0.4, 30.0, 70.0))
    y, x = np.meshgrid(np.linspace(-3, 3, 120, dtype=np.float32), np.linspace(4, 10, 120, dtype=np.float32))
    red, _, _ = ground_colors(Scene((straight(),), (), (), look), x, y)
    assert red.mean() == pytest.approx(0.3, rel=0.1)
    assert 0.005 < red.std() < 0.08


def test_any_scene_gives_finite_varied_images_of_any_camera() -> None:
    intrinsics, poses = nominal("surround", (48, 80))
    for index in range(2):
        scene = draw_scene(5, 0, index)
        for k, pose in zip(intrinsics, poses, strict=True):
            image = render(scene, k, pose, (48, 80), np.random.default_rng(0))
            assert image.shape == (48, 80, 3)
            assert image.dtype == np.uint8
            assert image.std() > 10
