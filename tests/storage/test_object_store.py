"""Test paths in object stores against the same files on a disk, and their cache."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import fsspec
import pytest
from commands import TINY
from object_stores import Upload, assert_same_samples
from users import unreadable

from bevreshape.config.options import DataRoot, read_value
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.storage import object_store
from bevreshape.storage.files import read_json, read_text, visible
from bevreshape.storage.object_store import data_path
from bevreshape.storage.store_path import StorePath, unchanging


@pytest.fixture(params=["memory_store", "s3_store"])
def store(request: pytest.FixtureRequest) -> Upload:
    """Both stores."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    (root / "images" / "left").mkdir(parents=True)
    (root / "calibration.json").write_text('{"version": 1}')
    for name in ("b.png", "a.PNG", "c.v2.png", "._a.png", "notes.txt"):
        (root / "images" / name).write_bytes(name.encode())
    (root / "images" / "left" / "d.png").write_bytes(b"d")
    return root


def at(address: str) -> StorePath:
    path = data_path(address)
    assert isinstance(path, StorePath)
    return path


def cached() -> list[Path]:
    return [path for path in Path(os.environ["BEVRESHAPE_CACHE"]).rglob("*") if path.is_file()]


def test_paths_behave_as_on_a_disk(store: Upload, folder: Path) -> None:
    root = at(store(folder))
    for place in ("images", "images/b.png", "images/left", "calibration.json", "none", "none/x", "images/b.png/x"):
        local, remote = folder / place, root / place
        for found in ("exists", "is_dir", "is_file"):
            assert getattr(remote, found)() == getattr(local, found)(), (place, found)
        assert (remote.name, remote.stem, remote.suffix) == (local.name, local.stem, local.suffix)
        assert str(remote.parent) == str(root / place).rpartition("/")[0]
    for pattern in ("*", "*.png", "*.txt"):
        local_names = [path.name for path in visible(folder / "images", pattern)]
        assert [path.name for path in visible(root / "images", pattern)] == local_names
    assert read_json(root / "calibration.json") == {"version": 1}
    assert (root / "images/left/d.png").read_bytes() == b"d"
    assert root.exists()
    assert root.is_dir()
    for place, message in (("none.txt", "there is no such file"), ("images", "it is a folder, not a file")):
        with pytest.raises(InputError, match=rf"^{root}/{place}: .*{message}"):
            read_text(root / place)
    with pytest.raises(InputError, match="the folder cannot be read"):
        visible(root / "none")


def test_a_file_is_fetched_once(store: Upload, folder: Path) -> None:
    address = store(folder)
    path = unchanging(at(address) / "images/b.png")
    assert path.read_bytes() == b"b.png"
    assert [file.read_bytes() for file in cached()] == [b"b.png"]
    fsspec.filesystem(address.partition("://")[0]).rm(f"{address}/images/b.png")
    assert unchanging(at(address) / "images/b.png").read_bytes() == b"b.png"
    with pytest.raises(FileNotFoundError):
        (at(address) / "images/b.png").read_bytes()


def test_a_changed_file_is_fetched_again(store: Upload, folder: Path) -> None:
    address = store(folder)
    assert read_json(at(address) / "calibration.json") == {"version": 1}
    fsspec.filesystem(address.partition("://")[0]).pipe_file(f"{address}/calibration.json", b'{"version": 2}')
    assert read_json(at(address) / "calibration.json") == {"version": 2}


def test_an_empty_file_in_the_cache_is_fetched_again(memory_store: Upload, folder: Path) -> None:
    path = at(memory_store(folder)) / "images/b.png"
    assert path.read_bytes() == b"b.png"
    cached()[0].write_bytes(b"")
    assert path.read_bytes() == b"b.png"
    assert cached()[0].read_bytes() == b"b.png"


def test_a_file_gets_its_name_when_it_is_complete(
    memory_store: Upload, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[bytes, bool]] = []
    real = os.replace

    def replace(part: Path, path: Path) -> None:
        moved.append((Path(part).read_bytes(), Path(path).exists()))
        real(part, path)

    monkeypatch.setattr(os, "replace", replace)
    (at(memory_store(folder)) / "images/b.png").read_bytes()
    assert set(moved) == {(b"b.png", False)}


def test_processes_share_the_cache(memory_store: Upload, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "large").write_bytes(content)
    path = at(memory_store(tmp_path / "mine")) / "large"
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = int(any(path.read_bytes() != content for _ in range(3)))
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [file.read_bytes() == content for file in cached()] == [True]


def test_a_full_disk_is_read_past(
    memory_store: Upload, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 951, 49))
    object_store._warn_once.cache_clear()
    root = at(memory_store(folder))
    for name in ("b.png", "c.v2.png", "b.png"):
        assert (root / "images" / name).read_bytes() == name.encode()
    assert cached() == []
    assert len(caplog.records) == 1
    assert "BEVRESHAPE_CACHE" in caplog.text


