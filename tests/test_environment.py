"""Settings of a command's process: waiting of OpenMP, and a console for any character."""

import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from commands import ROOT, TINY, finish, start

from bevreshape.console import print_error, run_script

pytestmark = pytest.mark.slow

OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
HELP_AND_TORCH = """
import runpy, sys
name = sys.argv.pop(1)
sys.argv.append("--help")
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
assert "torch" not in sys.modules
import torch
"""


def printed_by_openmp(*command: str, **variables: str) -> str:
    """What OpenMP's runtime says of its own settings when torch loads it."""
    environment = {key: value for key, value in os.environ.items() if key not in OPENMP}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    ended = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return ended.stderr


def spins_shortly(settings: str) -> bool:
    return "GOMP_SPINCOUNT = '3000'" in settings or "KMP_BLOCKTIME='1'" in settings


@pytest.mark.parametrize("name", ["train", "report"])
def test_openmp_sleeps_early_in_commands(name: str) -> None:
    """torch is loaded behind the command, as its work does."""
    assert spins_shortly(printed_by_openmp("-c", HELP_AND_TORCH, f"bevreshape.{name}"))


def test_openmp_settings_of_the_user_are_kept() -> None:
    settings = printed_by_openmp("-c", HELP_AND_TORCH, "bevreshape.report", OMP_WAIT_POLICY="ACTIVE")
    assert "ACTIVE" in settings
    assert not spins_shortly(settings)


def test_importing_the_library_sets_nothing() -> None:
    code = (
        "import os; before = dict(os.environ); import bevreshape.train, bevreshape.report; print(dict(os.environ) "
        "== before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True"]


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "a → 3×4 · 2°, ≥ 道".encode()),
        ("latin-1", "a -> 3×4 · 2°, >= ?".encode("latin-1")),
        ("ascii", b"a -> 3x4 - 2 deg, >= ?"),
    ],
)
def test_console_of_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    run_script(partial(print, "a → 3×4 · 2°, ≥ 道", end=""))
    assert raw.getvalue() == written


@pytest.mark.parametrize(
    "message",
    ["a\\[/b]c", "[red]a[/]", "[/]", "C:\\data\\[1].jpg", "a\\", ":warning: [a:b] 'x' 1.5", "stopped in [bold]a"],
)
def test_every_character_of_an_error_is_printed(capsys: pytest.CaptureFixture[str], message: str) -> None:
    print_error(message)
    label = "" if message.startswith("stopped") else "error: "
    assert capsys.readouterr().err == f"{label}{message}\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_a_script_in_one_line_after_it_has_cleaned_up(tmp_path: Path, name: str) -> None:
    code = (
        "import tempfile, time; from bevreshape.console import run_script\n"
        "def main():\n"
        "    with tempfile.TemporaryDirectory(dir='.'): print(flush=True); time.sleep(60)\n"
        "run_script(main)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {code}"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert script.stdout is not None
    script.stdout.readline()
    script.send_signal(getattr(signal, name))
    _, err = script.communicate(timeout=60)
    assert (script.returncode, err) == (130, "stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_training_on_an_ascii_console_with_slurm(worlds: Path, tmp_path: Path) -> None:
    """In a locale where even files are ASCII unless they are opened as UTF-8, and with an unused ``srun``."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    variables = {**locale, "PATH": f"{srun.parent}{os.pathsep}{os.environ['PATH']}"}
    ended = finish(
        start("train", *TINY, f"data.root={worlds}", "hydra.run.dir=run", cwd=tmp_path, environment=variables)
    )
    assert ended.code == 0, ended.err
    assert "parameters -> 1x8x" in ended.err
    assert (ended.out + ended.err).isascii()
    assert "srun" not in ended.err
