"""Test the common part of KITTI's benchmarks: calibration by the development kits' formulas, splits, bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_folder import MATRICES, P2, pixel_of, write_calibration, write_image

from bevreshape.data.sources.kitti.benchmark import (
    KITTIFrames,
    ego_from_road_plane,
    ego_from_velodyne_ground,
    read_matrices,
)
from bevreshape.data.sources.kitti.object import split_of as object_split_of
from bevreshape.data.sources.kitti.road import split_of
from bevreshape.data.sources.kitti.source import Benchmark, KITTISplits
from bevreshape.errors import InputError


def frames(root: Path, ego=ego_from_road_plane, image_size=(38, 124)) -> KITTIFrames:
    return KITTIFrames(root / "training", ("um_000000",), image_size, ego)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_calibration(tmp_path, "um_000000")
    write_image(tmp_path, "image_2/um_000000.png", np.zeros((38, 124, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("kind", ["road", "velodyne"])
def test_projection_equals_the_development_kits(folder: Path, kind: str) -> None:
    """Road: x right, y down, z forward, y = 0 on the road. Velodyne: x forward, y left, z up, 1.73 m above the
    ground."""
    ego = ego_from_road_plane if kind == "road" else ego_from_velodyne_ground
    intrinsics, ego_from_cam = (m.numpy() for m in frames(folder, ego).camera("um_000000"))
    for ahead, left, up in ((8.0, 2.0, 0.0), (40.0, -9.0, 0.5), (12.0, 0.0, 1.4)):
        theirs = [-left, -up, ahead] if kind == "road" else [ahead, left, up - 1.73]
        u, v, w = intrinsics @ (np.linalg.inv(ego_from_cam) @ [ahead, left, up, 1.0])[:3]
        np.testing.assert_allclose((u / w, v / w), pixel_of(theirs, kind), atol=1e-9)


def test_the_fourth_column_of_p2_displaces_the_camera(folder: Path) -> None:
    without = {**MATRICES, "P2": np.column_stack([P2[:, :3], np.zeros(3)])}
    _, displaced = frames(folder).camera("um_000000")
    write_calibration(folder, "um_000000", without)
    _, centred = frames(folder).camera("um_000000")
    moved = (torch.linalg.inv(centred) @ displaced)[:3, 3].numpy()
    np.testing.assert_allclose(P2[:, :3] @ moved, -P2[:, 3], atol=1e-12)


def test_intrinsics_of_a_sample_follow_its_image(folder: Path) -> None:
    sample = frames(folder, image_size=(19, 62))[0]
    assert sample.images.shape == (1, 3, 19, 62)
    np.testing.assert_allclose(sample.intrinsics[0, 0].numpy(), [36, 0, 61.5 / 2 - 0.5], atol=1e-5)
    assert sample.ego_from_cam[0, 2, 3] == pytest.approx(1.6, abs=0.05), "the camera is above the road"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P2": None}, r"um_000000\.txt: there is no P2, only P0, R0_rect"),
        ({"Tr_cam_to_road": None}, r"um_000000\.txt: there is no Tr_cam_to_road, only .*copy the file"),
        ({"P2": P2[:2]}, r"P2 is .* not the 9 or 12 finite numbers"),
        ({"P2": P2 * 0}, r"P2 is singular"),
        ({"R0_rect": np.zeros((3, 3))}, r"R0_rect is singular"),
        ({"P2": P2 * np.array([[10.0], [10.0], [1.0]])}, r"principal point .* is outside the image of 124×38"),
        ({"Tr_cam_to_road": np.column_stack([np.eye(3), [0, -1600, 0]])}, r"camera is 1600.* millimetres"),
        ({"P2": P2 * np.nan}, r"P2 is .nan nan.* not the 9 or 12 finite numbers"),
    ],
)
def test_a_bad_calibration_is_refused(folder: Path, change: dict, message: str) -> None:
    matrices = {key: value for key, value in {**MATRICES, **change}.items() if value is not None}
    write_calibration(folder, "um_000000", matrices)
    with pytest.raises(InputError, match=message):
        frames(folder).camera("um_000000")


def test_a_missing_calibration_is_refused(folder: Path) -> None:
    path = folder / "training/calib/um_000000.txt"
    path.write_text("P2: 1 2 three\n")
    with pytest.raises(InputError, match=r"P2 is '1 2 three', not the 9 or 12 finite numbers"):
        read_matrices(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="the text is not UTF-16"):
        read_matrices(path)
    path.unlink()
    with pytest.raises(InputError, match=r"um_000000\.txt: there is no such calibration"):
        read_matrices(path)


ROAD = Benchmark(r"(um|umm|uu)_\d{6}", "um_000000", split_of, "the rule", ego_from_road_plane)


def named(root: Path, names: list[str]) -> Path:
    (root / "training/image_2").mkdir(parents=True)
    for name in names:
        (root / "training/image_2" / f"{name}.png").touch()
    return root


def test_the_rule_divides_every_category_of_the_road_benchmark(tmp_path: Path) -> None:
    counts = {"um": 95, "umm": 96, "uu": 98}
    named(tmp_path, [f"{kind}_{number:06d}" for kind, count in counts.items() for number in range(count)])
    splits = KITTISplits(tmp_path, ROAD)
    parts = {name: splits.of(name) for name in ("train", "val", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 180, "val": 60, "test": 49}
    assert len({frame for part in parts.values() for frame in part}) == 289
    for part in parts.values():
        assert {frame.split("_")[0] for frame in part} == set(counts)


def test_the_rule_divides_the_object_benchmark() -> None:
    parts = [object_split_of(f"{number:06d}") for number in range(7481)]
    assert [parts.count(name) for name in ("train", "val", "test")] == [3741, 1870, 1870]


def test_splits_by_lists_and_files(tmp_path: Path) -> None:
    named(tmp_path, ["um_000000", "um_000001", "uu_000002"])
    (tmp_path / "mine.txt").write_text("uu_000002\num_000001\n")
    splits = KITTISplits(tmp_path, ROAD, {"train": None, "val": ["um_000001"], "test": "mine.txt"})
    assert splits.of("train") == ("um_000000", "um_000001", "uu_000002")
    assert splits.of("val") == ("um_000001",)
    assert splits.of("test") == ("uu_000002", "um_000001")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, r"none of its 2 frames falls into 'val' \(the rule\); list frames with data.splits.val=\[um_000000\]"),
        ({"val": []}, r"data.splits.val=\[\] is empty"),
        ({"val": ["um_000009"]}, "no image of frame 'um_000009'; did you mean um_00000"),
        ({"val": ["um_000000", "um_000000"]}, "'um_000000' is listed twice"),
        ({"val": "absent.txt"}, "absent.txt: there is no such split"),
    ],
)
def test_bad_splits_are_refused(tmp_path: Path, splits: dict, message: str) -> None:
    named(tmp_path, ["um_000000", "um_000001"])
    with pytest.raises(InputError, match=message):
        KITTISplits(tmp_path, ROAD, splits).of("val")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image_2: there is no such folder; unpack the benchmark"):
        KITTISplits(tmp_path, ROAD)
    named(tmp_path, [])
    with pytest.raises(InputError, match=r"there is no \.png here"):
        KITTISplits(tmp_path, ROAD)
    (tmp_path / "training/image_2/000001.png").touch()
    with pytest.raises(InputError, match=r"000001\.png: the name is not one of this benchmark, such as um_000000"):
        KITTISplits(tmp_path, ROAD)
