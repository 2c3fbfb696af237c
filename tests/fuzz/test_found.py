"""Faults that ``test_fuzz.py`` once found: each caused a traceback, or was accepted silently."""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from commands import TINY
from hydra.core.global_hydra import GlobalHydra

from bevreshape.console import run_script

pytestmark = pytest.mark.slow

CHECKPOINT = "checkpoint={run}/checkpoints/best.ckpt"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("export", (CHECKPOINT, "format=pt2", "out=[model.pt2]"), "out="),
        ("export", ("checkpoint=[a.ckpt]", "format=pt2"), "checkpoint="),
        ("export", (CHECKPOINT, "format=pt2", "++calibrtion=null"), "calibrtion"),
        ("predict", (CHECKPOINT, "input=x", "out=[predictions]"), "out="),
        ("predict", (CHECKPOINT, "input=[nan]"), "input="),
        ("diagnose", (CHECKPOINT, "rigs=-0.5"), "rigs="),
        ("benchmark", ("reshaper=pool", "+feattures=[16,32]"), "feattures"),
        ("benchmark", ("reshaper=pool", "~channels"), "channels"),
        ("study", ("++devce=auto",), "devce"),
        ("train", (*TINY, "trainer=false"), "trainer"),
        ("train", (*TINY, "logger=1000000"), "logger"),
        ("train", (*TINY, "augment._target_=../x"), "../x"),
        ("train", (*TINY, "reshaper=[1]"), "reshaper=[1]: reshaper is chosen by its name"),
        ("train", (*TINY, "head=[[_target_,x]]"), "head is chosen by its name"),
        ("train", (*TINY, "augment=photometric", "encoder.strides._target_=1"), "encoder.strides._target_=1"),
        ("benchmark", ("reshaper=pool", "++features.x=1"), "features.x=1"),
        ("evaluate", (CHECKPOINT, "+data.grid.forrward_m=[0,32]"), "data.grid.forrward_m"),
        ("evaluate", (CHECKPOINT, "data.image_size=[64,64]"), "the data uses the grid and the image size"),
    ],
)
def test_arguments(command, trained: Path, name: str, arguments: tuple[str, ...], words: str) -> None:
    ended = command(name, *(argument.format(run=trained) for argument in arguments))
    assert ended.code == 1, ended.out
    assert "Traceback" not in ended.err
    assert words in ended.err


def test_a_run_whose_encoder_is_named_by_a_list(command, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    encoder = config["encoder"]
    encoder["name"], encoder["strides"] = encoder["strides"], encoder["name"]
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    ended = command("train", "resume=run")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "encoder." in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("encoder=[[_target_,x]]",), "encoder is chosen by its name"),
        (("+lr=0.5",), "lr"),
        (("reshaper=mpl",), "did you mean mlp"),
        (("data.scenes.train=many",), "data.scenes.train"),
        (("a b",), "a b"),
    ],
)
def test_overrides_of_a_tool(monkeypatch: pytest.MonkeyPatch, capsys, arguments: tuple[str, ...], words: str) -> None:
    tool = import_module("constant_map")
    monkeypatch.setattr(sys, "argv", ["constant_map.py", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as end:
        run_script(tool.main)
    assert end.value.code == 1
    assert words in capsys.readouterr().err