def test_partial_files_of_killed_processes_are_removed(memory_store: Upload, folder: Path) -> None:
    address = memory_store(folder)
    at(address)
    part = Path(os.environ["BEVRESHAPE_CACHE"]) / "parts" / ".x.1.part"
    part.write_bytes(b"half")
    at(address)
    assert not part.exists()


def test_users_share_a_cache(
    memory_store: Upload, folder: Path, public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one of them fetches a file, and where files are readable by their user alone."""
    monkeypatch.setenv("BEVRESHAPE_CACHE", str(public_folder))
    address = memory_store(folder)
    assert (at(address) / "calibration.json").read_bytes() == b'{"version": 1}'
    (kept,) = cached()
    part = public_folder / "parts" / ".x.1.part"
    part.write_bytes(b"half")
    for theirs in (part, kept):
        with unreadable(theirs):
            assert (at(address) / "calibration.json").read_bytes() == b'{"version": 1}'


def test_a_cache_that_cannot_be_written_is_named(memory_store: Upload, folder: Path, monkeypatch) -> None:
    address = memory_store(folder)
    monkeypatch.setenv("BEVRESHAPE_CACHE", str(folder / "calibration.json"))
    with pytest.raises(InputError, match=r"calibration\.json: .*cannot be written.*BEVRESHAPE_CACHE"):
        data_path(address)


def test_a_missing_bucket_and_missing_credentials_are_named(
    s3_store: Upload, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = s3_store(folder)
    with pytest.raises(InputError, match=r"^s3://no-such-bucket/mine/x: there is no such file"):
        read_text(at("s3://no-such-bucket/mine") / "x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(InputError, match=rf"^{address}: the store cannot be read .*credentials"):
        at(address).is_dir()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(InputError, match=r"^s3://b/x: .*Install s3fs.*pip install 'bevreshape\[s3\]'"):
        data_path("s3://b/x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s4://bucket/x", r"no store that fsspec knows; did you mean s3"),
        ("s3://", r"names nothing in the store; write s3://bucket/mine"),
        ("simplecache::s3://bucket/x", r"is a chain of stores; name one of them"),
        ("s3:/bucket/x", r"is an address, not a path on this machine"),
        ("me@host:/x", r"is an address, not a path on this machine"),
        ("", r"is not a path"),
    ],
)
def test_other_addresses_are_refused(value: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.root=.*{message}"):
        read_value("data.root", DataRoot, value)


def test_addresses_of_this_machine_are_its_paths(tmp_path: Path) -> None:
    assert read_value("data.root", DataRoot, "s3://bucket/x") == "s3://bucket/x"
    assert data_path(f"file://{tmp_path}/x") == tmp_path / "x"
    assert data_path(str(tmp_path)) == data_path(tmp_path) == tmp_path


def test_workers_of_a_loader_read_from_a_store(s3_store: Upload, tmp_path: Path) -> None:
    def source(root: object) -> SyntheticSource:
        grid = BEVGrid((4.0, 20.0), (-8.0, 8.0), 1.0)
        scenes = {"train": 5, "val": 1, "test": 1}
        return SyntheticSource(grid, image_size=(32, 64), scenes=scenes, root=root, generation_workers=1)  # type: ignore[arg-type]

    local = source(tmp_path / "worlds")
    local.prepare()
    address = s3_store(tmp_path / "worlds")
    remote = source(address)
    remote.prepare()
    assert_same_samples(local.split("train"), remote.split("train"))
    shutil.rmtree(os.environ["BEVRESHAPE_CACHE"])
    data = BEVDataModule(source(address), batch_size=1, num_workers=2)
    names = [batch.meta[0].name for batch in data.train_dataloader()]
    assert sorted(names) == [f"train-{index:06d}" for index in range(5)]
    more = SyntheticSource(
        local.grid, image_size=(32, 64), scenes={"train": 6, "val": 1, "test": 1}, root=address, generation_workers=1
    )
    with pytest.raises(InputError, match=rf"^{address}/train-.*000005\.record: .*data\.root=FOLDER.*to {address}"):
        more.prepare()


def test_training_from_a_store_gives_the_same_metrics(command, s3_store: Upload, worlds: Path, trained: Path) -> None:
    ended = command("train", *TINY, f"data.root={s3_store(worlds)}", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    found, wanted = (json.loads((run / "metrics.json").read_text()) for run in (Path("run"), trained))
    measured = {key: value for key, value in wanted.items() if key.startswith("test/iou")}
    assert measured
    assert {key: found[key] for key in measured} == measured
