"""Test that drawings show tensors at the right positions."""

import numpy as np
import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reporting.class_colors import class_palette
from bevreshape.reporting.drawing import (
    GROUND,
    UNKNOWN,
    bev_sheet,
    draw_bev,
    draw_sample,
    overlay_on_images,
    overlay_sheet,
)

CLASSES = ("drivable", "lane", "vehicle")
ROAD, LANE, VEHICLE = class_palette(CLASSES).values()
GRID = BEVGrid((2.0, 22.0), (-10.0, 10.0), 1.0)


def cells(*places, rows=4, cols=6):
    """Return (k, rows, cols) with the given (class, row, col) set."""
    bev = torch.zeros(len(CLASSES), rows, cols, dtype=torch.bool)
    for place in places:
        bev[place] = True
    return bev


def test_front_left_is_the_upper_left_of_the_image():
    image = draw_bev(cells((2, 0, 0)), CLASSES, scale=5)
    assert image.shape == (20, 30, 3)
    assert (image[:5, :5] == VEHICLE).all()
    assert (image[5:] == GROUND).all()
    assert (image[:, 5:] == GROUND).all()


def test_later_classes_are_on_top():
    image = draw_bev(cells((0, 1, 2), (2, 1, 2), (0, 1, 3), (1, 1, 3)), CLASSES, scale=1)
    assert tuple(image[1, 2]) == VEHICLE
    assert tuple(image[1, 3]) == LANE


def test_a_probability_at_the_threshold_counts():
    probabilities = torch.zeros(3, 1, 3)
    probabilities[0] = torch.tensor([0.29, 0.3, 0.31])
    assert [tuple(p) for p in draw_bev(probabilities, CLASSES, threshold=0.3, scale=1)[0]] == [GROUND, ROAD, ROAD]


def test_unknown_cells_are_grey():
    everything = torch.ones(3, 1, 3)
    valid = torch.tensor([[[0, 1, 1]], [[0, 1, 1]], [[0, 0, 1]]]).bool()
    image = draw_bev(everything, CLASSES, valid, scale=1)
    assert [tuple(p) for p in image[0]] == [UNKNOWN, LANE, VEHICLE]


def test_small_grids_are_enlarged_by_whole_cells():
    assert draw_bev(cells(rows=64, cols=80), CLASSES).shape == (256, 320, 3)
    assert draw_bev(cells(rows=300, cols=10), CLASSES).shape == (300, 10, 3)


def test_colors_differ_however_many_classes():
    many = class_palette([f"class {i}" for i in range(30)])
    assert len(set(many.values())) == 30
    assert many["class 0"] == class_palette(["road"])["road"]
    apart = [np.abs(np.subtract(a, b)).sum() for a in list(many.values())[:7] for b in (GROUND, UNKNOWN)]
    assert min(apart) > 60


def test_channels_are_compared_with_classes():
    with pytest.raises(InputError, match=r"bev \(2, 3, 4\) and valid None must both be \(k, rows, cols\) with k=3"):
        draw_bev(torch.zeros(2, 3, 4), CLASSES)
    with pytest.raises(InputError, match=r"valid \(1, 3, 4\)"):
        draw_bev(torch.zeros(3, 3, 4), CLASSES, torch.ones(1, 3, 4, dtype=torch.bool))


@pytest.mark.parametrize(("cameras", "shape"), [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (6, (2, 3))])
def test_a_sample_shows_images_then_target_then_prediction(cameras, shape):
    """Each camera has its own grey; the target has one vehicle front left, the prediction one back right."""
    image = torch.stack([torch.full((3, 32, 48), (number + 1) / 10) for number in range(cameras)])
    target, predicted = cells((2, 0, 0), rows=8, cols=8), cells((2, 7, 7), rows=8, cols=8).float()
    panel = draw_sample(image, target, predicted, torch.ones_like(target), CLASSES)
    wide = round(256 * (48 * shape[1]) / (32 * shape[0]))
    assert panel.dtype == np.uint8
    assert panel.shape == (256 + 2 * 18, wide + 2 * 256 + 2 * 6, 3)
    images, shown_target, prediction = (
        panel[18:-18, left : left + width] for left, width in ((0, wide), (wide + 6, 256), (wide + 268, 256))
    )
    for number in range(cameras):
        row, col = divmod(number, 3)
        v, u = round((row + 0.5) * 256 / shape[0]), round((col + 0.5) * wide / shape[1])
        assert tuple(images[v, u]) == (round(255 * (number + 1) / 10),) * 3
    assert (shown_target[:32, :32] == VEHICLE).all()
    assert (shown_target == VEHICLE).all(-1).sum() == 32 * 32
    assert (prediction[-32:, -32:] == VEHICLE).all()
    assert (prediction == VEHICLE).all(-1).sum() == 32 * 32
    for margin in (panel[:18], panel[-18:]):
        assert 0 < (margin < 100).all(-1).mean() < 0.5  # something is written there, on white


