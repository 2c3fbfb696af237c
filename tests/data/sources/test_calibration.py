import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from bevreshape.data.sources.folder.boxes import read_boxes
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

CAMERA: dict[str, Any] = {
    "name": "front",
    "image_size": [90, 160],
    "intrinsics": [[100, 0, 79.5], [0, 100, 44.5], [0, 0, 1]],
    "ego_from_cam": [[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]],
}

BEV: dict[str, Any] = {"grid": {"forward_m": [0, 4], "left_m": [-2, 2], "cell_m": 0.5}}


def saved(folder: Path, content: Any) -> Path:
    path = folder / "calibration.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def with_camera(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "cameras": [{**deepcopy(CAMERA), **changes}]}


def pose(**changes: Any) -> list[list[float]]:
    rows = deepcopy(CAMERA["ego_from_cam"])
    for place, value in changes.items():
        rows[int(place[1])][int(place[2])] = value
    return rows


def test_single_frames_override_the_shared_calibration(tmp_path: Path) -> None:
    content = with_camera()
    content["frames"] = {"7": {"front": {"ego_from_cam": pose(r23=2.0)}}, "8": {"front": {"image_size": [100, 170]}}}
    calibration = read_calibration(saved(tmp_path, content))
    assert calibration.cameras == ("front",)
    assert calibration.of("1").ego_from_cam[0, 2, 3] == 1.4
    assert calibration.of("7").ego_from_cam[0, 2, 3] == 2.0
    assert torch.equal(calibration.of("7").intrinsics, calibration.of("1").intrinsics)
    assert calibration.of("8").sizes == ((100, 170),)
    assert calibration.largest_size == (100, 170)


def test_a_calibration_may_be_given_by_the_frames_alone(tmp_path: Path) -> None:
    rest = {key: value for key, value in CAMERA.items() if key in ("image_size", "ego_from_cam")}
    content = {"version": 1, "cameras": [{"name": "front", "intrinsics": CAMERA["intrinsics"]}]}
    content["frames"] = {"7": {"front": rest}}
    calibration = read_calibration(saved(tmp_path, content))
    assert calibration.of("7").sizes == ((90, 160),)
    with pytest.raises(InputError, match="frame '8' has no calibration"):
        calibration.of("8")


