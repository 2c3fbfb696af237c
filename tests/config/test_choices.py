"""Reshapers of other packages, by entry point and by target."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from commands import without

PLUGIN = '''
import torch
from bevreshape.reshapers import Reshaper

class Mean(Reshaper):
    """Every cell is the mean feature."""

    def __init__(self, source, grid, gain=2.0):
        super().__init__(source, grid, source.channels)
        self.gain = gain

    def reshape(self, features, cameras):
        mean = features.mean((1, 3, 4)) * self.gain
        return mean[:, :, None, None].expand(-1, -1, *self.target_shape)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("their_plugin", None)
    return "their_plugin:Mean"


def announce(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str], group: str = "bevreshape.reshapers") -> None:
    found = {group: [EntryPoint(name, value, group) for name, value in points]}
    monkeypatch.setattr("bevreshape.config.entry_points.entry_points", lambda group: found.get(group, []))


def test_announced_reshaper_is_a_choice_with_its_fields(
    command, worlds: Path, plugin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    announce(monkeypatch, ("their_mean", plugin))
    arguments = [*without("trainer.max_steps"), "trainer.max_steps=2", f"data.root={worlds}", "hydra.run.dir=run"]
    ended = command("train", *arguments, "reshaper=their_mean", "reshaper.gain=3.0")
    assert ended.code == 0, ended.err
    assert "gain: 3.0" in (tmp_path / "run" / "config.yaml").read_text()
    again = command("evaluate", "checkpoint=run/checkpoints/best.ckpt", "trainer.accelerator=cpu")
    assert again.code == 0, again.err
    announce(monkeypatch)
    refused = command("evaluate", "checkpoint=run/checkpoints/best.ckpt", "trainer.accelerator=cpu")
    assert (refused.code, "wants to call their_plugin.Mean" in refused.err) == (1, True)


def test_target_on_the_command_line(command, worlds: Path, plugin: str) -> None:
    arguments = [*without("trainer.max_steps"), "trainer.max_steps=1", f"data.root={worlds}"]
    ended = command("train", *arguments, "reshaper=their_plugin.Mean", "reshaper.gain=3.0")
    assert ended.code == 0, ended.err


def test_name_of_a_built_in_is_refused(command, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("mlp", plugin))
    ended = command("train")
    assert ended.code == 1
    assert "registers a reshaper 'mlp', which is the name of a built-in" in ended.err


def test_one_name_of_two_packages_is_refused(command, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, ("theirs", plugin), ("theirs", "other:Mean"))
    ended = command("train", "reshaper=theirs")
    assert (ended.code, "two installed packages register" in ended.err) == (1, True)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("head=theirs", ["segmentation"]),
        ("head=their_plugin.HeightMap", ["segmentation"]),
        ("head=[conv,theirs]", ["segmentation", "theirs"]),
        ("head=[conv,their_plugin.HeightMap]", ["segmentation", "height_map"]),
    ],
)
def test_a_head_of_another_package_replaces_none_beside_it(
    command, plugin: str, choice: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "\nfrom torch import nn\nclass HeightMap(nn.Module):\n    def __init__(self, in_channels, upsample=2): ...\n"
    (tmp_path / "their_plugin.py").write_text(PLUGIN + head)
    announce(monkeypatch, ("theirs", "their_plugin:HeightMap"), group="bevreshape.heads")
    ended = command("train", choice, "--cfg", "job")
    assert ended.code == 0, ended.err
    heads = yaml.safe_load(ended.out)["head"]
    assert list(heads) == names
    assert heads[names[-1]] == {"_target_": "their_plugin.HeightMap", "upsample": 2}
