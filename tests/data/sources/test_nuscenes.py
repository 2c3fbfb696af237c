"""Test nuScenes with a release of the synthetic world, its devkit, preparation and reading."""

import errno
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import write_nuscenes as writer
from batches import labelled, outputs_of
from commands import finish, start
from object_stores import Upload, assert_same_samples
from PIL import Image

from bevreshape.config.build_data import build_data
from bevreshape.config.load_model import load_model
from bevreshape.data import storage
from bevreshape.data.batch import Meta
from bevreshape.data.sources.nuscenes import NuScenesSource, prepared, splits, tables
from bevreshape.data.sources.nuscenes.maps import LAYERS, Layer, draw_exact, draw_published, read_layers
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.conditions import ConditionIoU, conditions_of

pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")

GRID = BEVGrid((-16.0, 16.0), (-16.0, 16.0), 0.5)
LINE_M = 0.75
CONTENT = prepared.Content("v1.0-mini", GRID, LINE_M)
SIZE = (90, 160)
CLASSES = {
    "vehicle": {"boxes": ["vehicle"]},
    "drivable": {"map": ["drivable_area"]},
    "crossing": {"map": ["ped_crossing"]},
    "lane": {"map": ["lane_divider", "road_divider"]},
}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nuscenes") / "release"
    writer.write(out, train=3, val=1, keyframes=2, image_size=SIZE, seed=0)
    return out


@pytest.fixture(scope="module")
def ready(release: Path) -> Path:
    out = release.parent / "prepared"
    prepared.prepare_release(release, out, CONTENT, workers=2)
    return out


def source(release: Path, ready: Path, **changes: object) -> NuScenesSource:
    settings = {
        "grid": GRID, "version": "v1.0-mini", "prepared": ready, "classes": CLASSES, "image_size": (45, 80),
        "line_width_m": LINE_M,
    }  # fmt: skip
    return NuScenesSource(release, **(settings | changes))


def test_trainval_would_fit_in_two_gigabytes(release: Path, tmp_path: Path) -> None:
    content = prepared.Content("v1.0-mini", BEVGrid((-50, 50), (-50, 50), 0.5), None)
    index, _ = prepared.prepare_release(release, tmp_path, content, workers=1)
    keyframes = sum(scene["count"] for scene in index.scenes)
    bytes_each = sum(path.stat().st_size for path in index.records.rglob("*.record")) / keyframes
    assert keyframes == 8
    assert 1000 < bytes_each < 2e9 / 34149


@pytest.mark.slow
def test_memory_does_not_grow_while_keyframes_are_read(release: Path, ready: Path) -> None:
    """No keyframe stays in memory; its images alone are 6 × 45×80×3 bytes."""
    data = source(release, ready).split("train")

    def epoch() -> int:
        for number in range(len(data)):
            data[number]
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        epoch()
        after = [epoch() for _ in range(5)]
    finally:
        tracemalloc.stop()
    growth = [later - earlier for earlier, later in pairwise(after)]
    assert min(growth) < 6 * 45 * 80 * 3 / 2  # one that stays adds to every epoch; a cache that fills, to one


def test_the_devkits_own_checks_pass(release: Path) -> None:
    from nuscenes.map_expansion.map_api import NuScenesMap
    from nuscenes.nuscenes import NuScenes
    from nuscenes.tests.assert_download import verify_setup

    found = NuScenes("v1.0-mini", str(release), verbose=False)
    verify_setup(found)
    assert len(found.sample) == 8
    assert NuScenesMap(str(release), "boston-seaport").drivable_area


