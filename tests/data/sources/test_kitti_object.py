"""Test KITTI's object boxes from above against the development kit's corners and projection in plain numpy."""

import csv
import json
from pathlib import Path
from typing import Any

import batches
import numpy as np
import pytest
import torch
from commands import TINY
from kitti_folder import R0, VELO, object_folder, pixel_of, square
from object_stores import Upload, assert_same_samples

from bevreshape.data.batch import BEVBatch, BEVSource
from bevreshape.data.sources.kitti.benchmark import ego_from_velodyne_ground
from bevreshape.data.sources.kitti.object import KITTIObjectSource, ego_box, read_labels
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

GRID = BEVGrid((4, 24), (-10, 10), 0.5)
CLASSES = {"vehicle": ["Car", "Van", "Truck"], "pedestrian": ["Pedestrian", "Person_sitting"], "cyclist": ["Cyclist"]}
DONT_CARE = "DontCare -1 -1 -10 {:.2f} {:.2f} {:.2f} {:.2f} -1 -1 -1 -1000 -1000 -1000 -10\n"


def line(kind: str, size: tuple[float, float, float], bottom: tuple[float, float, float], rotation_y: float) -> str:
    """Return a label; ``size`` is height, width, length."""
    numbers = " ".join(f"{value:.2f}" for value in (*size, *bottom, rotation_y))
    return f"{kind} 0.00 0 -1.50 10.00 10.00 20.00 20.00 {numbers}\n"


CAR = line("Car", (1.5, 1.6, 4.0), (-2.0, 1.6, 12.0), 0.4)
LABELS = {
    "000000": CAR + line("Van", (2.0, 1.9, 5.0), (3.5, 1.7, 17.0), -1.2) + DONT_CARE.format(60, 14, 80, 30),
    "000001": line("Pedestrian", (1.8, 0.9, 0.8), (1.0, 1.6, 9.0), 2.9) + line("Misc", (1, 1, 1), (0, 1.6, 15), 0),
    "000002": "",
    "000003": line("Cyclist", (1.8, 1.0, 1.9), (-1.0, 1.6, 7.0), -3.0)
    + line("Truck", (3, 2.5, 8), (4.0, 1.6, 14.0), 1.6),
}


def source(root: Path, **changes: Any) -> KITTIObjectSource:
    options = {"grid": GRID, "image_size": (38, 124), "classes": CLASSES, "splits": {"test": sorted(LABELS)}, **changes}
    return KITTIObjectSource(root, **options)


def corners_on_the_ground(words: list[str]) -> np.ndarray:
    """Return ego x, y (4, 2) of a label's lower face: the development kit's corners in the velodyne's frame."""
    width, length, x, y, z, rotation_y = (float(word) for word in words[9:15])
    c, s = np.cos(rotation_y), np.sin(rotation_y)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    lower = np.array([[length, length, -length, -length], [0, 0, 0, 0], [width, -width, -width, width]]) / 2
    rectified = turn @ lower + np.array([[x], [y], [z]])
    velodyne = np.linalg.inv(square(R0) @ square(VELO)) @ np.vstack([rectified, np.ones(4)])
    return velodyne[:2].T


def inside(point: np.ndarray, corners: np.ndarray, margin: float) -> bool | None:
    """Return whether a point is in a convex polygon; ``None`` within ``margin`` metres of its edge."""
    following = np.roll(corners, -1, axis=0)
    edges = following - corners
    across = edges[:, 0] * (point[1] - corners[:, 1]) - edges[:, 1] * (point[0] - corners[:, 0])
    distance = across / np.linalg.norm(edges, axis=1)
    if edges[0, 0] * edges[1, 1] < edges[0, 1] * edges[1, 0]:  # clockwise
        distance = -distance
    if distance.min() > margin:
        return True
    return False if distance.min() < -margin else None


def finished(made: KITTIObjectSource, split: str = "test") -> BEVBatch:
    return batches.finished(made, split)


