"""Exported programs in two runtimes: the same result, and a message where one is missing."""

import sys
from pathlib import Path

import pytest
import time_runtimes
import torch
from torch import nn

from bevreshape.errors import InputError


def test_both_runtimes_compute_the_same() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()).eval()
    *times, difference = time_runtimes.measured(module, (torch.randn(3, 4),), rounds=3)
    assert all(float(part) > 0 for cell in times for part in cell.split(","))
    assert float(difference) < 1e-6


def test_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="pip install openvino"):
        time_runtimes.openvino_call(tmp_path / "program.onnx", (), fixed=False)