def looking_ahead(b=1, n=1):
    """Return level cameras 1.5 m above the ground; the horizon is row 24."""
    ego_from_cam = torch.tensor([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    intrinsics = torch.tensor([[40.0, 0, 40], [0, 40, 24], [0, 0, 1]])
    rig = Cameras(intrinsics.expand(b, n, 3, 3), ego_from_cam.expand(b, n, 4, 4), (48, 81))
    return torch.full((b, n, 3, 48, 81), 0.2), rig


def test_an_overlay_is_on_the_ground_of_its_cells():
    images, rig = looking_ahead(b=2, n=2)
    bev = torch.zeros(2, 3, *GRID.shape)
    bev[0, 0, :, :10] = 1  # all ground to the left is road
    sheets = overlay_on_images(images, bev, rig, GRID, CLASSES, opacity=1.0)
    assert [sheet.shape for sheet in sheets] == [(48, 2 * 81, 3)] * 2
    assert (sheets[1] == 51).all()  # nothing was predicted in the second sample
    for left in (0, 81):
        image = sheets[0][:, left : left + 81]
        assert (image[:25] == 51).all()  # sky
        assert (image[:, 41:] == 51).all()  # to the right of the middle, where y < 0
        # 6 m ahead and 2 m to the left: u = 40 − 40·2/6, v = 24 + 40·1.5/6
        assert np.abs(image[34, 27].astype(int) - ROAD).max() <= 1


def test_half_opaque_paint_lets_the_image_through():
    images, rig = looking_ahead()
    bev = torch.ones(1, 3, *GRID.shape)
    image = overlay_on_images(images, bev, rig, GRID, CLASSES)[0]
    assert np.abs(image[34, 40] - (0.5 * 51 + 0.5 * np.array(VEHICLE))).max() <= 1


YAWS = {"front": 0, "front_left": 55, "front_right": -55, "back": 180, "back_left": 110, "back_right": -110}


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (list(YAWS), [["front_left", "front", "front_right"], ["back_left", "back", "back_right"]]),
        (["back", "front"], [["front"], ["back"]]),
        (["front_right", "front", "front_left"], [["front_left", "front", "front_right"]]),
        (["back_right", "back_left", "front"], [["front"], ["back_left", "back_right"]]),
    ],
)
def test_cameras_are_arranged_by_heading(names, rows):
    """Each camera has its own grey."""
    poses = torch.eye(4).repeat(len(names), 1, 1)
    for number, name in enumerate(names):
        yaw = np.deg2rad(YAWS[name])
        poses[number, :3, :3] = torch.tensor(
            [[np.sin(yaw), 0, np.cos(yaw)], [-np.cos(yaw), 0, np.sin(yaw)], [0, -1, 0]]
        )
    image = torch.stack([torch.full((3, 20, 30), (number + 1) / 10) for number in range(len(names))])
    target = cells(rows=8, cols=8)
    panel = draw_sample(image, target, target.float(), torch.ones_like(target), CLASSES, ego_from_cam=poses)
    columns = max(len(row) for row in rows)
    wide = round(256 * 30 * columns / (20 * len(rows)))
    for row, line in enumerate(rows):
        for col in range(columns):
            v, u = 18 + round((row + 0.5) * 256 / len(rows)), round((col + 0.5) * wide / columns)
            grey = (names.index(line[col]) + 1) / 10 if col < len(line) else 1
            assert tuple(panel[v, u]) == (round(255 * grey),) * 3


def test_legends_wrap_and_hold_every_name_on_one_line_each():
    names = [f"a rather long name of class {number}" for number in range(9)] + ["line\nbreak", "x" * 500]
    bev = torch.zeros(len(names), 8, 8)
    image = bev_sheet(bev, names)
    assert image.shape[1] == 256
    assert (image[:256, :256] == GROUND).all()
    colors = {tuple(pixel) for pixel in image[256:].reshape(-1, 3)}
    assert set(class_palette(names).values()) | {UNKNOWN} <= colors
    few = bev_sheet(torch.zeros(1, 8, 8), ("road",))
    assert few.shape[0] < image.shape[0]


def test_images_of_other_sizes_keep_theirs():
    images = [np.full((40, 200, 3), 60, np.uint8), np.full((60, 300, 3), 90, np.uint8)]
    poses = looking_ahead(n=2)[1].ego_from_cam[0]
    sheet = overlay_sheet(images, poses, CLASSES)
    assert sheet.shape == (60, 600, 3)
    assert (sheet[20:40, :200] == 60).all()
    assert (sheet[40:, :200] == 255).all()
    assert (sheet[:, 300:] == 90).all()
    assert (sheet[:14, :30] == ROAD).all(-1).any()