def test_cells_are_in_the_boxes_of_the_development_kit(tmp_path: Path) -> None:
    made = source(object_folder(tmp_path, LABELS))
    assert isinstance(made, BEVSource)
    batch = finished(made)
    for number, lines in enumerate(LABELS.values()):
        for k, kinds in enumerate(CLASSES.values()):
            boxes = [text.split() for text in lines.splitlines() if text.split()[0] in kinds]
            polygons = [corners_on_the_ground(words) for words in boxes]
            for row, col in np.ndindex(GRID.shape):
                point = np.array([24 - (row + 0.5) * 0.5, 10 - (col + 0.5) * 0.5])
                found = [inside(point, polygon, 0.01) for polygon in polygons]  # a tilt of 1° is neglected
                if None not in found:
                    assert batch.targets["segmentation"].value[number, k, row, col].item() == any(found)
    counts = batch.targets["segmentation"].value.sum((-1, -2))
    assert (counts > 0).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_valid_cells_are_visible_and_not_dont_care(tmp_path: Path) -> None:
    valid = finished(source(object_folder(tmp_path, LABELS))).targets["segmentation"].valid[0]
    hidden = beyond = 0
    for row, col in np.ndindex(GRID.shape):
        u, v = pixel_of([24 - (row + 0.5) * 0.5, 10 - (col + 0.5) * 0.5, -1.73], "velodyne")
        if min(abs(u - 60), abs(u - 80), abs(v - 14), abs(v - 30), abs(u + 0.5), abs(u - 123.5), abs(v - 37.5)) > 1e-3:
            looks, behind = -0.5 < u < 123.5 and -0.5 < v < 37.5, 60 < u < 80 and 14 < v < 30
            assert valid[:, row, col].tolist() == [looks and not behind] * 3
            hidden, beyond = hidden + (looks and behind), beyond + (not looks)
    assert hidden > 20
    assert beyond > 100


@pytest.mark.parametrize("yaw", [0.0, 0.3, 1.7, -2.8])
def test_convention_yaw_is_turned_through_the_camera_pose(tmp_path: Path, yaw: float) -> None:
    """The heading of a box in the velodyne's frame follows from the axes, not from −yaw − 90°."""
    rotation = (square(R0) @ square(VELO))[:3, :3]
    x, _, z = rotation @ [np.cos(yaw), np.sin(yaw), 0.0]
    made = source(object_folder(tmp_path, LABELS))
    frames = made.split("test").frames
    path = tmp_path / "one.txt"
    path.write_text(line("Car", (1.5, 1.6, 4.0), (0, 1.6, 10), 0).replace(" 0.00\n", f" {np.arctan2(-z, x):.9f}\n"))
    box = ego_box(read_labels(path)[0], ego_from_velodyne_ground(frames.matrices("000000")))
    assert box[2].item() == pytest.approx(yaw, abs=1e-3)
    assert box[3:].tolist() == [4.0, 1.6]


def test_classes_by_types(tmp_path: Path) -> None:
    root = object_folder(tmp_path, LABELS)
    both = finished(source(root, classes={"thing": ["Misc", "Pedestrian"]}))
    assert both.targets["segmentation"].value.sum() > finished(source(root)).targets["segmentation"].value[:, 1].sum()


def test_train_and_evaluate_by_the_command_line(command, tmp_path: Path) -> None:
    root = object_folder(tmp_path / "kitti", LABELS)
    rest = [a for a in TINY if not a.startswith("data.")]
    (root / "lists").mkdir()
    (root / "lists/all.txt").write_text("\n".join(LABELS) + "\n")
    ended = command(
        "train", *rest, "data=kitti_object", f"data.root={root}", "data.image_size=[38,124]", "data.grid.cell_m=1",
        "data.splits={train: lists/all.txt, val: lists/all.txt, test: "
        "null}", "loader.batch_size=2", "loader.num_workers=0",
        "reshaper=ipm", "hydra.run.dir=run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    ended = command(
        "evaluate", "checkpoint=run/checkpoints/best.ckpt", "hydra.run.dir=ev", "trainer.accelerator=cpu", "split=val"
    )
    assert ended.code == 0, ended.err
    assert {"test/iou/vehicle", "test/iou/cyclist"} <= {*json.loads((tmp_path / "ev/metrics.json").read_text())}


