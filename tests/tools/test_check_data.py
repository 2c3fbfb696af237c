"""Test the tool's report on a camera folder, and the positions of its drawings, against closed formulas."""

import json
import re
from pathlib import Path

import check_data
import numpy as np
import pytest
from folder_check.frames import boxes_of
from folder_check.overlay import mosaic, overlay, read_straight
from PIL import Image

from bevreshape.console import run_script
from bevreshape.data.sources.folder.dataset import open_frames
from bevreshape.geometry import BEVGrid

SIZE = (90, 160)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder of one camera 1.5 m high, with a slope of 1/10 downwards and white ground on the left."""
    slope = np.array([1.0, 0.1]) / np.hypot(1, 0.1)
    pose = np.array([[0, -slope[1], slope[0], 0], [-1, 0, 0, 0], [0, -slope[0], -slope[1], 1.5], [0, 0, 0, 1]])
    camera = {
        "name": "front",
        "image_size": SIZE,
        "intrinsics": [[100, 0, 79.5], [0, 100, 44.2], [0, 0, 1]],
        "ego_from_cam": pose.tolist(),
    }
    labels = np.zeros(SIZE, np.uint8)
    labels[35:, :80] = 1
    for place in ("images", "labels", "splits"):
        (tmp_path / place).mkdir()
    for name in ("a", "b"):
        image = np.repeat(labels[..., None] * 255, 3, axis=2)
        image[0, 0] = ord(name)  # in the sky
        Image.fromarray(image).save(tmp_path / f"images/{name}.png")
        Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
        (tmp_path / f"splits/split_{name}.txt").write_text(f"{name}\n")
    content = {"version": 1, "cameras": [camera], "labels": {"ids": {"0": "other", "1": "left"}}, "note": "by hand [x]"}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["check_data.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as end:
        run_script(check_data.main)
    return end.value.code  # type: ignore[return-value]


def test_a_sound_folder_is_described_and_drawn(folder: Path, monkeypatch, capsys) -> None:
    out = folder / "overlay.png"
    assert run(monkeypatch, folder, "--out", out) == 0
    said = capsys.readouterr()
    assert "by hand [x]" in said.out
    for fact in ("2/2", "90×160", "1.50m", "5.7", " 34 ", "77×48"):  # degrees down, row of the horizon, field of view
        assert fact in said.out
    share = 55 * 80 / (90 * 160)
    assert f"{share:.2%}" in said.out
    assert "no fault found" in said.err
    with Image.open(out) as drawn:
        assert drawn.width > 1000


def test_the_overlay_shows_metres_where_they_are(folder: Path) -> None:
    frames = open_frames(folder, SIZE)
    grid = BEVGrid((0, 20), (-10, 10), 0.1)
    in_image, from_above = overlay(frames, 0, grid, None, None).axes
    camera = json.loads((folder / "calibration.json").read_text())["cameras"][0]
    cam_from_ego = np.linalg.inv(camera["ego_from_cam"])
    for metres in (4, 10, 20):
        _, v, w = np.array(camera["intrinsics"]) @ (cam_from_ego @ [metres, 0, 0, 1])[:3]
        places = [text.xy[1] for text in in_image.texts if text.get_text() == f"{metres} m"]
        assert places == [pytest.approx(v / w, abs=1e-3)]
    image = from_above.images[0]
    west, east, south, north = image.get_extent()
    for left, value in ((2.0, 1.0), (-2.0, 0.0)):
        row = int((north - 8.0) / (north - south) * grid.rows)
        col = int((west - left) / (west - east) * grid.cols)
        np.testing.assert_allclose(image.get_array()[row, col], value)


def test_the_last_lines_name_every_fault(folder: Path, monkeypatch, capsys) -> None:
    with_boxes(folder, CAR)
    (folder / "images/b.png").write_bytes(b"")
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(folder / "labels/b.png")
    (folder / "boxes/b.json").write_text("{}")
    (folder / "splits/split_b.txt").write_text("a\nx\n")
    (folder / "splits/twice.txt").write_text("b\nb\n")
    (folder / "splits/val.txt").write_text("\n \n")
    assert run(monkeypatch, folder) == 1
    said = capsys.readouterr()
    *faults, last = said.err.splitlines()
    assert last == f"{len(faults)} faults, named above"
    expected = (
        "splits/split_b.txt: x without an image",
        "splits/split_b.txt: a also in split_a: results would be too good",
        "splits/twice.txt: frame 'b' is listed twice",
        "splits/val.txt: the split is empty",
        "images/b.png",
        "labels/b.png: the label holds 9",
        "boxes/b.json",
    )
    for fault, words in zip(faults, expected, strict=True):
        assert fault.startswith("fault: ")
        assert words in fault


def test_missing_splits_and_shared_images(folder: Path, monkeypatch, capsys) -> None:
    (folder / "splits/split_a.txt").rename(folder / "splits/train.txt")
    (folder / "splits/split_b.txt").rename(folder / "splits/val.txt")
    (folder / "splits/._val.txt").write_bytes(b"\x00\x05")
    (folder / "images/b.png").write_bytes((folder / "images/a.png").read_bytes())
    assert run(monkeypatch, folder) == 0
    said = capsys.readouterr().out
    assert "doubt: splits: there is no test.txt" in said
    assert "doubt: splits: 'a' of train and 'b' of val have the same image" in said
    for path in (folder / "splits").iterdir():
        path.unlink()
    assert run(monkeypatch, folder) == 0
    said = capsys.readouterr().out
    assert "no splits/*.txt: list frames there" in said
    assert "remark" not in said


def test_an_image_that_cannot_be_drawn_hides_no_other_fault(folder: Path, monkeypatch, capsys) -> None:
    Image.fromarray(np.zeros((SIZE[0] * 2, SIZE[1] * 2, 3), np.uint8)).save(folder / "images/a.png")
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(folder / "labels/b.png")
    assert run(monkeypatch, folder, "--out", str(folder / "overlay.png")) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "the label holds 9" in said
    assert said.count("a.png: it is") == 2  # when it is checked, and when it is to be drawn
    assert "3 faults, named above" in said
    assert "calibration.json is for" in said
    assert not (folder / "overlay.png").exists()


def test_a_missing_folder_is_a_one_line_error(folder: Path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, folder, "--frame", "c", "--out", folder / "o.png") == 1
    assert "there is no frame 'c'" in capsys.readouterr().err
    (folder / "calibration.json").write_text("{")
    assert run(monkeypatch, folder) == 1
    assert "not JSON" in capsys.readouterr().err


def calibrated(folder: Path, **changes: object) -> dict:
    """Change the first camera, or with ``boxes`` the section, of a folder's calibration."""
    path = folder / "calibration.json"
    content = json.loads(path.read_text())
    if "boxes" in changes:
        content["boxes"] = {"categories": changes.pop("boxes")}
    content["cameras"][0] |= changes
    path.write_text(json.dumps(content))
    return content["cameras"][0]


