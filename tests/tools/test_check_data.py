import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevreshape.data.frames import open_frames
from bevreshape.geometry import BEVGrid

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SIZE = (90, 160)


@pytest.fixture
def check_data(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(TOOLS)
    import check_data

    return check_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One camera 1.5 m high that looks down by a slope of 1/10, over a picture that is white on the ground left of it."""
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
        Image.fromarray(np.repeat(labels[..., None] * 255, 3, axis=2)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(labels).save(tmp_path / f"labels/{name}.png")
        (tmp_path / f"splits/split_{name}.txt").write_text(f"{name}\n")
    content = {"version": 1, "cameras": [camera], "labels": {"ids": {"0": "other", "1": "left"}}, "note": "by hand [x]"}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    return tmp_path


def run(check_data, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["check_data.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as end:
        check_data.main()
    return end.value.code  # type: ignore[return-value]


def test_a_sound_folder_is_described_and_drawn(check_data, folder: Path, monkeypatch, capsys) -> None:
    out = folder / "overlay.png"
    assert run(check_data, monkeypatch, folder, "--out", out) == 0
    said = capsys.readouterr()
    assert "by hand [x]" in said.out
    for fact in ("2/2", "90×160", "1.50m", "5.7", " 34 ", "77×48"):  # degrees down, row of the horizon, field of view
        assert fact in said.out
    share = 55 * 80 / (90 * 160)
    assert f"{share:.2%}" in said.out
    assert "no fault found" in said.err
    with Image.open(out) as drawn:
        assert drawn.width > 1000


def test_the_overlay_shows_metres_where_they_are(check_data, folder: Path) -> None:
    frames = open_frames(folder, SIZE)
    grid = BEVGrid((0, 20), (-10, 10), 0.1)
    in_picture, from_above = check_data.overlay(frames, 0, grid, None, None).axes
    camera = json.loads((folder / "calibration.json").read_text())["cameras"][0]
    cam_from_ego = np.linalg.inv(camera["ego_from_cam"])
    for metres in (4, 10, 20):
        _, v, w = np.array(camera["intrinsics"]) @ (cam_from_ego @ [metres, 0, 0, 1])[:3]
        places = [text.xy[1] for text in in_picture.texts if text.get_text() == f"{metres} m"]
        assert places == [pytest.approx(v / w, abs=1e-3)]
    image = from_above.images[0]
    west, east, south, north = image.get_extent()
    for left, value in ((2.0, 1.0), (-2.0, 0.0)):
        row = int((north - 8.0) / (north - south) * grid.rows)
        col = int((west - left) / (west - east) * grid.cols)
        np.testing.assert_allclose(image.get_array()[row, col], value)


def test_faults_are_named_and_counted(check_data, folder: Path, monkeypatch, capsys) -> None:
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(folder / "labels/b.png")
    (folder / "splits/split_b.txt").write_text("a\nx\n")
    assert run(check_data, monkeypatch, folder) == 1
    said = capsys.readouterr()
    assert "the label holds 9" in said.err.replace("\n", " ")
    assert "no picture of x" in said.out
    assert "1 also in split_a" in said.out
    assert "3 faults" in said.err


def test_a_sentence_where_nothing_can_be_checked(check_data, folder: Path, monkeypatch, capsys) -> None:
    assert run(check_data, monkeypatch, folder, "--frame", "c", "--out", folder / "o.png") == 1
    assert "there is no frame 'c'" in capsys.readouterr().err
    (folder / "calibration.json").write_text("{")
    assert run(check_data, monkeypatch, folder) == 1
    assert "not JSON" in capsys.readouterr().err
