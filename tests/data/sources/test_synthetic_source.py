"""Test the synthetic world as a source: reproducible scenes, and a cache that survives damaged files."""

import errno
import math
import os
import re
import runpy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bevreshape.data import storage
from bevreshape.data.batch import collate
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.data.sources.synthetic.rig import RIGS, Spread, nominal
from bevreshape.data.sources.synthetic.source import make_records
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels

GRID = BEVGrid((4.0, 20.0), (-8.0, 8.0), 1.0)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RUN", 2)


def source(root: Path, **changes: object) -> SyntheticSource:
    settings: dict[str, object] = {
        "grid": GRID, "image_size": (32, 64), "scenes": {"train": 5, "val": 1, "test": 1}, "root": root,
        "generation_workers": 1,
    }  # fmt: skip
    return SyntheticSource(**(settings | changes))  # type: ignore[arg-type]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.record"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "RUN", 2)
        source(root).prepare()
    return root


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    for name, content in files(made).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_samples_fulfil_the_contract(made: Path) -> None:
    world = source(made)
    train = world.split("train")
    assert len(train) == 5
    sample = train[3]
    assert sample.images.shape == (1, 3, 32, 64)
    assert sample.images.dtype == torch.uint8
    assert sample.targets["segmentation"].value.shape == sample.targets["segmentation"].valid.shape == (4, *GRID.shape)
    assert sample.targets["segmentation"].value.dtype == sample.targets["segmentation"].valid.dtype == torch.bool
    assert sample.intrinsics.shape == (1, 3, 3)
    assert sample.ego_from_cam.dtype == torch.float32
    assert sample.full_mask.tolist() == [True]
    assert sample.meta.index == 3
    assert sample.meta.name == "train-000003"
    batch = collate([sample])
    assert world.make_targets(batch) is batch
    with pytest.raises(IndexError):
        train[5]


def test_records_equal_the_world(made: Path) -> None:
    """Labels and poses are exact; images agree within JPEG's error."""
    world = source(made).world("train")
    sample = source(made).split("train")[4]
    scene, poses = world.scene(4), world.poses(4)
    drawn = world.images(4, scene, poses)[0].transpose(2, 0, 1).astype(float)
    assert np.abs(drawn - sample.images[0].numpy()).mean() < 3
    np.testing.assert_array_equal(sample.ego_from_cam.numpy(), poses)
    cameras = Cameras(sample.intrinsics[None], sample.ego_from_cam[None], (32, 64))
    seen = ground_pixels(cameras, GRID)[1][0, 0]
    assert torch.equal(sample.targets["segmentation"].valid, seen.expand(4, -1, -1))
    assert 0 < seen.sum() < seen.numel()
    assert sample.targets["segmentation"].value[0].any()


def test_scenes_are_the_same_on_any_number_of_processes(made: Path, tmp_path: Path) -> None:
    source(tmp_path, generation_workers=2, scenes={"train": 4, "val": 1, "test": 1}).prepare()
    theirs, ours = files(tmp_path), files(made)
    assert len(theirs) == 6
    for name, content in theirs.items():
        assert content == ours[name]


def test_scenes_do_not_depend_on_the_order_of_making(made: Path) -> None:
    world = source(made).world("train")
    assert make_records(world, 0, 4)[3] == make_records(world, 3, 4)[0]


def test_splits_and_seeds_are_different_scenes(made: Path) -> None:
    worlds = [source(made).world("train"), source(made).world("val"), source(made, seed=1).world("train")]
    scenes = [world.scene(0) for world in worlds]
    assert scenes[0] != scenes[1] != scenes[2] != scenes[0]


def test_more_scenes_keep_the_cached_ones(copied: Path) -> None:
    before = files(copied)
    source(copied, scenes={"train": 7, "val": 1, "test": 1}).prepare()
    after = files(copied)
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()
    assert len(source(copied, scenes={"train": 7, "val": 1, "test": 1}).split("train")) == 7
    source(copied).prepare()
    assert files(copied) == after


