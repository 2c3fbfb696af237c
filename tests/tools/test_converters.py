"""Test the converters on real data of the shared pack."""

import json
import runpy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from bevreshape.data.batch import collate
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.data.sources.folder.dataset import open_frames
from bevreshape.data.sources.folder.source import FolderSource
from bevreshape.geometry import BEVGrid

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    """Import a script of ``tools/``."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(TOOLS)
        return __import__(name)

    return load


@pytest.fixture
def duckietown(shared_data: Path, tmp_path: Path) -> Path:
    """Write Duckietown's source with a few frames in each set."""
    source = tmp_path / "source"
    for kind in ("fixed_train", "fixed_test", "jitter_train", "jitter_test"):
        frames = json.loads((shared_data / "duckietown" / kind / "frames.json").read_text())
        few = sorted(frames)[:: len(frames) // 9][:9]
        for place, suffix in (("images", "jpg"), ("labels", "png"), ("bev", "png")):
            (source / kind / place).mkdir(parents=True)
            for name in few:
                original = shared_data / "duckietown" / kind / place / f"{name}.{suffix}"
                (source / kind / place / original.name).write_bytes(original.read_bytes())
        (source / kind / "frames.json").write_text(json.dumps({name: frames[name] for name in few}))
    return source


def by_hand(label: np.ndarray, frame: dict, row: int, col: int) -> int | None:
    """Return the label at a cell of Duckietown's grid, from the source's own matrices."""
    ground = [1.72 - (row + 0.5) * 0.02, 0.8 - (col + 0.5) * 0.02, 0.0, 1.0]
    cam = np.linalg.inv(np.array(frame["ego_from_cam"])) @ ground
    u, v, w = np.array(frame["pixel_from_cam"]) @ cam[:3]
    if w <= 0 or not (-0.5 <= u / w < 319.5 and -0.5 <= v / w < 239.5):
        return None
    return int(label[round(v / w), round(u / w)])


@pytest.mark.parametrize("kind", ["fixed", "jitter"])
def test_duckietown_keeps_calibration_and_labels(tool, duckietown: Path, tmp_path: Path, kind: str) -> None:
    tool("convert_duckietown").convert(duckietown, tmp_path / "out")
    root = tmp_path / "out" / f"duckietown_{kind}"
    train, val, test = ((root / f"splits/{name}.txt").read_text().split() for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (7, 2, 9)
    assert not {*train, *val} & set(test)
    source = FolderSource(
        root,
        grid=BEVGrid((0.12, 1.72), (-0.8, 0.8), 0.02),
        image_size=(240, 320),
        classes={
            "yellow": {"source": "ipm", "labels": ["yellow line"]},
            "drivable": {"source": "bev", "bev": ["drivable"]},
            "obstacle": {"source": "bev", "bev": ["obstacle"]},
        },
        splits={"test": "splits/test.txt"},
    )
    frames = source.split("test")
    batch = source.make_targets(collate([frames[i] for i in range(len(frames))]))
    original = duckietown / f"{kind}_test"
    matrices = json.loads((original / "frames.json").read_text())
    wrong = compared = 0
    for number, name in enumerate(test):
        bev = np.array(Image.open(original / "bev" / f"{name}.png"))
        np.testing.assert_array_equal(batch.targets["segmentation"].value[number, 1].numpy(), bev & 1 > 0)
        np.testing.assert_array_equal(batch.targets["segmentation"].value[number, 2].numpy(), bev & 2 > 0)
        label = np.array(Image.open(original / "labels" / f"{name}.png"))
        for row in range(0, 80, 3):
            for col in range(80):
                found = by_hand(label, matrices[name], row, col)
                wrong += batch.targets["segmentation"].value[number, 0, row, col].item() != (found == 2)
                wrong += batch.targets["segmentation"].valid[number, 0, row, col].item() != (found not in (None, 255))
                compared += found == 2
    assert compared > 50
    assert wrong <= 2, "only a centre within rounding of a pixel's edge may differ"


def test_camvid_poses_follow_the_vanishing_points(tool, shared_data: Path, tmp_path: Path) -> None:
    tool("convert_camvid").convert(shared_data / "camvid_701", tmp_path / "camvid")
    calibration = read_calibration(tmp_path / "camvid" / "calibration.json")
    assert "Assumed" in calibration.note
    counts = {path.stem: len(path.read_text().split()) for path in (tmp_path / "camvid/splits").iterdir()}
    assert counts == {"train": 266, "val": 39, "test": 171}
    for name, point in (("Seq05VD_f02370", (236.0, 173.0)), ("0016E5_00390", (227.0, 180.0))):
        rig = calibration.of(name)
        far = np.linalg.inv(rig.ego_from_cam[0].numpy()) @ [1e9, 0, 0, 1]
        u, v, w = rig.intrinsics[0].numpy() @ far[:3]
        np.testing.assert_allclose((u / w, v / w), point, atol=1e-4)
        assert rig.ego_from_cam[0, 2, 3] == 1.4
        assert rig.ego_from_cam[0, 2, 0] == 0, "no roll"


@pytest.mark.parametrize(
    ("kind", "source", "cameras", "frames"),
    [
        ("nuscenes", "nuscenes_frame1", 6, 1),
        ("dgp", "dgp/scene_02", 6, 3),
        ("waymo", "waymo_frame1", 5, 1),
        ("kitti-object", "kitti_object", 1, 10),
        ("kitti-semantics", "kitti_semantics", 1, 3),
        ("kitti-road", "kitti_road", 1, 1),
    ],
)
def test_frames_become_calibrated_rigs(
    tool, shared_data: Path, tmp_path: Path, kind: str, source: str, cameras: int, frames: int
) -> None:
    tool("convert_frames").convert(kind, shared_data / source, tmp_path / kind)
    rigs = open_frames(tmp_path / kind, (64, 128))
    assert len(rigs) == frames
    sample = rigs[0]
    assert sample.images.shape == (cameras, 3, 64, 128)
    assert sample.full_mask.all()
    assert ((sample.ego_from_cam[:, 2, 3] > 1.4) & (sample.ego_from_cam[:, 2, 3] < 2.2)).all()
    assert (sample.ego_from_cam[:, 2, 1] < -0.99).all(), "every camera's y points down"


def test_kitti_projects_lidar_as_the_benchmark_does(tool, shared_data: Path, tmp_path: Path) -> None:
    """The rig agrees with the development kit's formula, P2 · R0_rect · Tr_velo_to_cam · point."""
    tool("convert_frames").convert("kitti-object", shared_data / "kitti_object", tmp_path / "kitti")
    lines = (shared_data / "kitti_object/training/calib/000001.txt").read_text().splitlines()
    raw = {line.split(":")[0]: np.array(line.split()[1:], float) for line in lines if line}
    rectify, velodyne = np.eye(4), np.eye(4)
    rectify[:3, :3], velodyne[:3] = raw["R0_rect"].reshape(3, 3), raw["Tr_velo_to_cam"].reshape(3, 4)
    rig = read_calibration(tmp_path / "kitti/calibration.json").of("000001")
    for point in ([10, 2, -1.5], [40, -8, 0.3], [5, 0, -1.73]):
        u, v, w = raw["P2"].reshape(3, 4) @ rectify @ velodyne @ [*point, 1]
        cam = np.linalg.inv(rig.ego_from_cam[0].numpy()) @ [point[0], point[1], point[2] + 1.73, 1]
        a, b, c = rig.intrinsics[0].numpy() @ cam[:3]
        np.testing.assert_allclose((a / c, b / c), (u / w, v / w), atol=1e-6)


def test_kitti_road_projects_the_road_as_the_benchmark_does(tool, shared_data: Path, tmp_path: Path) -> None:
    """The rig agrees with P2 · R0_rect · Tr_cam_to_road⁻¹ · point, as the road is in camera 0's unrectified frame."""
    tool("convert_frames").convert("kitti-road", shared_data / "kitti_road", tmp_path / "kitti")
    lines = (shared_data / "kitti_road/training/calib/um_000000.txt").read_text().splitlines()
    raw = {line.split(":")[0]: np.array(line.split()[1:], float) for line in lines if line}
    rectify, road = np.eye(4), np.eye(4)
    rectify[:3, :3], road[:3] = raw["R0_rect"].reshape(3, 3), raw["Tr_cam_to_road"].reshape(3, 4)
    rig = read_calibration(tmp_path / "kitti/calibration.json").of("um_000000")
    for ahead, left in ((8, 1), (20, -6), (46, 10)):
        u, v, w = raw["P2"].reshape(3, 4) @ rectify @ np.linalg.inv(road) @ [-left, 0, ahead, 1]
        a, b, c = rig.intrinsics[0].numpy() @ (np.linalg.inv(rig.ego_from_cam[0].numpy()) @ [ahead, left, 0, 1])[:3]
        np.testing.assert_allclose((a / c, b / c), (u / w, v / w), atol=1e-6)


def test_nuscenes_labels_are_the_maps(tool, shared_data: Path, tmp_path: Path) -> None:
    tool("convert_frames").convert("nuscenes", shared_data / "nuscenes_frame1", tmp_path / "nuscenes")
    source = FolderSource(
        tmp_path / "nuscenes",
        grid=BEVGrid((-30, 30), (-30, 30), 0.5),
        image_size=(112, 200),
        classes={"drivable": {"source": "bev", "bev": ["drivable"]}},
        splits={"test": "splits/test.txt"},
    )
    batch = source.make_targets(collate([source.split("test")[0]]))
    drivable = np.array(Image.open(shared_data / "nuscenes_frame1/bev_drivable_from_map_0.1m_60x60m.png")) > 0
    np.testing.assert_array_equal(batch.targets["segmentation"].value[0, 0].numpy(), drivable[2::5, 2::5])


def test_an_invalid_source_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "kept").mkdir()
    monkeypatch.syspath_prepend(TOOLS)
    for out in ("new/er/out", "kept/new/out"):
        arguments = ["convert_duckietown.py", "--source", str(tmp_path / "gone"), "--out", str(tmp_path / out)]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOLS / "convert_duckietown.py"), run_name="__main__")
        assert ended.value.code == 1
        assert "there is no such file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_folder_appears_complete_or_not_at_all(
    duckietown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, script = tmp_path / "out", TOOLS / "convert_duckietown.py"
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setattr("sys.argv", [script.name, "--source", str(duckietown), "--out", str(out)])
    (duckietown / "jitter_test/bev").rename(duckietown / "jitter_test/gone")
    for message in ("there is no such file; is the source complete?", "exists and is not empty"):
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        assert end.value.code == 1
        assert message in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["duckietown_fixed"]