def test_a_damaged_image_is_masked_and_counted(command, tmp_path: Path) -> None:
    root = object_folder(tmp_path / "kitti", LABELS)
    path = root / "training/image_2/000001.png"
    path.write_bytes(path.read_bytes()[:900])
    names = sorted(LABELS)
    intact, spoilt = (
        source(root, on_corrupt_image="mask").split("test")[names.index(name)] for name in ("000000", "000001")
    )
    assert (intact.full_mask.tolist(), spoilt.full_mask.tolist()) == ([True], [False])
    assert intact.targets["segmentation"].valid.any()
    assert not spoilt.targets["segmentation"].valid.any()
    with pytest.raises(
        InputError, match=r"000001\.png: the image is truncated.*data.on_corrupt_image=mask continues without"
    ):
        source(root).split("test")[1]
    given = [
        *(a for a in TINY if not a.startswith("data.")), "data=kitti_object", f"data.root={root}",
        "data.image_size=[38,124]",
        "data.grid.cell_m=1", f"data.splits={{train: {names}, val: {names}, test: {names}}}", "loader.batch_size=2",
        "loader.num_workers=0", "reshaper=ipm",
    ]  # fmt: skip
    ended = command("train", *given, "hydra.run.dir=refused")
    assert ended.code == 1
    assert "data.on_corrupt_image=mask continues without this camera" in ended.err
    ended = command("train", *given, "hydra.run.dir=run", "data.on_corrupt_image=mask")
    assert ended.code == 0, ended.err
    assert f"{path}: the image is truncated" in ended.err
    with (tmp_path / "run/history.csv").open(newline="") as file:
        (*_, last) = csv.DictReader(file)
    assert float(last["val/masked_cameras"]) == 1
    assert float(last["train/masked_cameras"]) == 4  # 8 steps of 2 are 4 epochs of 4 frames
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test/masked_cameras"] == 1
    ended = command("evaluate", "checkpoint=run/checkpoints/best.ckpt", "hydra.run.dir=ev", "trainer.accelerator=cpu")
    assert "images masked (missing or unreadable): 1" in ended.out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("Car 0.00 0 -1.50 10 10 20 20 1.5 1.6 4.0 0 1.6\n", r"000000\.txt: line 1 has 12 words after its type"),
        (
            CAR + CAR.replace("12.00", "twelve"),
            "line 2 has 14 words after its type that are not the benchmark's 14 numbers",
        ),
        (CAR.replace("12.00", "nan"), "line 1 .* not the benchmark's 14 numbers"),
        (CAR.replace("Car", "Carr"), "line 1 begins with 'Carr', which is not a type; did you mean Car"),
        (CAR.replace("4.00", "0.00"), r"line 1 is a Car of 1.5×1.6×0 m; its sides must be positive"),
        (None, r"label_2/000000\.txt: there is no such label file; copy label_2"),
    ],
)
def test_bad_labels_are_refused_before_training(tmp_path: Path, lines: str | None, message: str) -> None:
    path = object_folder(tmp_path, LABELS) / "training/label_2/000000.txt"
    path.unlink() if lines is None else path.write_text(lines)
    with pytest.raises(InputError, match=message):
        source(tmp_path).prepare(("test",))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "classes={} must be a mapping, not empty"),
        ({"vehicle": []}, r"classes.vehicle=\[\] must be a list of 1 or more out of Car, Van"),
        ({"vehicle": ["car"]}, r"classes.vehicle=\['car'\] must .*; did you mean Car"),
        ({"vehicle": ["DontCare"]}, r"classes.vehicle=\['DontCare'\] must be"),
    ],
)
def test_bad_classes_are_refused(tmp_path: Path, classes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source(object_folder(tmp_path, LABELS), classes=classes)


@pytest.fixture
def real(shared_data: Path) -> KITTIObjectSource:
    """Return a source of the ten frames of the pack."""
    return source(
        shared_data / "kitti_object",
        grid=BEVGrid((4, 44), (-20, 20), 0.25),
        image_size=(192, 640),
        splits={"test": [f"{number:06d}" for number in range(10)]},
    )


def test_real_boxes_agree_with_their_windows(real: KITTIObjectSource) -> None:
    """The eight corners of a box, projected from the ego frame by our camera, fill the labelled 2D window."""
    frames = real.split("test").frames
    compared = 0
    for name in frames.names:
        intrinsics, ego_from_cam = (m.numpy() for m in frames.camera(name))
        ego_from_rectified = ego_from_velodyne_ground(frames.matrices(name))
        height_px, width_px = frames.size(name)
        for label in real.split("test").labels(name):
            if label.kind == "DontCare":
                continue
            x, y, yaw, length, width = ego_box(label, ego_from_rectified).tolist()
            z = (ego_from_rectified @ torch.tensor([*label.bottom_m, 1.0], dtype=torch.float64))[2].item()
            pixels = []
            for a in (-length / 2, length / 2):
                for b in (-width / 2, width / 2):
                    for up in (0.0, label.height_m):
                        corner = [
                            x + a * np.cos(yaw) - b * np.sin(yaw),
                            y + a * np.sin(yaw) + b * np.cos(yaw),
                            z + up,
                            1,
                        ]
                        u, v, w = intrinsics @ (np.linalg.inv(ego_from_cam) @ corner)[:3]
                        assert w > 0
                        pixels.append((u / w, v / w))
            found = np.array(pixels)
            low, high = found.min(0).clip(0, [width_px, height_px]), found.max(0).clip(0, [width_px, height_px])
            left, top, right, bottom = label.window
            both = max(0, min(high[0], right) - max(low[0], left)) * max(0, min(high[1], bottom) - max(low[1], top))
            either = np.prod(high - low) + (right - left) * (bottom - top) - both
            assert both / either > 0.7, (name, label)
            compared += 1
    assert compared > 20


def test_real_footprints_hold_the_lidar_points_of_their_cars(real: KITTIObjectSource, shared_data: Path) -> None:
    """Lidar points of a car, 0.3 to 1.5 m above the ground, are in its cells, and few are around it."""
    split = real.split("test")
    held = 0
    for name in ("000001", "000008"):
        cloud = np.fromfile(shared_data / f"kitti_object/training/velodyne/{name}.bin", np.float32).reshape(-1, 4)
        points = cloud[(cloud[:, 2] > 0.3 - 1.73) & (cloud[:, 2] < 1.5 - 1.73), :2]
        ego_from_rectified = ego_from_velodyne_ground(split.frames.matrices(name))
        for label in split.labels(name):
            if label.kind == "Car" and label.bottom_m[2] < 40:
                x, y, yaw, length, width = ego_box(label, ego_from_rectified).tolist()
                ahead, left = (points - [x, y]).T
                along, across = ahead * np.cos(yaw) + left * np.sin(yaw), left * np.cos(yaw) - ahead * np.sin(yaw)
                within = (np.abs(along) < length / 2) & (np.abs(across) < width / 2)
                around = (np.abs(along) < length / 2 + 0.3) & (np.abs(across) < width / 2 + 0.3) & ~within
                assert within.sum() > 20
                assert around.sum() < 0.3 * within.sum(), "the points end where the box does"
                held += 1
    assert held >= 6


def test_real_cars_are_left_and_right_as_in_the_image(real: KITTIObjectSource) -> None:
    """000008: a car ahead on the left, others on the right, and nothing where their mirror images would be."""
    vehicle = real.split("test")[8].targets["segmentation"].value[0]

    def there(ahead: float, left: float) -> bool:
        return bool(vehicle[int((44 - ahead) / 0.25), int((20 - left) / 0.25)])

    for ahead, left in ((8.1, 1.2), (6.4, -3.8), (33.5, -7.2), (20.2, -8.5)):
        assert there(ahead, left), (ahead, left)
    for ahead, left in ((6.4, 3.8), (33.5, 7.2), (20.2, 8.5)):
        assert not there(ahead, left), (ahead, left)


def test_an_object_store_gives_the_samples_of_the_folder(tmp_path: Path, memory_store: Upload) -> None:
    root = object_folder(tmp_path, LABELS)
    local, remote = source(root), source(memory_store(root))
    remote.prepare(("test",))
    assert_same_samples(local.split("test"), remote.split("test"))
