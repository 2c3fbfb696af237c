"""Classes of another package, chosen by their dotted path and by an entry point, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, Ended, finish, start, without

MODULE = '''
import torch
from torch import nn

from bevreshape.data.batch import Meta, Sample
from bevreshape.data.targets import BEVTarget
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape, Reshaper


class Stripes:
    """Images as dark as their number, whose road is as wide."""

    classes, camera_names = ("road",), ("front",)

    def __init__(self, count: int, grid: BEVGrid = BEVGrid((0.0, 16.0), (-8.0, 8.0), 2.0), image_size=(32, 64)):
        self.count, self.grid, self.image_size = count, grid, tuple(image_size)

    def prepare(self, splits): ...

    def split(self, name):
        return self

    def make_targets(self, batch):
        return batch

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        height, width = self.image_size
        road = (torch.arange(self.grid.cols) < index).expand(1, self.grid.rows, -1).clone()
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        pose[2, 3] = 1.5
        intrinsics = torch.tensor([[40.0, 0, width / 2], [0, 40, height / 2], [0, 0, 1]])
        return Sample(
            images=torch.full((1, 3, height, width), 10 * index, dtype=torch.uint8),
            intrinsics=intrinsics[None],
            ego_from_cam=pose[None],
            meta=Meta(f"{index:03d}", index),
            targets={"segmentation": BEVTarget(road, torch.ones_like(road))},
        )


class Patches(nn.Module):
    """One convolution, without timm."""

    def __init__(self, image_size, cameras, channels: int = 4):
        super().__init__()
        height, width = image_size
        self.sources = (FeatureShape(channels, height // 8, width // 8, cameras, 8, 3.5),)
        self.net = nn.Conv2d(3, channels, 8, stride=8)

    def forward(self, image):
        return self.net(image.flatten(0, 1)).unflatten(0, image.shape[:2])


class Mean(Reshaper):
    """Every cell is the mean feature."""

    def __init__(self, source, grid, gain: float = 2.0):
        super().__init__(source, grid, source.channels)
        self.gain = gain

    def reshape(self, features, cameras):
        mean = features.mean((1, 3, 4)) * self.gain
        return mean[:, :, None, None].expand(-1, -1, *self.target_shape)
'''

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "theirs"
version = "1"

[project.entry-points."bevreshape.data"]
stripes = "theirs:Stripes"

[project.entry-points."bevreshape.encoders"]
patches = "theirs:Patches"

[project.entry-points."bevreshape.reshapers"]
their_mean = "theirs:Mean"

[tool.hatch.build.targets.wheel]
include = ["theirs.py"]
"""

BY_PATH = ("data=theirs.Stripes", "encoder=theirs.Patches", "reshaper=theirs.Mean")
BY_NAME = ("data=stripes", "encoder=patches", "reshaper=their_mean")
OPTIONS = ("data.count=6", "encoder.channels=8", "reshaper.gain=3.0", "loader.batch_size=2", "hydra.run.dir=run")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which pip has installed the package."""
    project = tmp_path_factory.mktemp("theirs")
    (project / "theirs.py").write_text(MODULE)
    (project / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    folder = project / "site"
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(folder), str(project)], check=True)
    return folder


def run(name: str, *arguments: str, cwd: Path, path: tuple[Path, ...]) -> Ended:
    """A command with folders on its path."""
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    return finish(start(name, *arguments, "trainer.accelerator=cpu", cwd=cwd, environment=environment))


@pytest.mark.parametrize("chosen", [BY_PATH, BY_NAME], ids=["path", "entry point"])
def test_data_encoder_and_reshaper_of_a_package_are_trained_and_evaluated(
    chosen: tuple[str, ...], site: Path, tmp_path: Path
) -> None:
    tiny = [a for a in without("trainer.max_steps", "encoder", "loader.batch_size") if not a.startswith("data.")]
    ended = run("train", *tiny, "trainer.max_steps=4", *chosen, *OPTIONS, cwd=tmp_path, path=(site,))
    assert ended.code == 0, ended.err
    trained = json.loads((tmp_path / "run/metrics.json").read_text())
    assert "test/iou/road" in trained
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    ended = run("evaluate", checkpoint, "hydra.run.dir=again", cwd=tmp_path, path=(site,))
    assert ended.code == 0, ended.err
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    assert again["test/iou/road"] == trained["test/iou/road"]


def test_classes_of_a_checkpoint_that_no_package_announces_need_trust(site: Path, tmp_path: Path) -> None:
    """The same module, importable but without entry points."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "theirs.py").write_text(MODULE)
    tiny = [a for a in without("trainer.max_steps", "encoder", "loader.batch_size") if not a.startswith("data.")]
    ended = run("train", *tiny, "trainer.max_steps=4", *BY_PATH, *OPTIONS, cwd=tmp_path, path=(bare,))
    assert ended.code == 0, ended.err
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    refused = run("evaluate", checkpoint, cwd=tmp_path, path=(bare,))
    assert (refused.code, "Traceback" in refused.err) == (1, False)
    assert "data wants to call theirs.Stripes" in refused.err
    assert "set trust=[theirs]" in refused.err
    ended = run("evaluate", checkpoint, "trust=[theirs]", cwd=tmp_path, path=(bare,))
    assert ended.code == 0, ended.err


def test_a_path_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    for argument, reason in (
        ("reshaper=theirs_not.Mean", "No module named 'theirs_not'"),
        ("encoder=json.NoSuchClass", "no attribute 'NoSuchClass'"),
    ):
        ended = run("train", argument, cwd=tmp_path, path=())
        assert (ended.code, "Traceback" in ended.err) == (1, False)
        assert argument in ended.err
        assert reason in ended.err