def test_projection_equals_the_devkits(release: Path) -> None:
    """The devkit goes from the world through each camera's own keyframe; here all goes through the level ego frame."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points

    found = tables.open_tables(release, "v1.0-mini")
    _, keyframes, skipped = tables.read_keyframes(found, release)
    assert not skipped
    compared = 0
    for keyframe in keyframes:
        sample = found.get("sample", keyframe["token"])
        for name, camera in keyframe["cameras"].items():
            _, boxes, k = found.get_sample_data(sample["data"][name], box_vis_level=0)
            cam_from_ego = np.linalg.inv(np.array(camera["ego_from_cam"]))
            own = dict(zip(sample["anns"], keyframe["boxes"], strict=True))
            for box in boxes:
                theirs = view_points(box.center[:, None], k, normalize=True)[:2, 0]
                ours = cam_from_ego @ [*own[box.token]["center_m"], 1]
                ours = np.array(camera["intrinsics"]) @ ours[:3]
                if ours[2] > 1:
                    np.testing.assert_allclose(ours[:2] / ours[2], theirs, atol=0.01)
                    compared += 1
        lidar = found.get("sample_data", sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(str(release / lidar["filename"])).points[:3]
        sensor = found.get("calibrated_sensor", lidar["calibrated_sensor_token"])
        vehicle = found.get("ego_pose", lidar["ego_pose_token"])
        world = _pose(vehicle) @ _pose(sensor) @ np.vstack([points, np.ones(points.shape[1])])
        assert np.abs(world[2]).max() < 1e-4  # the ground
    assert compared > 50


def _pose(record: dict) -> np.ndarray:
    from pyquaternion import Quaternion

    pose = np.eye(4)
    pose[:3, :3] = Quaternion(record["rotation"]).rotation_matrix
    pose[:3, 3] = record["translation"]
    return pose


def expected_labels(number: int, keyframe: tables.Keyframe) -> dict[str, np.ndarray]:
    """Evaluate the world's own functions at the cells' centres."""
    world = SyntheticSource(rig="surround", image_size=SIZE, seed=0).world("train")
    scene = world.scene(number)
    world_from_scene = writer.pose(0.7 * number, (300.0 + writer.APART_M * number, 500.0 + 37.0 * number, 0.0))
    scene_from_ego = np.linalg.inv(world_from_scene) @ np.array(keyframe["world_from_ego"])
    centers = GRID.centers().double().numpy()
    x, y = np.moveaxis(centers @ scene_from_ego[:2, :2].T + scene_from_ego[:2, 3], -1, 0)
    ground = scene.ground(x, y)
    crossing, lane = (np.zeros(GRID.shape, bool) for _ in range(2))
    for i, road in enumerate(scene.roads):
        s, t = ground.st[i]
        open_ = (ground.paintable(i) > 0) & (ground.distances[i] <= 0)
        for marking in road.markings:
            lane |= (np.abs(t - marking.offset_m) <= LINE_M / 2) & marking.is_painted(s) & open_
        for zebra in road.crossings:
            crossing |= ground.crossing(i, zebra) <= 0
    vehicle = np.any([car.covers(x, y) for car in scene.vehicles], axis=0)
    return {"vehicle": vehicle, "drivable": ground.surface() <= 0, "crossing": crossing, "lane": lane}


@pytest.mark.slow
def test_rasters_are_the_worlds_own_labels(release: Path, ready: Path) -> None:
    found = source(release, ready)
    both = {name: [0, 0] for name in CLASSES}
    index = prepared.read_index(release, ready, CONTENT)
    names = [*writer.TRAIN[:3], *writer.VAL[:1]]
    for split in ("train", "val"):
        data = found.split(split)
        for i, number in enumerate(data.numbers):
            scene = names.index(index.scenes[index.scene_of()[number]]["name"])
            keyframe, _ = prepared.read_keyframe(index.records, int(number), "", "exact", GRID.shape)
            for name, plane in expected_labels(scene, keyframe).items():
                target = data[i].targets["segmentation"].value[found.classes.index(name)].numpy()
                both[name][0] += (target & plane).sum()
                both[name][1] += (target | plane).sum()
    for name, (intersection, union) in both.items():
        assert union > 50, name
        assert intersection / union >= 0.99, name


def test_images_agree_with_the_rasters(release: Path, ready: Path) -> None:
    """Ground points of cells, projected by the batch's cameras, are grey as the road where it is drivable."""
    data = source(release, ready).split("train")
    sample = data[0]
    cameras = sample.cameras
    points = torch.cat([GRID.centers().flatten(0, 1), torch.zeros(GRID.rows * GRID.cols, 1)], dim=1)
    pixels, depth = cameras.project(points[None])
    seen = cameras.sees(pixels, depth)[0]
    drivable = sample.targets["segmentation"].value[1].flatten()
    saturation = []
    for camera in range(6):
        u, v = pixels[0, camera].round().long().unbind(-1)
        ok = seen[camera] & (u >= 0) & (v >= 0) & (u < 80) & (v < 45)
        colors = sample.images[camera][:, v.clamp(0, 44), u.clamp(0, 79)].float()
        spread = colors.amax(0) - colors.amin(0)
        saturation.append((spread[ok & drivable].mean(), spread[ok & ~drivable].mean()))
    road, beside = torch.tensor(saturation).nanmean(0)
    assert road < 0.7 * beside