def with_boxes(folder: Path, *boxes: dict) -> None:
    calibrated(folder, boxes=["car", "person"])
    (folder / "boxes").mkdir()
    for name in ("a", "b"):
        (folder / f"boxes/{name}.json").write_text(json.dumps(boxes))


CAR = {"category": "car", "center_m": [10, 2, 0.75], "size_m": [4, 2, 1.5], "yaw_deg": 90}


def test_boxes_are_counted_and_drawn_where_they_are(folder: Path, monkeypatch, capsys) -> None:
    with_boxes(folder, CAR, {**CAR, "category": "person", "center_m": [5, -1, 0.9], "size_m": [0.6, 0.6, 1.8]})
    out = folder / "overlay.png"
    assert run(monkeypatch, folder, "--out", out, "--forward", 0, 20, "--left", -10, 10, "--cell", 0.5) == 0
    said = capsys.readouterr().out
    (car,) = (line for line in said.splitlines() if line.strip().startswith("car"))
    assert car.split() == ["car", "2", "4.0×2.0×1.5m", "0.00±0.00m", "10m", f"{4 * 8 / 1600:.2%}", "0", "0"]
    frames = open_frames(folder, SIZE)
    figure = overlay(frames, 0, BEVGrid((0, 20), (-10, 10), 0.5), None, None, boxes_of(frames, 0, folder / "boxes"))
    in_image, from_above = figure.axes
    camera = json.loads((folder / "calibration.json").read_text())["cameras"][0]
    cam_from_ego = np.linalg.inv(camera["ego_from_cam"])
    corners = [[10 + a, 2 + b, c, 1] for a in (-1, 1) for b in (-2, 2) for c in (0, 1.5)]  # its front is to the left
    expected = np.array([camera["intrinsics"] @ (cam_from_ego @ corner)[:3] for corner in corners])
    drawn = next(line.get_xydata() for line in in_image.lines if len(line.get_xydata()) == 13 * 25)
    for u, v in expected[:, :2] / expected[:, 2:]:
        assert np.nanmin(np.hypot(*(drawn - [u, v]).T)) < 1e-3
    assert np.nanmax(drawn[:, 0]) == pytest.approx((expected[:, 0] / expected[:, 2]).max(), abs=1e-3)
    outline = next(line.get_xydata() for line in from_above.lines if len(line.get_xydata()) == 8)
    np.testing.assert_allclose([np.nanmin(outline, 0), np.nanmax(outline, 0)], [[0, 9], [4, 11]], atol=1e-9)
    np.testing.assert_allclose(outline[-2:], [[2, 10], [4, 10]], atol=1e-9)


