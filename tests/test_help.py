"""Every command and tool explains itself, on any console, and names an argument that it does not know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("bevreshape", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
)

ASK_FIRST = ("evaluate.py", "diagnose.py")
"""They miss their checkpoint first."""

ALL = """
import contextlib, io, json, runpy, sys
from hydra.core.global_hydra import GlobalHydra

results, scripts = [], sys.argv[1:]
for argument in ("--help", "--no-such-argument"):
    for script in scripts:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
        GlobalHydra.instance().clear()
        sys.argv, code = [script, argument], 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
            except BaseException as error:
                code = repr(error)
        for stream in (out, err):
            stream.flush()
        texts = [stream.buffer.getvalue().decode("ascii") for stream in (out, err)]
        results.append([script, argument, code, *texts])
print(json.dumps(results))
"""
"""Runs them one after another in one process, since most of a start is torch's import."""


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], tuple[object, str, str]]:
    """What each script says to each argument, on a console of ASCII that is 80 characters wide."""
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "80"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    ended = subprocess.run(
        [sys.executable, "-c", ALL, *map(str, SCRIPTS)],
        cwd=ROOT, env={**os.environ, **plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return {(script, argument): (code, out, err) for script, argument, code, out, err in json.loads(ended.stdout)}


def test_the_list_holds_every_tool() -> None:
    tools = {path.name for path in (ROOT / "tools").glob("*.py")} - {"camera_folder.py"}
    assert {path.name for path in SCRIPTS if path.parent.name == "tools"} == tools
    assert {"train.py", "evaluate.py", "predict.py", "export.py", "report.py"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", [str(path) for path in SCRIPTS])
def test_help(answers, script: str) -> None:
    code, out, err = answers[script, "--help"]
    assert code == 0, (code, err)
    assert len(out.splitlines()) > 5
    assert "Traceback" not in out + err


@pytest.mark.parametrize("script", [str(path) for path in SCRIPTS])
def test_an_unknown_argument_is_named(answers, script: str) -> None:
    code, out, err = answers[script, "--no-such-argument"]
    assert code in (1, 2), (code, err)
    assert "--no-such-argument" in err or script.endswith(ASK_FIRST)
    assert "Traceback" not in out + err