def test_published_rasters_are_larger_and_half_a_cell_off() -> None:
    square = np.array([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0], [2.0, 2.0]])[:, [1, 0]][::-1]
    layers = {name: Layer(*2 * ([[square]] if name == "walkway" else [],)) for name in LAYERS}
    bit = 1 << LAYERS.index("walkway")
    exact, published = (draw(layers, np.eye(4), GRID) & bit > 0 for draw in (draw_exact, draw_published))
    assert (exact.sum(), published.sum()) == (8 * 8, 9 * 9)
    centre = [np.argwhere(plane).mean(0) for plane in (exact, published)]
    np.testing.assert_allclose(centre[1] - centre[0], [0.5, 0.5])


def test_lss_draws_half_a_cell_to_the_other_side() -> None:
    """As in its code, corners numbered from the near right edge are rounded, then filled with their border."""
    import cv2

    from bevreshape.data.sources.nuscenes.maps import rounded_cells

    box = np.array([[2.0, 3.0], [6.0, 3.0], [6.0, 5.0], [2.0, 5.0]])  # ahead, left
    numbered = np.round((box - (-15.75) + 0.25) / 0.5).astype(np.int32)  # row 0 behind, column 0 on the right
    theirs = np.zeros(GRID.shape, np.uint8)
    cv2.fillPoly(theirs, [numbered[:, [1, 0]]], 1)
    ours = np.zeros(GRID.shape, np.uint8)
    cv2.fillPoly(ours, [rounded_cells(box, GRID, from_near=True)], 1)
    np.testing.assert_array_equal(ours, theirs[::-1, ::-1])
    cvt = np.zeros(GRID.shape, np.uint8)
    cv2.fillPoly(cvt, [rounded_cells(box, GRID)], 1)
    apart = np.argwhere(cvt).mean(0) - np.argwhere(ours).mean(0)
    np.testing.assert_allclose(apart, [1.0, 1.0])


def test_maps_are_repaired_for_exact_only() -> None:
    """Draw a bow-tie, as devkit polygons may cross themselves, and a line of no length."""
    from shapely import LineString, Polygon

    bow_tie = Polygon([(-4, -4), (4, 4), (4, -4), (-4, 4), (-4, -4), (-9, -4)])  # with a tail, which has no area
    shapes = {"bow": bow_tie, "point": LineString([(1, 1), (1, 1)])}

    class Table:
        def __getattr__(self, name: str) -> list[dict[str, object]]:
            return {"drivable_area": [{"polygon_tokens": ["bow"]}], "lane_divider": [{"line_token": "point"}]}.get(
                name, []
            )

        def extract_polygon(self, token: str) -> Polygon:
            return shapes[token]

        extract_line = extract_polygon

    layers, lost = read_layers(Table(), 0.5)
    assert lost == ["lane_divider point: nothing is inside"]
    bit = 1 << LAYERS.index("drivable_area")
    exact, published = (draw(layers, np.eye(4), GRID) & bit > 0 for draw in (draw_exact, draw_published))
    assert exact.sum() * 0.25 == pytest.approx(32.0, abs=2.0)  # two triangles of 16 m² each
    assert published.any()
    assert layers["lane_divider"].near(np.eye(4), 10.0) == []


