import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevreshape.data.sources.folder.boxes import MOST_MB, read_boxes
from bevreshape.errors import InputError
from bevreshape.storage.files import parsed_mb

BOX: dict[str, Any] = {"category": "car", "center_m": [10, 2.5, 0.8], "size_m": [4.2, 1.8, 1.6], "yaw_deg": 30}


def saved(folder: Path, content: Any) -> Path:
    path = folder / "000001.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_are_read_as_written(tmp_path: Path) -> None:
    boxes = read_boxes(saved(tmp_path, [BOX, {**BOX, "category": "bus", "yaw_deg": -180.0}]), ("car", "bus"))
    assert boxes.categories == ("car", "bus")
    np.testing.assert_allclose(boxes.from_above[0].numpy(), [10, 2.5, np.pi / 6, 4.2, 1.8])
    assert boxes.among(["bus", "tram"]).tolist() == [False, True]


def test_convention_corners_are_numbered_front_left_top(tmp_path: Path) -> None:
    corners = read_boxes(saved(tmp_path, [BOX]), ("car",)).corners[0].numpy()
    ahead, left = np.array([np.cos(np.pi / 6), 0.5]), np.array([-0.5, np.cos(np.pi / 6)])
    for number, corner in enumerate(corners):
        signs = [1 if number >> axis & 1 else -1 for axis in range(3)]
        expected = np.array([10, 2.5]) + signs[0] * 2.1 * ahead + signs[1] * 0.9 * left
        np.testing.assert_allclose(corner, [*expected, 0.8 + signs[2] * 0.8])


def test_a_frame_without_boxes(tmp_path: Path) -> None:
    boxes = read_boxes(saved(tmp_path, []), ("car",))
    assert boxes.from_above.shape == (0, 5)
    assert boxes.corners.shape == (0, 8, 3)


def changed(**values: Any) -> list[dict[str, Any]]:
    return [deepcopy(BOX), {**deepcopy(BOX), **values}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "not JSON"),
        ({}, "this is dict; it must be a list of boxes"),
        ([3], "box 0: this has int; it must have category, center_m"),
        ([{"category": "car"}], "box 0: this has category; it must have category, center_m, size_m, yaw_deg"),
        (changed(velocity=3), "box 1: this has .*velocity"),
        (changed(category="cra"), r"box 1: category 'cra' is not in calibration.json under boxes; did you mean car\?"),
        (changed(center_m=[1, 2]), r"box 1: center_m is \[1, 2\]; it must be three numbers in metres"),
        (changed(center_m=[1, 2, float("nan")]), "box 1: center_m"),
        (changed(size_m=[4, 0, 1]), "box 1: size_m is .*must be positive"),
        (changed(size_m="4"), "box 1: size_m is '4'"),
        (changed(size_m=[4200, 1800, 1600]), r"box 1: size_m is \[4200, .*are they millimetres"),
        (changed(size_m=[1e308, 1, 1]), r"box 1: size_m is .*above 1000"),
        (changed(center_m=[691608, 5335000, 1]), r"box 1: .*or world coordinates\?"),
        (changed(yaw_deg=1e308), "box 1: yaw_deg is 1e\\+308; it must be a number of degrees, at most 3600"),
        (changed(yaw_deg=None), "box 1: yaw_deg is None; it must be a number of degrees"),
    ],
)
def test_invalid_boxes_are_refused(tmp_path: Path, content: Any, says: str) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(InputError, match=says) as refusal:
        read_boxes(path, ("car",))
    assert str(refusal.value).startswith(str(path))
    with pytest.raises(InputError, match=r"there is no such file; write the frame's boxes, \[\] where it has none"):
        read_boxes(tmp_path / "2.json", ("car",))


def test_too_large_box_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + "{}," * 1_000_000 + "{}]")
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("it was parsed"))
    with pytest.raises(InputError, match=r"a\.json: its values would take about 112 MB of memory, more than 50"):
        read_boxes(path, ["car"])


def test_thirty_thousand_boxes_are_read() -> None:
    assert parsed_mb(json.dumps([BOX] * 30_000)) < MOST_MB
