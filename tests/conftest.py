"""What all tests share: the data pack, and the program run by its command line."""

import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import fsspec
import jaxtyping
import pytest
import torch
import wandb
from browser import CHROMIUM, Browser
from commands import TINY, Command, Ended, finish, start
from hydra.core.global_hydra import GlobalHydra
from object_stores import Upload, s3_server, upload

from bevreshape.console import log_to_stderr


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long and of which seed ``tests/fuzz`` tries cases."""
    parser.addoption("--fuzz-seconds", type=float, help="try cases for so long, rather than a fixed number of them")
    parser.addoption("--fuzz-seed", type=int, default=0, help="of the cases (0)")
    parser.addoption("--fuzz-case", type=int, help="try this one alone")


def pytest_configure(config: pytest.Config) -> None:
    """Hear a hang-up, also where the tests were started by ``nohup``."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


WHOLE_COMMANDS = {"command", "trained"}
"""Fixtures that run a whole command."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that run a whole command as slow, for ``make check``, and skip those of a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))
        if WHOLE_COMMANDS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Images of third parties next to the checkout; not part of it, since their terms differ."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the data pack is not there: {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _logs_on_stderr() -> None:
    """Write log messages to stderr, as the commands do."""
    log_to_stderr()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of generated scenes for all tests."""
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder to which every user may write, and whose parents all may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def memory_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upload]:
    """Copy folders into a store in the memory of this process, which is read through a cache of its own."""
    filesystem = fsspec.filesystem("memory")
    monkeypatch.setenv("BEVRESHAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield lambda folder: upload(folder, f"memory://{folder.name}")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a local server of S3's protocol."""
    for library in ("s3fs", "moto.server"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install -e '.[dev]'")
    with s3_server(tmp_path_factory.mktemp("s3") / "log.txt") as endpoint:
        yield endpoint


@pytest.fixture
def s3_store(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Upload:
    """Copy folders into a bucket of their own on that server, which is read through a cache of its own."""
    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "BEVRESHAPE_CACHE": str(tmp_path_factory.mktemp("cache")),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def copy(folder: Path) -> str:
        bucket = f"b{uuid.uuid4().hex}"
        fsspec.filesystem("s3").mkdir(bucket)
        return upload(folder, f"s3://{bucket}/{folder.name}")

    return copy


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run ``python -m bevreshape.NAME`` with arguments, in this process and in ``tmp_path``."""

    def run(name: str, *arguments: str) -> Ended:
        module = import_module(f"bevreshape.{name}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"bevreshape.{name}", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        GlobalHydra.instance().clear()
        capfd.readouterr()
        code = 0
        try:
            module.command()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            if wandb.run is not None:
                wandb.finish()  # a process of its own would end here
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture(scope="session")
def trained(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny run of the main job, by its own command line in its own process."""
    cwd = tmp_path_factory.mktemp("trained")
    ended = finish(start("train", *TINY, f"data.root={worlds}", "hydra.run.dir=run", cwd=cwd))
    assert ended.code == 0, ended.err
    return cwd / "run"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A Chromium that opens pages."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine to open the page with")
    running = Browser(tmp_path / "profile")
    yield running
    running.close()


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """Shape annotations compare sizes, which would pin a symbolic batch to the example's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