def test_label_maps_of_ids_and_bits(tmp_path: Path) -> None:
    content = with_camera()
    content["labels"] = {"ids": {"0": "other", "3": "road", "5": "road"}, "void": [11]}
    content["bev"] = {"grid": {"forward_m": [0, 4], "left_m": [-2, 2], "cell_m": 0.5}, "bits": ["drivable", "vehicle"]}
    calibration = read_calibration(saved(tmp_path, content))
    assert calibration.labels is not None
    assert calibration.bev is not None
    assert calibration.labels.any_of(["road"], "class").nonzero().flatten().tolist() == [3, 5]
    assert calibration.labels.void.nonzero().flatten().tolist() == [11, 255]
    assert [bool(calibration.bev.members["vehicle"][v]) for v in range(4)] == [False, False, True, True]
    assert calibration.bev.allowed.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert calibration.bev_grid == BEVGrid((0, 4), (-2, 2), 0.5)
    with pytest.raises(InputError, match=r"'raod' is not labelled in this folder; did you mean road\?"):
        calibration.labels.any_of(["raod"], "class 'x'")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{half", "not JSON"),
        ([], "this is list"),
        ({"version": 2, "cameras": [CAMERA]}, "version is 2, this program reads 1"),
        ({"version": 1}, "'cameras' is missing"),
        ({"version": 1, "cameras": []}, "at least one camera"),
        ({"version": 1, "cameras": [CAMERA, CAMERA]}, "two cameras are named 'front'"),
        ({"version": 1, "cameras": [CAMERA], "frame": {}}, r"'frame' is an unknown key; did you mean frames"),
        ({"version": 1, "cameras": [{"name": "front"}]}, "camera front: ego_from_cam is missing"),
        (with_camera(intrinsic=1), r"'intrinsic' is an unknown key; did you mean intrinsics"),
        ({**with_camera(), "frames": {"7": {"frnt": {}}}}, r"'7': 'frnt' is an unknown key; did you mean front\?"),
        (with_camera(image_size=[90.5, 160]), r"image_size is \[90.5, 160\]; it must be \[height, width\]"),
        (with_camera(intrinsics=[[1, 0], [0, 1]]), "intrinsics is 2×2; it must be 3×3"),
        (with_camera(intrinsics="K"), "intrinsics is 'K'; it must be 3 rows of 3 numbers"),
        (with_camera(image_size=[160, 60]), "camera 'front': the principal point .* outside the image of 60×160"),
        (with_camera(intrinsics=[[0, 0, 79.5], [0, 100, 44.5], [0, 0, 1]]), "intrinsics are singular"),
        (with_camera(intrinsics=[[-100, 0, 79.5], [0, 100, 44.5], [0, 0, 1]]), "mirror the image"),
        (with_camera(ego_from_cam=pose(r10=1)), "mirrored"),
        (with_camera(ego_from_cam=pose(r10=0)), "singular"),
        (
            with_camera(ego_from_cam=pose(r03=1500, r23=1400)),
            "must be in metres .*millimetres: divide its last column by 1000",
        ),
        (
            with_camera(ego_from_cam=pose(r03=150, r23=140)),
            "must be in metres .*centimetres: divide its last column by 100",
        ),
        (with_camera(ego_from_cam=pose(r03=4e5, r23=12)), "must be in metres .*or a pose in the world"),
        (with_camera(ego_from_cam=pose(r21=1)), "mirrored .*the camera's y points up"),
        (with_camera(ego_from_cam=pose(r10=1)), "mirrored .*x points left, its z back, or the ego frame's y right"),
        (
            with_camera(intrinsics=[[200, 0, 159.5], [0, 200, 89.5], [0, 0, 1]]),
            "another image size: they fit one of about 320×180; multiply their first two rows by 0.5",
        ),
        (
            with_camera(intrinsics=[[0.625, 0, 0.5], [0, 1.11, 0.5], [0, 0, 1]]),
            "look normalised: multiply the first row by 160 and the second by 90",
        ),
        (with_camera(distortion=[0.1, 0, 0, 0]), "distortion: this is list, it must be an object with"),
        (with_camera(distortion={"model": "opencv"}), "distortion: 'coefficients' is missing"),
        (
            with_camera(distortion={"model": "fish-eye", "coefficients": [0] * 4}),
            r"distortion: model is 'fish-eye'; did you mean fisheye\?",
        ),
        (
            with_camera(distortion={"model": "opencv", "coefficients": [0] * 6}),
            r"coefficients are \[0, 0, 0, 0, 0, 0\]; opencv takes 4 or 5 or 8 numbers",
        ),
        (with_camera(distortion={"model": "fisheye", "coefficients": [0, 0, 0, "k"]}), "fisheye takes 4 numbers"),
        (
            with_camera(distortion={"model": "opencv", "coefficients": [-0.9, 0, 0, 0]}),
            r"camera 'front': the distortion opencv \[-0.9, 0, 0, 0\] cannot be inverted from pixel \(0, 0\) to \(159, "
            r"0\)",
        ),
        ({**with_camera(), "boxes": {"categories": []}}, "boxes: categories is \\[\\]; it must list the names"),
        ({**with_camera(), "boxes": {"names": ["car"]}}, "boxes: 'names' is an unknown key"),
        (with_camera(ego_from_cam=pose(r23=float("nan"))), "NaN or infinity"),
        (with_camera(name=5), "camera 0: name 5 is int, not a text"),
        (with_camera(name=["a"]), r"camera 0: name \['a'\] is list, not a text"),
        (with_camera(name=""), "camera 0: name '' is empty"),
        (with_camera(name="../up"), r"camera 0: name '../up' is not a valid folder name"),
        (with_camera(name=".."), "is not a valid folder name"),
        (with_camera(name="a\nb"), "holds the unprintable character"),
        (with_camera(image_size=[True, True]), r"image_size is \[True, True\]"),
        (with_camera(image_size=[10**400, 160]), "image_size is"),
        (with_camera(image_size=[90000, 160000]), "more than the 64 million pixels"),
        (with_camera(intrinsics=[[10**400, 0, 79.5], [0, 100, 44.5], [0, 0, 1]]), "it must be 3 rows of 3 numbers"),
        (with_camera(intrinsics=[[True, 0, 79.5], [0, 100, 44.5], [0, 0, 1]]), "it must be 3 rows of 3 numbers"),
        (with_camera(intrinsics={"fx": 1}), "it must be 3 rows of 3 numbers"),
        (with_camera(intrinsics=[[1, 2], [1], [2]]), "intrinsics is 3×1 or 2; it must be 3×3"),
        (with_camera(intrinsics=None), "it must be 3 rows of 3 numbers"),
        (
            with_camera(intrinsics=[[1e-9, 0, 79.5], [0, 100, 44.5], [0, 0, 1]]),
            "fx=1e-09 makes an image .* show 180° across",
        ),
        (with_camera(intrinsics=[[100, 0, 79.5], [0, 1, 44.5], [0, 0, 1]]), "fy=1 makes an image .* 177° from top to"),
        (with_camera(intrinsics=[[1e9, 0, 79.5], [0, 100, 44.5], [0, 0, 1]]), "fx=1e.09 makes an image"),
        (with_camera(distortion={"model": ["opencv"], "coefficients": [0] * 4}), "distortion: model is"),
        (
            with_camera(distortion={"model": "opencv", "coefficients": [10**400, 0, 0, 0]}),
            "opencv takes 4 or 5 or 8 numbers",
        ),
        ({**with_camera(), "note": 5}, "note is 5; it must be a text"),
        ({**with_camera(), "note": "a\x1b[2J"}, "note is .* printable"),
        ({**with_camera(), "labels": []}, "labels: this is list"),
        ({**with_camera(), "labels": {"ids": ["road"]}}, r"labels: ids is \['road'\]; it must map ids to names"),
        ({**with_camera(), "labels": {"ids": {"1": 5}}}, "labels: id 1: name 5 is int, not a text"),
        ({**with_camera(), "labels": {"ids": {"1": ["road"]}}}, "labels: id 1: name .* is list, not a text"),
        ({**with_camera(), "labels": {"ids": {"²": "road"}}}, "labels: '²' is not an id"),
        ({**with_camera(), "labels": {"ids": {"٣": "road"}}}, "labels: '٣' is not an id"),
        ({**with_camera(), "labels": {"ids": {"3": "road", "03": "car"}}}, "id 3 is there twice, as 'road' and 'car'"),
        ({**with_camera(), "labels": {"ids": {"3": "road"}, "void": "11"}}, "void is '11'; it must be a list of ids"),
        ({**with_camera(), "labels": {"ids": {"3": "road"}, "void": 11}}, "void is 11; it must be a list of ids"),
        ({**with_camera(), "labels": {"ids": {"3": "road"}, "void": [11.0]}}, "11.0 is not an id"),
        ({**with_camera(), "labels": {"ids": {"3": "road"}, "void": [True]}}, "True is not an id"),
        ({**with_camera(), "bev": {**BEV, "bits": ["a", "b", "a"]}}, "bits: 'a' is named twice"),
        ({**with_camera(), "bev": {**BEV, "bits": ["a", 5]}}, "bits: name 5 is int, not a text"),
        ({**with_camera(), "bev": {**BEV, "bits": ["a"], "void": [3]}}, "'void' goes with 'ids'"),
        ({**with_camera(), "bev": {"grid": {**BEV["grid"], "cell_m": "x"}, "bits": ["a"]}}, "bev: grid is"),
        (
            {**with_camera(), "bev": {"grid": {**BEV["grid"], "forward_m": [-(10**308), 10**308]}, "bits": ["a"]}},
            "cells, more than",
        ),
        (
            {**with_camera(), "bev": {"grid": {**BEV["grid"], "forward_m": [0, 1e300]}, "bits": ["a"]}},
            "more than any image",
        ),
        (
            {**with_camera(), "bev": {"grid": {**BEV["grid"], "forward_m": [4, 0]}, "bits": ["a"]}},
            "bev: grid: forward_m",
        ),
        ({**with_camera(), "boxes": {"categories": ["car", "car"]}}, "categories: 'car' is named twice"),
        ({**with_camera(), "boxes": {"categories": [["car"]]}}, "is list, not a text"),
        ("[" * 50_000, "not JSON .*recursion"),
        ('{"version": 1, "version": 1, "cameras": []}', "the key 'version' occurs twice"),
        ({**with_camera(), "labels": {"ids": {"x": "road"}}}, "labels: 'x' is not an id"),
        ({**with_camera(), "labels": {"ids": {"256": "road"}}}, "labels: '256' is not an id"),
        ({**with_camera(), "labels": {"ids": {"255": "sky"}}}, "an id of 'sky' is void as well"),
        ({**with_camera(), "bev": {"grid": {"forward_m": [0, 4], "left_m": [-2, 2], "cell_m": 1}}}, "either 'bits'"),
    ],
)
def test_invalid_calibrations_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(InputError, match=says) as refusal:
        read_calibration(path)
    assert str(refusal.value).startswith(str(path))


