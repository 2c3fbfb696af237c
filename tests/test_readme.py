"""What the README shows runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, without

from bevreshape.analysis.costs import ring
from bevreshape.reshapers import MLP, FeatureShape

README = (ROOT / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_your_own_reshaper_trains_as_described(
    command, worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next(block for block in python_blocks() if "(Reshaper)" in block)
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    typed = re.search(r"`python -m bevreshape.train (reshaper=pool reshaper._target_=[^`]*)`", README)
    assert typed is not None
    arguments = [*without("trainer.max_steps"), "trainer.max_steps=1", f"data.root={worlds}"]
    ended = command("train", *arguments, *shlex.split(typed[1]))
    assert ended.code == 0, ended.err


def test_inference_in_plain_torch(trained: Path) -> None:
    code = next(block for block in python_blocks() if "load_model" in block)
    rig = ring(1, (32, 64), 2, torch.device("cpu"))
    names = {"images": torch.rand(2, 1, 3, 32, 64), "intrinsics": rig.intrinsics, "ego_from_cam": rig.ego_from_cam}
    exec(code.replace("best.ckpt", str(trained / "checkpoints" / "best.ckpt")), names)
    assert names["probabilities"].shape == (2, 4, 16, 16)


def test_adapter_in_two_lines() -> None:
    assert MLP(FeatureShape(64, 16, 32), (20, 20))(torch.zeros(2, 64, 16, 32)).shape == (2, 64, 20, 20)


def shown() -> list[str]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("python -m bevreshape.")]


def test_the_table_has_every_built_in_reshaper_and_no_other() -> None:
    table = README.split("| `reshaper=` |")[1].split("\n\n")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert named == {path.stem for path in (ROOT / "conf" / "reshaper").glob("*.yaml")}


@pytest.mark.parametrize("line", [line for line in shown() if not re.search(r"resume=|--|bevreshape\.report", line)])
def test_commands_compose(command, trained: Path, line: str) -> None:
    name, *arguments = shlex.split(line.removeprefix("python -m bevreshape."))
    best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    arguments = [best if part.startswith("checkpoint=") else part for part in arguments if part != "-m"]
    if name == "train":
        arguments = [
            part.split(",")[0] if re.match(r"(reshaper|seed|optimizer.lr)=", part) else part for part in arguments
        ]
    ended = command(name, "--cfg", "job", *arguments)
    assert ended.code == 0, ended.err
    for key in re.findall(r"^[a-z_.]+(?==)", " ".join(arguments)):
        assert key.split(".")[-1] in ended.out


@pytest.mark.parametrize("group", ["data", "augment", "head", "loss", "logger"])
def test_groups_are_all_listed(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}` \|(.*)$", README, re.MULTILINE)
    for path in (ROOT / "conf" / group).glob("*.yaml"):
        assert f"`{path.stem}`" in row