def count_makes(monkeypatch: pytest.MonkeyPatch, limit: int = 99) -> list[int]:
    """Record first scenes of the generated runs; the process is interrupted after ``limit``."""
    from bevreshape.data.sources.synthetic import source as module

    made: list[int] = []

    def make(world: object, first: int, stop: int) -> list[bytes]:
        if len(made) == limit:
            raise KeyboardInterrupt
        made.append(first)
        return make_records(world, first, stop)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "make_records", make)
    return made


def test_cached_scenes_are_not_generated_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = count_makes(monkeypatch)
    source(copied).prepare()
    assert made == []
    assert capsys.readouterr() == ("", "")


def test_interrupted_generation_resumes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_makes(monkeypatch, limit=2)
    with pytest.raises(KeyboardInterrupt):
        source(tmp_path).prepare()
    assert len(files(tmp_path)) == 4
    rest = count_makes(monkeypatch)
    source(tmp_path).prepare()
    assert rest == [4, 0, 0]  # the last run of train, val, test
    assert files(tmp_path) == files(made)


def test_records_are_in_folders_of_limited_size(tmp_path: Path) -> None:
    storage.prepare(tmp_path, {}, 2001, lambda first, stop: [bytes([i % 256]) for i in range(first, stop)], 1)
    sizes = {path.name: len(list(path.iterdir())) for path in tmp_path.iterdir() if path.is_dir()}
    assert sizes == {"000": 1000, "001": 1000, "002": 1}
    assert [storage.read_record(tmp_path, i, "")[0] for i in (0, 999, 1000, 2000)] == [0, 231, 232, 208]


def test_records_of_an_older_version_are_refused(made: Path, copied: Path) -> None:
    folder = source(copied).split("train").folder
    for path in list(folder.rglob("*.record")):
        path.rename(folder / path.name)
    with pytest.raises(InputError, match=rf"older version stored records.*delete {re.escape(str(folder))}, and"):
        source(copied).prepare()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "longer"])