def test_a_camera_that_never_sees_the_grid_is_refused(tmp_path: Path) -> None:
    calibration = read_calibration(saved(tmp_path, with_camera()))
    calibration.check_views(BEVGrid((0, 20), (-5, 5), 0.5))
    with pytest.raises(InputError, match=r"camera 'front' never observes the grid.*faces \(1.00, 0.00, 0.00\)"):
        calibration.check_views(BEVGrid((-20, 0), (-5, 5), 0.5))

    turned = [[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1]]
    inverse = torch.linalg.inv(torch.tensor(turned, dtype=torch.float64)).tolist()
    wrong = read_calibration(saved(tmp_path, with_camera(ego_from_cam=inverse)))
    with pytest.raises(InputError, match=r"never observes the grid.*wrong way round, as cam_from_ego; invert it"):
        wrong.check_views(BEVGrid((0, 20), (-5, 5), 0.5))


def test_distortion_is_undone_to_a_pinhole_camera(tmp_path: Path) -> None:
    stated = {"model": "opencv", "coefficients": [-0.2, 0.03, 0, 0]}
    content = with_camera(distortion=stated)
    content["frames"] = {"7": {"front": {"distortion": None}}}
    calibration = read_calibration(saved(tmp_path, content))
    rig, plain = calibration.of("1"), calibration.of("7")
    assert plain.distortions == (None,)
    assert plain.intrinsics[0].tolist() == CAMERA["intrinsics"]
    (distortion,) = rig.distortions
    assert distortion is not None
    assert distortion.intrinsics == ((100, 0, 79.5), (0, 100, 44.5), (0, 0, 1))
    assert 80 < rig.intrinsics[0, 0, 0] < 100, "a barrel shows more than the pinhole camera of the same focal length"
    chosen = [[90.0, 0, 79.5], [0, 98.0, 44.5], [0, 0, 1.0]]
    own = with_camera(distortion={**stated, "intrinsics": chosen})
    assert read_calibration(saved(tmp_path, own)).of("1").intrinsics[0].tolist() == chosen


def test_the_documented_files_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "data/README.md").read_text()
    calibration_json, boxes_json = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    calibration = read_calibration(saved(tmp_path, calibration_json))
    assert calibration.of("000001").distortions[0] is not None
    (tmp_path / "boxes.json").write_text(boxes_json)
    assert len(read_boxes(tmp_path / "boxes.json", calibration.boxes or ()).categories) == 1