def test_several_cameras_are_projected_onto_one_ground_plane(folder: Path) -> None:
    """The left image is white, the right one grey; cells that both observe have the mean."""
    content = json.loads((folder / "calibration.json").read_text())
    del content["labels"]
    first = content["cameras"][0]
    pose = np.array(first["ego_from_cam"])
    cameras = []
    for name, yaw, grey in (("left", 25, 255), ("right", -25, 100)):
        turn = np.array([[np.cos(a := np.radians(yaw)), -np.sin(a)], [np.sin(a), np.cos(a)]])
        turned = pose.copy()
        turned[:2] = turn @ pose[:2]
        cameras.append({**first, "name": name, "ego_from_cam": turned.tolist()})
        (folder / "images" / name).mkdir()
        Image.fromarray(np.full((*SIZE, 3), grey, np.uint8)).save(folder / f"images/{name}/a.png")
    content["cameras"] = cameras
    (folder / "calibration.json").write_text(json.dumps(content))
    frames = open_frames(folder, SIZE)
    grid = BEVGrid((0, 20), (-10, 10), 0.5)
    together, seen = mosaic(frames, 0, grid)
    values = {round(value.item() * 510) / 2 for value in together[0][seen]}
    assert values == {255, 100, 177.5}
    cells = {left: together[0, 24, int((10 - left) / 0.5)].item() * 255 for left in (4.0, 0.0, -4.0)}
    assert cells == {4.0: pytest.approx(255), 0.0: pytest.approx(177.5), -4.0: pytest.approx(100)}
    figure = overlay(frames, 0, grid, None, None)
    assert len(figure.axes) == 1 + 2 * 2
    assert figure.axes[0].get_title() == "the ground, from all cameras · a"


def test_a_distorted_image_is_described_and_shown_undistorted(folder: Path, monkeypatch, capsys) -> None:
    distortion = {"model": "opencv", "coefficients": [-0.2, 0.03, 0, 0]}
    calibrated(folder, distortion=distortion)
    assert run(monkeypatch, folder, "--out", folder / "overlay.png") == 0
    said = capsys.readouterr().out
    assert "front: opencv [-0.2, 0.03, 0, 0] moves pixels by up to" in said
    frames = open_frames(folder, SIZE)
    shown = read_straight(frames, 0, 0)
    assert shown.shape == (3, *SIZE)
    rig = frames.calibration.of("a")
    expected = rig.intrinsics[0, 0, 2].item()  # where the white of the left half ends
    row = shown[0, 80].numpy()
    assert np.abs(np.interp(-0.5, -row, np.arange(160)) - expected) < 1.2


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([{**CAR, "yaw_deg": 0.5 * n} for n in range(6)], "no yaw_deg of 12 is above 2.50; are they radians?"),
        ([{**CAR, "center_m": [10, 2, 2.8]}], "within 30 m are 2.0 m above the ground"),
        ([CAR] * 6, None),
    ],
)
def test_doubtful_boxes(folder: Path, monkeypatch, capsys, boxes, says) -> None:
    with_boxes(folder, *boxes)
    assert run(monkeypatch, folder) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert ("doubt:" in said) == (says is not None)
    assert says is None or says in said


def test_boxes_without_a_cell_are_counted(folder: Path, monkeypatch, capsys) -> None:
    """Cones of 0.3 m on cells of 0.5 m, whose centres are at odd multiples of 0.25 m."""
    cone = {"category": "person", "size_m": [0.3, 0.3, 0.7], "yaw_deg": 0}
    centers = [
        (10.25, 0.25),
        (10.0, 0.0),
        (12.02, 3.0),
        (60.0, 0.0),
    ]  # on a centre, between four, between four, outside
    with_boxes(folder, CAR, *({**cone, "center_m": [x, y, 0.35]} for x, y in centers))
    assert run(monkeypatch, folder) == 0
    said = capsys.readouterr().out
    (row,) = (line for line in said.splitlines() if line.strip().startswith("person"))
    assert row.split()[-2:] == ["8", "4"]
    said = " ".join(said.split())
    expected = (
        "8 of 8 person have a side shorter than a cell of 0.5 m, and 4 of them in the grid cover no cell's centre"
    )
    assert f"doubt: boxes: {expected}" in said, said[-700:]
    assert "car have a side" not in said
    assert run(monkeypatch, folder, "--forward", 0, 40, "--left", -20, 20, "--cell", 0.2) == 0
    assert "cover no cell's centre" not in capsys.readouterr().out