def test_a_file_of_the_wrong_length_is_generated_again(
    damage: str, made: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(copied).split("train").folder / storage.record_name(2)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut off": content[:-7], "longer": content + b"\0"}[damage])
    with pytest.raises(InputError, match=rf"{path.name}.*generates it again"):
        source(copied).split("train")[2]
    left_behind = path.with_name(".000001.record.4711.part")
    left_behind.write_bytes(b"half")
    makes = count_makes(monkeypatch)
    source(copied).prepare()
    assert makes == [2]
    assert files(copied) == files(made)
    assert not left_behind.exists()


def test_a_damaged_record_is_refused(copied: Path) -> None:
    train = source(copied).split("train")
    path = train.folder / storage.record_name(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"000002\.record.*damaged.*delete the file"):
        train[2]
    assert train[3].meta.index == 3


def test_a_full_disk_is_named_and_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def full(part: Path, path: Path) -> None:
        calls.append(path)
        if len(calls) == 4:  # after meta.json and two records
            raise OSError(errno.ENOSPC, "No space left on device")
        real(part, path)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"disk is full.*MB more.*3 records.*data\.root"):
        source(tmp_path).prepare()
    assert len(files(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.part"))


def test_a_root_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written.*data\.root"):
        source(tmp_path / "file").prepare()


def test_concurrent_preparations_share_the_work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makes = count_makes(monkeypatch)
    threads = [threading.Thread(target=source(tmp_path).prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(makes) == 5
    assert files(tmp_path) == files(made)


def test_the_folder_changes_with_the_content_and_only_with_it(tmp_path: Path) -> None:
    def folder(**changes: object) -> Path:
        return source(tmp_path, **changes).split("train").folder

    same: list[dict[str, object]] = [
        {},
        {"calibration": "nominal"},
        {"noise": {"yaw_deg": 9.0}},
        {"scenes": {"train": 9, "val": 1, "test": 1}},
    ]
    assert len({folder(**changes) for changes in same}) == 1
    other: list[dict[str, object]] = [
        {}, {"seed": 1}, {"rig": "surround"}, {"image_size": (32, 80)}, {"jitter": {"roll_deg": 0.1}},
        {"lane_label_m": 0.5}, {"grid": BEVGrid((4.0, 20.0), (-8.0, 8.0), 0.5)},
    ]  # fmt: skip
    assert len({folder(**changes) for changes in other}) == len(other)


def angles(pose: np.ndarray) -> tuple[float, float, float]:
    """Return heading to the left, dip and roll of a camera in degrees, from the directions of its axes."""
    right, _, ahead = pose[:3, 0], pose[:3, 1], pose[:3, 2]
    heading = math.atan2(ahead[1], ahead[0])
    level_right = np.array([math.sin(heading), -math.cos(heading), 0])
    level_down = np.cross(ahead, level_right)
    return (
        math.degrees(heading),
        math.degrees(-math.asin(ahead[2])),
        math.degrees(math.atan2(right @ level_down, right @ level_right)),
    )


@pytest.mark.parametrize("rig", sorted(RIGS))
def test_cameras_are_mounted_as_in_the_table(rig: str) -> None:
    intrinsics, poses = nominal(rig, (90, 160))
    for mounting, k, pose in zip(RIGS[rig].values(), intrinsics, poses, strict=True):
        heading, dip, roll = angles(pose)
        assert math.remainder(heading - mounting.yaw_deg, 360) == pytest.approx(0, abs=1e-9)
        assert dip == pytest.approx(mounting.pitch_deg)
        assert roll == pytest.approx(0, abs=1e-9)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        assert 2 * math.degrees(math.atan(80 / k[0, 0])) == pytest.approx(mounting.fov_deg)


def test_jitter_has_its_standard_deviations() -> None:
    _, mounted = nominal("front", (32, 64))
    spread = Spread(yaw_deg=2.0, pitch_deg=0.7, roll_deg=1.2, height_m=0.05)
    rng = np.random.default_rng(3)
    drawn = [spread.draw(mounted, rng)[0] for _ in range(3000)]
    facts = np.array([(*angles(pose), pose[2, 3]) for pose in drawn])
    np.testing.assert_allclose(facts.std(0), [2.0, 0.7, 1.2, 0.05], rtol=0.06)
    np.testing.assert_allclose(facts.mean(0), [0, 5, 0, 1.65], atol=0.15)


def test_jitter_moves_the_image_and_the_cameras_not_the_scene(made: Path, tmp_path: Path) -> None:
    shaken = source(tmp_path, jitter={"yaw_deg": 3.0, "height_m": 0.1})
    still = source(made)
    worlds = [which.world("train") for which in (shaken, still)]
    assert worlds[0].scene(2) == worlds[1].scene(2)
    poses = np.array([worlds[0].poses(index)[0] for index in range(200)])
    assert np.std([angles(pose)[0] for pose in poses]) == pytest.approx(3.0, rel=0.15)
    assert poses[:, 2, 3].std() == pytest.approx(0.1, rel=0.15)
    assert np.ptp(poses[:, :2, 3], axis=0).tolist() == [0, 0]


def test_given_calibration_may_differ_from_the_images(tmp_path: Path) -> None:
    given = {}
    for calibration in ("exact", "nominal", "noisy"):
        world = source(tmp_path, calibration=calibration, jitter={"yaw_deg": 3.0}, noise={"pitch_deg": 1.0})
        world.prepare()
        given[calibration] = world.split("train")[1]
    assert len({folder for folder in tmp_path.iterdir() if folder.name.startswith("train")}) == 1
    parts = [
        (s.images, s.targets["segmentation"].value, s.targets["segmentation"].valid, s.intrinsics)
        for s in given.values()
    ]
    for exact, nominal_, noisy in zip(*parts, strict=True):
        assert torch.equal(exact, nominal_)
        assert torch.equal(exact, noisy)
    poses = {key: sample.ego_from_cam[0].double().numpy() for key, sample in given.items()}
    np.testing.assert_array_equal(poses["nominal"], nominal("front", (32, 64))[1][0].astype(np.float32))
    assert abs(angles(poses["exact"])[0]) > 0.1
    lie = np.array(angles(poses["noisy"])) - angles(poses["exact"])
    assert abs(lie[1]) > 0.01
    assert abs(lie[0]) < 0.05
    again = source(tmp_path, calibration="noisy", jitter={"yaw_deg": 3.0}, noise={"pitch_deg": 1.0}).split("train")[1]
    assert torch.equal(again.ego_from_cam, given["noisy"].ego_from_cam)


def test_surround_observes_all_directions(tmp_path: Path) -> None:
    grid = BEVGrid((-16.0, 16.0), (-16.0, 16.0), 1.0)
    world = source(tmp_path, rig="surround", grid=grid, scenes={"train": 1, "val": 1, "test": 1})
    world.prepare()
    sample = world.split("train")[0]
    assert sample.images.shape == (6, 3, 32, 64)
    assert len(world.camera_names) == 6
    valid = sample.targets["segmentation"].valid[0]
    far = torch.tensor(np.hypot(*np.meshgrid(np.arange(32) - 15.5, np.arange(32) - 15.5)) > 10)
    assert valid[far].float().mean() > 0.97
    cameras = Cameras(sample.intrinsics[None], sample.ego_from_cam[None], (32, 64))
    for number, mounting in enumerate(RIGS["surround"].values()):
        heading = math.radians(mounting.yaw_deg)
        point = [mounting.x + 12 * math.cos(heading), mounting.y + 12 * math.sin(heading), 1.0]
        pixels, depth = cameras.project(torch.tensor([[point]]))
        assert cameras.sees(pixels, depth)[0, number, 0]
        assert pixels[0, number, 0, 0].item() == pytest.approx(31.5, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rig": "frnt"}, r"rig.*'frnt'.*did you mean front"),
        ({"calibration": "exakt"}, r"calibration.*'exakt'.*did you mean exact"),
        ({"jitter": {"yaw_deg": -1.0}}, r"jitter\.yaw_deg=-1\.0 must be a number from 0"),
        ({"jitter": {"yaw": 1.0}}, r"jitter\.yaw is unknown; did you mean yaw_deg"),
        ({"noise": {"height_m": "much"}}, r"noise\.height_m='much'"),
        ({"scenes": {"train": 0, "val": 1, "test": 1}}, r"scenes\.train=0 must be an integer from 1"),
        ({"scenes": {"train": 4, "validation": 1, "test": 1}}, r"scenes.*val"),
        ({"image_size": (8, 256)}, r"image_size=\[8, 256\] must be a list of 2 integers from 16"),
        ({"image_size": (128,)}, r"image_size=\[128\] must be a list of 2"),
        ({"seed": -1}, r"seed=-1"),
        ({"generation_workers": 0}, r"generation_workers=0"),
        ({"lane_label_m": 0}, r"lane_label_m=0"),
        (
            {"grid": BEVGrid((-20.0, 0.0), (-8.0, 8.0), 1.0)},
            r"no camera.*'front'.*forward_m=\(-20\.0, 0\.0\).*surround",
        ),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        source(tmp_path, **values)


def test_an_unknown_split_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match=r"split 'vall'.*did you mean val"):
        source(made).split("vall")


def test_the_measuring_command_prints_its_rates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["synthetic", "--scenes", "3", "--workers", "1"])
    # a test before may have imported it, at which runpy warns
    monkeypatch.delitem(sys.modules, "bevreshape.data.sources.synthetic.__main__", raising=False)
    threads = torch.get_num_threads()
    try:
        runpy.run_module("bevreshape.data.sources.synthetic", run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert re.search(r"3 images of 128×256.*generated at \d+ images/s.*ms a scene", capsys.readouterr().out, re.DOTALL)
