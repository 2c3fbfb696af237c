"""Run the scripts of this folder, each in its own process: they alter torch for good."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT

HERE = Path(__file__).parent
Findings = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled ``shim.cpp``."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the pretended CUDA device needs g++ on Linux, to replace a function of torch")
    library, torch_folder = tmp_path_factory.mktemp("shim") / "shim.so", Path(torch.__file__).parent
    built = subprocess.run(
        [
            compiler, "-std=c++20", "-w", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", str(HERE / "shim.cpp"),
            "-o", str(library), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        pytest.skip(f"the pretended CUDA device: g++ cannot compile shim.cpp ({built.stderr.strip()[:200]})")
    return library


@pytest.fixture(scope="session")
def pretended(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Findings]:
    """Return a function that runs a script of this folder and returns the findings of its cases."""
    done: dict[str, Findings] = {}

    def run(script: str) -> Findings:
        if script not in done:
            out = tmp_path_factory.mktemp("findings") / "found.json"
            paths = (ROOT, ROOT / "tests", HERE)
            environment = {
                **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            }  # fmt: skip
            ended = subprocess.run(
                [sys.executable, str(HERE / script), str(shim), str(out)],
                capture_output=True, text=True, env=environment, check=False, timeout=600,
            )  # fmt: skip
            assert ended.returncode == 0, ended.stderr
            done[script] = json.loads(out.read_text(encoding="utf-8"))
        return done[script]

    return run
