"""The built wheel works in any folder, and a user's own configuration adds to what it ships."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import ROOT

from bevreshape import __version__

pytestmark = pytest.mark.slow


def test_wheel_ships_its_configuration(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    shipped = sorted(name.removeprefix("bevreshape/conf/") for name in names if name.startswith("bevreshape/conf/"))
    assert shipped == sorted(p.relative_to(ROOT / "conf").as_posix() for p in (ROOT / "conf").rglob("*") if p.is_file())
    unlike = {"__pycache__", "results"}  # what git ignores there is not shipped
    parts = [p for p in (ROOT / "bevreshape").rglob("*") if p.is_file() and not unlike & {*p.parts}]
    assert {p.relative_to(ROOT).as_posix() for p in parts} <= set(names)  # templates and scripts too
    assert not [name for name in names if name.startswith(("tests", "tools", "conf"))]

    code = "import importlib.metadata as m; m.distribution('bevreshape').entry_points['bevreshape'].load()()"
    version = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert (version.stdout, version.stderr) == (f"{__version__}\n", "")  # the console command

    own = tmp_path / "elsewhere" / "my_conf" / "reshaper"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("_target_: bevreshape.reshapers.MLP\nhidden: [7]\n")
    ended = subprocess.run(
        [sys.executable, "-m", "bevreshape.train", "--config-dir", "my_conf", "reshaper=mine", "--cfg", "job"],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "- 7" in ended.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import bevreshape.config.paths as c; print(c.conf_dir())"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()) == tmp_path / "site" / "bevreshape" / "conf"
