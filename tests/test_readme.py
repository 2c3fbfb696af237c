"""What the README shows runs."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, without

from bevreshape.reshapers import MLP, FeatureShape

README = (ROOT / "README.md").read_text()


def test_your_own_reshaper_trains_as_described(
    command, worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 15
    (tmp_path / "mine.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine", None)
    typed = re.search(r"`python -m bevreshape.train (reshaper=pool reshaper._target_=[^`]*)`", README)
    assert typed is not None
    arguments = [*without("trainer.max_steps"), "trainer.max_steps=1", f"data.root={worlds}"]
    ended = command("train", *arguments, *shlex.split(typed[1]))
    assert ended.code == 0, ended.err


def test_adapter_of_the_last_line() -> None:
    assert MLP(FeatureShape(64, 16, 32), (20, 20))(torch.zeros(2, 64, 16, 32)).shape == (2, 64, 20, 20)


def shown() -> list[str]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("python -m bevreshape.train ")]


@pytest.mark.parametrize("line", [line for line in shown() if "resume=" not in line and "--help" not in line])
def test_commands_compose(command, line: str) -> None:
    arguments = [part for part in shlex.split(line)[3:] if part != "-m"]
    arguments = [part.split(",")[0] if re.match(r"(reshaper|seed)=", part) else part for part in arguments]
    ended = command("train", "--cfg", "job", *arguments)
    assert ended.code == 0, ended.err
    assert "_target_" in ended.out
