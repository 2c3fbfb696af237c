"""The console command ``bevreshape``: its list, its dispatch, and completion in a shell."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, TINY, Command, Ended
from hydra.core.global_hydra import GlobalHydra

from bevreshape import __version__, cli
from bevreshape.completion import SCRIPTS, completion_script
from bevreshape.config.choices import config_folders

SCRIPT = "import sys\nfrom bevreshape.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
"""What pip writes as the console command."""


def run(*arguments: str, program: tuple[str, ...] = ("-m", "bevreshape"), cwd: Path = ROOT) -> Ended:
    """Run ``bevreshape`` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.slow
def test_commands_are_listed_before_anything_is_loaded() -> None:
    code = f"{SCRIPT}    print(*sys.modules)".replace("sys.exit(main())", "main()")
    ended = run(program=("-c", code))
    *lines, loaded = ended.out.splitlines()
    listed = dict(found.groups() for line in lines if (found := re.fullmatch(r"  (\w+) +(\S.*)", line)))
    modules = {path.stem for path in (ROOT / "bevreshape").glob("*.py") if "def command(" in path.read_text()}
    assert listed.keys() == modules == {*cli.COMMANDS}
    assert not {"torch", "hydra", "lightning", "pydantic", "numpy"} & {*loaded.split()}
    assert run("--help").out.splitlines() == lines


@pytest.mark.slow
def test_version() -> None:
    assert run("--version") == Ended(0, f"{__version__}\n", "")


@pytest.mark.slow
def test_unknown_command() -> None:
    ended = run("trian", "reshaper=mlp")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: bevreshape trian: there is no such command; did you mean train?\n"


@pytest.mark.parametrize("arguments", [(), ("tcsh",), ("bash", "zsh")])
def test_completion_of_an_unknown_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bevreshape", "completion", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "name one shell, bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--help"),
        ("train", "--cfg", "job", "reshaper=ipm", "seed=3"),
        ("train", "seed=x"),
        ("compare", "resaper=mlp"),
        ("evaluate", "checkpoint=none.ckpt"),
        ("predict", "--help"),
    ],
)
def test_a_command_does_what_its_module_does(
    command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    name, *rest = arguments
    by_module = command(name, *rest)
    monkeypatch.delitem(sys.modules, f"bevreshape.{name}")  # as in a new process
    monkeypatch.setattr(sys, "argv", ["bevreshape", *arguments])
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # a command replaces them
    GlobalHydra.instance().clear()
    capfd.readouterr()
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    assert Ended(code, *capfd.readouterr()) == by_module


@pytest.mark.slow
def test_a_command_starts_its_processes(worlds: Path, tmp_path: Path) -> None:
    """By torch's launcher, which imports what ``__main__`` is, from a script as pip writes it."""
    (tmp_path / "bevreshape").write_text(SCRIPT)
    tiny = [*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.devices=2", f"data.root={worlds}"]
    ended = run("train", *tiny, "hydra.run.dir=run", program=("bevreshape",), cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_no_folders_of_no_arguments() -> None:
    assert len(config_folders([])) == 1


def test_summaries_are_quoted_in_scripts() -> None:
    for shell in SCRIPTS:
        script = completion_script(shell, {"it": "what's a\\b, `date` $(date)"})
        assert re.search(r"@\w+@", script) is None
    if bash := shutil.which("bash"):
        zsh = completion_script("zsh", {"it": "what's `date` $(date)"})
        (words,) = re.findall(r"found=\(('.*)\)$", zsh, re.MULTILINE)
        ended = subprocess.run([bash, "-c", f"printf %s {words}"], capture_output=True, text=True, check=True)
        assert ended.stdout == "it:what's `date` $(date)"


def typed_in_bash(folder: Path, *lines: str) -> list[list[str]]:
    """Type lines, with tabs, in an interactive bash; the words that each has become, as bash reads them."""
    program = folder / "bevreshape"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bevreshape "$@"\n')
    program.chmod(0o755)
    (folder / "script").write_text(completion_script("bash", cli.summaries()))
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        variables = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "dumb"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], variables)
    shown = [f"{line}\x01printf '<%s>' >>words \necho >>words\n" for line in lines]  # control-a goes to the start
    os.write(terminal, "".join(["source ./script\n", *shown, "exit\n"]).encode())
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # its end, on Linux
        pass
    os.waitpid(child, 0)
    return [re.findall(r"<(.*?)>", line) for line in (folder / "words").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash on this machine")
def test_completion_in_bash(tmp_path: Path) -> None:
    (tmp_path / "own" / "reshaper").mkdir(parents=True)
    (tmp_path / "own" / "reshaper" / "special.yaml").write_text("_target_: bevreshape.reshapers.MLP\nhidden: [7]\n")
    (tmp_path / "best.ckpt").touch()
    completed = {
        "bevreshape tr\t": ["bevreshape", "train"],
        "bevreshape train reshaper=i\t seed=1": ["bevreshape", "train", "reshaper=ipm", "seed=1"],
        "bevreshape train reshaper=cross_attention reshaper.ker\t": [
            "bevreshape", "train", "reshaper=cross_attention", "reshaper.kernel=",
        ],
        "bevreshape train --config-dir own reshaper=sp\t": [
            "bevreshape", "train", "--config-dir", "own", "reshaper=special",
        ],
        "bevreshape compare reshaper=ipm,mlp reshapers.mlp.hid\t": [
            "bevreshape", "compare", "reshaper=ipm,mlp", "reshapers.mlp.hidden.",
        ],
        "bevreshape evaluate checkpoint=bes\t spl\t": ["bevreshape", "evaluate", "checkpoint=best.ckpt", "split="],
    }  # fmt: skip
    assert typed_in_bash(tmp_path, *completed) == [*completed.values()]


@pytest.mark.slow
def test_choices_of_a_group_complete(tmp_path: Path) -> None:
    """The last question of the shell, on its own: what ``reshaper=`` may be."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "bevreshape train seed=1 reshaper="}
    ended = subprocess.run(
        [sys.executable, "-m", "bevreshape", "train", "-sc", "query=fish"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = {f"reshaper={path.stem}" for path in (ROOT / "conf" / "reshaper").glob("*.yaml")}
    assert files <= {*ended.stdout.split()}
    assert all(line.startswith("reshaper=") for line in ended.stdout.split())
