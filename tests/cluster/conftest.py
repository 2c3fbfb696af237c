"""A cluster of SLURM on this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, finish, start
from slurm_cluster import TRAINING, Cluster, start_script

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Started for these tests, unless one is running in this environment."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    if shutil.which("scontrol") and os.environ.get("SLURM_CONF"):
        yield Cluster(variables)
        return
    script = start_script()
    if not script.is_file():
        pytest.skip(f"there is no SLURM: {script} does not exist; BEVRESHAPE_SLURM names another folder with start.sh")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, since it holds a socket
    try:
        began = subprocess.run(["bash", script, folder], capture_output=True, text=True, timeout=300, check=False)
        if began.returncode:
            pytest.skip(f"SLURM does not start: {began.stderr.strip()[-300:]}")
        said = subprocess.run(
            ["bash", "-c", f". {folder}/env.sh; env -0"], capture_output=True, env=variables, check=True
        )
        yield Cluster(dict(line.split("=", 1) for line in said.stdout.decode().split("\0") if "=" in line))
    finally:
        subprocess.run(["bash", script.with_name("stop.sh"), folder], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def uninterrupted(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :data:`TRAINING` in one process that nothing interrupted."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    found = finish(start("train", *TRAINING, f"data.root={worlds}", "hydra.run.dir=run", cwd=cwd))
    assert found.code == 0, found.err
    return cwd / "run"
