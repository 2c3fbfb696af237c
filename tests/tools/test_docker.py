"""The Dockerfile agrees with the repository; no image is built."""

import re
import tomllib
from fnmatch import fnmatch

import pytest
from commands import ROOT
from packaging.specifiers import SpecifierSet

FOLDER = ROOT / "tools" / "docker"
LINES = re.sub(r"\\\n\s*", " ", (FOLDER / "Dockerfile").read_text()).splitlines()
IGNORED = (FOLDER / "Dockerfile.dockerignore").read_text().split()


def arguments() -> dict[str, str]:
    """Return the build arguments and their defaults."""
    return {name: value.strip('"') for name, value in (line[4:].split("=", 1) for line in LINES if line[:4] == "ARG ")}


def test_python_is_one_that_the_package_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments()["PYTHON"] in SpecifierSet(project["requires-python"])
    assert "FROM python:${PYTHON}-slim" in LINES


def test_copied_files_exist_and_are_sent_to_the_builder() -> None:
    copied = [name for line in LINES if line.startswith("COPY ") for name in line.split()[2:-1]]
    assert "." in copied
    for name in (*copied, "bevreshape", "conf", "tests", "tools", "data/README.md"):
        assert (ROOT / name).exists(), name
        kept = f"!{name}" in IGNORED or not any(fnmatch(name, pattern) for pattern in IGNORED)
        assert kept, name


def test_what_git_ignores_is_not_sent_to_the_builder() -> None:
    ignored = re.findall(r"^/(\w+|\.\w+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    assert len(ignored) > 5
    assert set(ignored) <= set(IGNORED)


@pytest.mark.parametrize("command", ["make .venv/.installed", 'CMD ["make", "train"]'])
def test_make_has_the_targets(command: str) -> None:
    assert any(command in line for line in LINES)
    target = command.split()[-1].strip('"]').replace(".venv", "$(VENV)")
    makefile = (ROOT / "Makefile").read_text()
    expanded = makefile.replace("$(INSTALLED):", "$(VENV)/.installed:")
    assert "VENV ?= .venv" in makefile
    assert "INSTALLED := $(VENV)/.installed" in makefile
    assert re.search(rf"^{re.escape(target)}:", expanded, re.MULTILINE)


def test_nothing_runs_as_root() -> None:
    users = [line.split()[1] for line in LINES if line.startswith("USER ")]
    assert users == ["${UID}"]
    assert int(arguments()["UID"]) > 0