def test_visibility(release: Path, ready: Path) -> None:
    planes = {}
    for word in ("all", "ignore", "erase"):
        sample = source(release, ready, visibility=word, min_visibility=4, visible_only=False).split("train")[0]
        planes[word] = sample.targets["segmentation"].value[0], sample.targets["segmentation"].valid[0]
    everything, known = planes["all"]
    assert known.all()
    seen, known = planes["ignore"]
    assert (seen & ~everything).sum() == 0
    assert (~known).any()
    assert torch.equal(~known, everything & ~seen)
    erased, known = planes["erase"]
    assert known.all()
    assert torch.equal(erased, seen)


@pytest.mark.parametrize(("raster", "shift"), [("exact", 0.5), ("published", 0.0), ("lss", 1.0)])
def test_cells_of_objects_point_to_their_centres(release: Path, ready: Path, raster: str, shift: float) -> None:
    made = source(
        release,
        ready,
        raster=raster,
        visibility="erase",
        min_visibility=2,
        centers=["vehicle"],
        targets=["vehicle"],
    )
    keyframes = made.split("train")
    counted = 0
    for number in range(len(keyframes)):
        sample = keyframes[number]
        keyframe, _ = prepared.read_keyframe(
            keyframes.index.records, int(keyframes.numbers[number]), "", "exact", GRID.shape
        )
        boxes = [box for box in keyframe["boxes"] if box["category"].startswith("vehicle") and box["visibility"] >= 2]
        there = sample.targets["segmentation"].value[0]
        centers = sample.targets["centers"]
        assert torch.equal(centers.inside, sample.targets["segmentation"].value)
        heat, offset = centers.value[0, 0], centers.value[0, 1:]
        assert torch.equal(heat > 0, there & (offset.norm(dim=0) < 9))
        assert not offset[:, ~there].any()
        for row, col in there.nonzero().tolist():
            ahead, left = offset[:, row, col].tolist()
            x, y = 16 - (row + shift - ahead) * 0.5, 16 - (col + shift - left) * 0.5
            nearest = min(math.dist((x, y), box["center_m"][:2]) for box in boxes)
            assert nearest < 1e-4
            assert heat[row, col] == pytest.approx(math.exp(-(ahead**2 + left**2)), abs=1e-6)
            counted += 1
    assert counted > 20


def test_targets_choose_and_order_classes(release: Path, ready: Path) -> None:
    whole, chosen = source(release, ready), source(release, ready, targets=["lane", "vehicle"])
    assert chosen.classes == ("lane", "vehicle")
    assert torch.equal(
        chosen.split("train")[0].targets["segmentation"].value,
        whole.split("train")[0].targets["segmentation"].value[[3, 0]],
    )


def test_truncated_images(release: Path, ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copied = tmp_path / "release"
    shutil.copytree(release, copied)
    data = source(copied, ready).split("train")
    keyframe, _ = prepared.read_keyframe(data.index.records, int(data.numbers[0]), "", "exact", GRID.shape)
    path = copied / keyframe["cameras"]["CAM_BACK"]["file"]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"CAM_BACK.*truncated or damaged.*data.on_corrupt_image=mask"):
        data[0]
    sample = source(copied, ready, on_corrupt_image="mask").split("train")[0]
    assert sample.full_mask.tolist() == [True] * 4 + [False, True]
    assert "CAM_BACK" in capsys.readouterr().err


def test_crop_bottom(release: Path, ready: Path, tmp_path: Path) -> None:
    """The grey level of a row is its index; the visible rows and the intrinsics must agree."""
    copied = tmp_path / "release"
    shutil.copytree(release, copied)
    made = source(copied, ready, crop_bottom=0.2, image_size=(36, 80))
    data = made.split("train")
    keyframe, _ = prepared.read_keyframe(data.index.records, int(data.numbers[0]), "", "exact", GRID.shape)
    camera = keyframe["cameras"]["CAM_FRONT"]
    rows = np.broadcast_to(np.arange(SIZE[0], dtype=np.uint8)[:, None, None] * 2, (*SIZE, 3))
    Image.fromarray(np.ascontiguousarray(rows)).save(copied / camera["file"], quality=100, subsampling=0)
    image, intrinsics, there = made.read_image(camera)
    assert there
    before = np.array(camera["intrinsics"])
    for v in (2, 17, 33):
        shown = float(image[:, v].float().mean()) / 2
        y = (v - intrinsics[1, 2].item()) / intrinsics[1, 1].item()
        assert shown == pytest.approx(y * before[1, 1] + before[1, 2], abs=0.6)
    kept = 72  # of 90 rows
    lowest = float(image[:, -1].float().mean()) / 2
    assert kept - 3 < lowest < kept