def bottoms(values: list[float], category: str = "car") -> list[dict]:
    return [
        {**CAR, "category": category, "center_m": [8 + 2 * number, 0, value + 0.75]}
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (bottoms([-0.3, -0.2, -0.25, -0.22, -0.28]), r"car within 30 m are 0.25 ± 0.04 m below the ground .* 10\)"),
        (
            bottoms([-0.3, -0.2, -0.25, -0.22, -0.28]),
            "from 1.50 m they are projected 4.3 m too near if they are 30 m",
        ),
        (bottoms([0.3, 0.2, 0.25, 0.22, 0.28]), "are 0.25 ± 0.04 m above the ground .* projected 6.0 m too far"),
        (bottoms([0.02, -0.03, 0.05, -0.04, 0.01]), None),
        (bottoms([-0.6, 0.7, 0.5, -0.4, -0.2, 0.2]), None),  # uneven ground, not a plane that is too high
        (
            bottoms([0.0] * 9) + bottoms([-0.4] * 5, "person"),
            "the bottoms of person within 30 m are 0.40 ± 0.00 m below",
        ),
    ],
)
def test_bottoms_off_the_ground(folder: Path, monkeypatch, capsys, boxes, says) -> None:
    with_boxes(folder, *boxes)
    assert run(monkeypatch, folder) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("the bottoms of" in said) == (says is not None)
    assert says is None or re.search(says, said), said


def test_an_invalid_box_is_a_fault(folder: Path, monkeypatch, capsys) -> None:
    with_boxes(folder, CAR)
    (folder / "boxes/b.json").write_text(json.dumps([{**CAR, "category": "cat"}]))
    assert run(monkeypatch, folder) == 1
    assert "boxes/b.json: box 0: category 'cat' is not in" in capsys.readouterr().err.replace("\n", " ")


ROBOT = [[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "says", "code"),
    [
        (
            lambda pose: np.linalg.inv(pose),
            "doubt: camera 'front', frame 'a': .*wrong way round, as cam_from_ego; invert it",
            0,
        ),
        (lambda pose: pose @ np.linalg.inv(ROBOT), "never observes the grid .*look like x forward, y left, z up", 1),
        (lambda pose: pose @ np.diag([1, -1, -1, 1]), "never observes the grid .*look like x right, y up, z back", 1),
        (lambda pose: pose @ np.diag([-1, 1, 1, 1]), "mirrored .*x points left", 1),
        (lambda pose: np.diag([1, 1, 1000, 1]) @ pose, "not orthonormal", 1),
        (lambda pose: pose + 1498.5 * np.eye(4)[2][:, None] * np.eye(4)[3], "looks like millimetres: divide", 1),
        (lambda pose: pose + 58.5 * np.eye(4)[2][:, None] * np.eye(4)[3], "looks like centimetres", 1),
    ],
)
def test_a_wrong_pose_is_named(folder: Path, monkeypatch, capsys, change, says, code) -> None:
    camera = json.loads((folder / "calibration.json").read_text())["cameras"][0]
    calibrated(folder, ego_from_cam=change(np.array(camera["ego_from_cam"])).tolist())
    grid = ("--forward", 0, 20, "--left", -10, 10, "--cell", 0.5)
    assert run(monkeypatch, folder, *grid) == code
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("factor", "says", "code"),
    [
        (2, "about 320×180", 1),
        (0.5, "about 80×45", 1),
        (0.75, "about 120×68; multiply their first two rows by 1.33", 0),
    ],
)
def test_intrinsics_of_another_size_are_named(folder: Path, monkeypatch, capsys, factor, says, code) -> None:
    camera = json.loads((folder / "calibration.json").read_text())["cameras"][0]
    calibrated(folder, intrinsics=(np.array(camera["intrinsics"]) * [[factor], [factor], [1]]).tolist())
    assert run(monkeypatch, folder) == code
    assert says in " ".join("".join(capsys.readouterr()).split())