def test_images_are_cropped_as_published() -> None:
    """CVT: 1600×900 to 480×270, 46 rows off the top; LSS: 352×198, then 48 rows off the top and 22 off the bottom."""
    from bevreshape.data.image_io import resize_and_crop_intrinsics

    k = torch.tensor([[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]], dtype=torch.float64)
    cvt = resize_and_crop_intrinsics(k, (900, 1600), (224, 480))
    assert cvt[1, 2] == pytest.approx((491.5 + 0.5) * 0.3 - 0.5 - 46)
    kept = round(900 * (1 - 0.11))
    lss = resize_and_crop_intrinsics(k, (kept, 1600), (128, 352))
    assert lss[1, 2] == pytest.approx((491.5 + 0.5) * 0.22 - 0.5 - 48, abs=0.3)


def test_official_and_geographic_splits() -> None:
    rng = np.random.default_rng(0)
    scenes = [
        tables.SceneRecord(name=f"s{i}", location=f"city{i % 2}", description="", split=("train", "val")[i % 5 == 0],
                           first=20 * i, count=20)
        for i in range(40)
    ]  # fmt: skip
    index = prepared.Index(Path(), scenes, rng.uniform(0, 2000, (800, 2)))
    official = splits.split_keyframes(index, "official", GRID)
    assert {scenes[i // 20]["split"] for i in official["train"]} == {"train"}
    assert np.array_equal(official["val"], official["test"])
    apart = splits.split_keyframes(index, "geographic", GRID)
    used = np.concatenate(list(apart.values()))
    assert len(set(used)) == len(used) > 600
    corner_m = math.hypot(16, 16)
    city = index.scene_of() % 2
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        a, b = apart[one], apart[other]
        distance = np.linalg.norm(index.places[a][:, None] - index.places[b][None], axis=-1)
        assert distance[city[a][:, None] == city[b][None]].min() >= 2 * corner_m


def test_preparation_resumes_and_reports_what_it_left_out(release: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "RUN", 2)
    copied, out = tmp_path / "release", tmp_path / "prepared"
    shutil.copytree(release, copied)
    gone = next((copied / "samples" / "CAM_FRONT").glob("scene-0061*"))
    gone.unlink()
    index, skipped = prepared.prepare_release(copied, out, CONTENT, workers=1)
    assert len(skipped) == 1
    assert gone.name in skipped[0]
    assert [scene["count"] for scene in index.scenes] == [1, 2, 2, 2]
    before = {path: path.stat().st_mtime_ns for path in index.records.rglob("*.record")}
    lost = sorted(before)[1]
    lost.unlink()
    again, _ = prepared.prepare_release(copied, out, CONTENT, workers=1)
    after = {path: path.stat().st_mtime_ns for path in again.records.rglob("*.record")}
    assert after.keys() == before.keys()
    assert [path for path in before if before[path] != after[path]] == [lost]
    shutil.copy(release / "samples" / "CAM_FRONT" / gone.name, gone)
    # other keyframes: no old record is reused
    whole, skipped = prepared.prepare_release(copied, out, CONTENT, workers=1)
    assert not skipped
    assert whole.records != index.records
    assert len(source(copied, out).split("train")) == 6


def test_a_full_disk_keeps_what_is_there(release: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "RUN", 2)
    real, calls = os.replace, []

    def full(part: Path, path: Path) -> None:
        calls.append(path)
        if len(calls) == 6:  # after meta.json and four records
            raise OSError(errno.ENOSPC, "No space left on device")
        real(part, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(
            InputError, match=r"the disk is full, about \d+ MB more .* 4 records that are left; .*set out to"
        ):
            prepared.prepare_release(release, tmp_path, CONTENT, workers=1)
    with pytest.raises(InputError, match="is not, or not fully, prepared for these cells"):
        source(release, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.record")}
    assert len(kept) == 4
    prepared.prepare_release(release, tmp_path, CONTENT, workers=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(source(release, tmp_path).split("train")) == 6


@pytest.mark.slow
def test_two_preparations_at_once(release: Path, ready: Path, tmp_path: Path) -> None:
    """The second waits for the first, and both leave the same."""
    tool = Path(writer.__file__).with_name("prepare_nuscenes.py")
    grid = [
        f"forward_m={list(GRID.forward_m)}",
        f"left_m={list(GRID.left_m)}",
        f"cell_m={GRID.cell_m}",
        f"line_width_m={LINE_M}",
    ]
    command = [sys.executable, str(tool), f"root={release}", "version=v1.0-mini", f"out={tmp_path}", "workers=1", *grid]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert "6 train, 2 val; " in out
    for split in ("train", "val"):
        one, other = (source(release, folder).split(split) for folder in (ready, tmp_path))
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.targets["segmentation"].value, b.targets["segmentation"].value)


def test_references_to_missing_records(release: Path, tmp_path: Path) -> None:
    copied = tmp_path / "release"
    shutil.copytree(release, copied)

    def spoil(table: str, key: str, number: int) -> None:
        path = copied / "v1.0-mini" / f"{table}.json"
        records = json.loads(path.read_text())
        records[number][key] = "nowhere"
        path.write_text(json.dumps(records))

    images = json.loads((copied / "v1.0-mini" / "sample_data.json").read_text())
    image = next(number for number, record in enumerate(images) if "CAM_BACK/" in record["filename"])
    spoil("sample_data", "ego_pose_token", image)
    _, skipped = prepared.prepare_release(copied, tmp_path / "out", CONTENT, workers=1)
    assert len(skipped) == 1
    assert "a table refers to 'nowhere', which is not there" in skipped[0]
    spoil("scene", "log_token", 0)
    with pytest.raises(InputError, match=r"v1.0-mini/log.json: scene-\d+ refers to nowhere, which is not there"):
        prepared.prepare_release(copied, tmp_path / "out", CONTENT, workers=1)


@pytest.mark.parametrize("content", ["[1, 2]", "{}", "7", "[" * 50_000, "[{", '[{"token": []}]', '[{"name": "a"}]'])
def test_a_damaged_table_is_a_one_line_error(release: Path, tmp_path: Path, content: str) -> None:
    copied = tmp_path / "release"
    (copied / "v1.0-mini").mkdir(parents=True)
    for path in (release / "v1.0-mini").iterdir():
        (copied / "v1.0-mini" / path.name).symlink_to(path)
    with pytest.raises(InputError, match=r"refers to missing records .*map mask"):
        tables.open_tables(copied, "v1.0-mini")
    (copied / "maps").symlink_to(release / "maps")
    table = copied / "v1.0-mini" / "sample.json"
    table.unlink()
    table.write_text(content)
    with pytest.raises(InputError, match="a table is damaged or refers to missing records"):
        tables.open_tables(copied, "v1.0-mini")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("forward_m=5", "forward_m=5 must be a list of 2 numbers from -10000 to 10000"),
        ("left_m=[a,b]", "left_m=['a', 'b'] must be a list of 2 numbers"),
        ("workers=abc", "workers='abc' must be an integer from 1 to 1024"),
        ("root", "root is not KEY=VALUE; write one of root="),
        ("line_width_m=0", "line_width_m=0 must be a number from 0.001"),
        ("rot=x", "rot is no option; did you mean root"),
    ],
)
def test_settings_of_the_tool_that_are_refused(argument: str, says: str) -> None:
    tool = Path(writer.__file__).with_name("prepare_nuscenes.py")
    ended = subprocess.run([sys.executable, str(tool), argument], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_missing_files_are_named(release: Path, ready: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"v1.0-trainval: there is no such release; there are v1.0-mini: set version="):
        tables.open_tables(release, "v1.0-trainval")
    with pytest.raises(InputError, match="holds no release at all"):
        tables.open_tables(tmp_path, "v1.0-mini")
    copied = tmp_path / "release"
    shutil.copytree(release, copied)
    (copied / "maps" / "expansion" / "boston-seaport.json").unlink()
    with pytest.raises(InputError, match=r"boston-seaport.json: the map expansion is missing; download .*unpack it in"):
        prepared.prepare_release(copied, tmp_path / "out", CONTENT, workers=1)
    (copied / "v1.0-mini" / "ego_pose.json").unlink()
    with pytest.raises(InputError, match=r"ego_pose.json: this table is missing"):
        tables.open_tables(copied, "v1.0-mini")
    finer = BEVGrid((-16.0, 16.0), (-16.0, 16.0), 0.25)
    with pytest.raises(
        InputError, match=r"prepared for these cells.*python tools/prepare_nuscenes.py root=.*cell_m=0.25"
    ):
        source(release, ready, grid=finer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "random"}, "split='random' must be official or geographic"),
        ({"raster": "exat"}, "did you mean exact"),
        ({"visibility": "hide"}, "visibility='hide' must be all, ignore or erase"),
        ({"cameras": ["CAM_FRONT", "CAM_FRONT"]}, "no camera twice"),
        ({"cameras": ["CAM_TOP"]}, r"cameras=\['CAM_TOP'\] must be .* out of CAM_FRONT_LEFT"),
        ({"crop_bottom": 0.999}, "crop_bottom=0.999 must be a number from 0 to 0.9"),
        ({"raster": "lss"}, "data.raster=lss draws only boxes"),
        ({"line_width_m": -1}, "line_width_m=-1 must be a number from 0.001"),
        ({"min_visibility": 5}, "min_visibility=5 must be an integer from 1 to 4"),
        ({"classes": {}}, "classes={} must be a mapping, not empty"),
        ({"centers": ["vehicles"]}, "data.centers: 'vehicles' is not a class here; did you mean vehicle"),
        ({"centers": ["lane"]}, "'lane' is a class of the map"),
        ({"targets": ["vehicles"]}, "no class 'vehicles' in data.classes; did you mean vehicle"),
        ({"classes": {"a": {"boxes": []}}}, "data.classes.a: define it by"),
        ({"classes": {"a": {"map": ["street"]}}}, "no layer 'street'"),
        ({"classes": {"a": {"box": ["vehicle"]}}}, "classes.a.box is unknown; did you mean boxes"),
    ],
)
def test_settings_that_are_refused(release: Path, ready: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source(release, ready, **change)


@pytest.mark.slow
def test_prepare_train_evaluate(release: Path, tmp_path: Path) -> None:
    """Run prepare, train and evaluate in turn."""
    grid = ["forward_m=[-16,16]", "left_m=[-16,16]", "cell_m=1"]
    tool = Path(writer.__file__).with_name("prepare_nuscenes.py")
    made = subprocess.run(
        [sys.executable, str(tool), f"root={release}", "version=v1.0-mini", f"out={tmp_path / 'prepared'}", *grid],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "6 train, 2 val; " in made.stdout
    data = [
        "data=nuscenes", f"data.root={release}", "data.version=v1.0-mini", f"data.prepared={tmp_path / 'prepared'}",
        *(f"data.grid.{bound}" for bound in grid), "data.image_size=[48,80]", "loader.batch_size=2",
        "loader.num_workers=1",
    ]  # fmt: skip
    tiny = [
        "encoder.channels=8", "head.segmentation.channels=8", "trainer.max_steps=2", "trainer.val_check_interval=2",
        "logger=none",
        "reshaper=ipm", "trainer.accelerator=cpu", "log_images.num_samples=1", "data.centers=[vehicle]",
        "head=[conv,centers]",
        "objective=[bce_dice,centers]", "objective.centers.offset=0.1",
    ]  # fmt: skip
    run = tmp_path / "run"
    ended = finish(start("train", *data, *tiny, f"hydra.run.dir={run}", cwd=tmp_path))
    assert ended.code == 0, ended.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert math.isfinite(metrics["test/iou/drivable_area"])
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert list(load_model(str(checkpoint))[0].heads) == ["segmentation", "centers"]
    out = f"hydra.run.dir={tmp_path / 'evaluation'}"
    more = [
        "data.visible_only=false",
        "data.visibility=ignore",
        "drop_each_camera=true",
        "trainer.accelerator=cpu",
        out,
    ]
    ended = finish(start("evaluate", f"checkpoint={checkpoint}", *more, cwd=tmp_path))
    assert ended.code == 0, ended.err
    said = "32×32 cells of 1 m, raster exact, visibility ignore below 2, all cells, official split"
    assert said in " ".join(ended.out.split())
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert found["test/iou_0.5/drivable_area/all"] == pytest.approx(found["test/iou/drivable_area"])
    assert found["test/iou_0.5/drivable_area/rain"] is None  # in no scene's description

    assert found["test/iou_without/drivable_area/CAM_BACK"] is not None


def test_rain_is_matched_as_a_whole_word() -> None:
    assert conditions_of("Wait for train, night") == ("night",)
    assert conditions_of("Parked cars after rain") == ("day", "rain")


def test_a_published_raster_is_not_mirrored(release: Path, ready: Path) -> None:
    data = {
        "_target_": "bevreshape.data.sources.nuscenes.NuScenesSource", "root": str(release), "version": "v1.0-mini",
        "grid": {
            "_target_": "bevreshape.geometry.BEVGrid", "forward_m": list(GRID.forward_m), "left_m": list(GRID.left_m),
            "cell_m": GRID.cell_m,
        },
        "prepared": str(ready), "classes": CLASSES, "image_size": [45, 80], "line_width_m": LINE_M,
        "raster": "published",
    }  # fmt: skip
    augment = {"_target_": "bevreshape.data.augment.Augment", "flip_p": 0.5}
    with pytest.raises(InputError, match=r"data.raster=published draws half a cell to one side.* set augment.flip_p=0"):
        build_data({"data": data, "loader": {"batch_size": 1, "num_workers": 0}, "augment": augment, "seed": 0})


def test_iou_by_condition() -> None:
    rng = np.random.default_rng(0)
    p, there, valid = rng.random((6, 2, 8, 9)), rng.random((6, 2, 8, 9)) < 0.3, rng.random((6, 2, 8, 9)) < 0.8
    said_of = [conditions_of(said) for said in ("Night", "Parked", "Rain, night", "rain", "x", "night")]
    metric = ConditionIoU(("a", "b"))
    for part in (slice(0, 2), slice(2, 6)):
        logits, target, known = (torch.from_numpy(x[part]) for x in (p.astype(np.float32), there, valid))
        meta = [Meta("", 0, conditions=found) for found in said_of[part]]
        metric.update(outputs_of(logits.logit()), replace(labelled(target, known), meta=meta))
    found = metric.compute()
    chosen = {"all": [0, 1, 2, 3, 4, 5], "day": [1, 3, 4], "night": [0, 2, 5], "rain": [2, 3]}
    for threshold in (0.4, 0.5):
        for k, name in enumerate("ab"):
            for word, keyframes in chosen.items():
                said = (p[keyframes, k] >= threshold) & valid[keyframes, k]
                true = there[keyframes, k] & valid[keyframes, k]
                expected = (said & true).sum() / (said | true).sum()
                assert float(found[f"iou_{threshold}/{name}/{word}"]) == pytest.approx(expected)


def test_an_object_store_gives_the_samples_of_the_release(release: Path, ready: Path, memory_store: Upload) -> None:
    local, remote = source(release, ready), source(memory_store(release), memory_store(ready))
    remote.prepare(("train", "val"))
    assert_same_samples(local.split("train"), remote.split("train"))
    with pytest.raises(InputError, match=r"^memory://nowhere/.*index\.json: there is no such file.*prepare_nuscenes"):
        source(release, "memory://nowhere")  # type: ignore[arg-type]
