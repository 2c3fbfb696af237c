"""The console command ``bevreshape``: ``bevreshape train …`` runs ``python -m bevreshape.train …``."""

import ast
import runpy
import sys
from importlib.resources import files

from bevreshape import __version__
from bevreshape.completion import SCRIPTS, completion_script
from bevreshape.console import make_console_safe, print_error
from bevreshape.errors import suggest

COMMANDS = ("train", "compare", "evaluate", "predict", "export", "diagnose", "report", "benchmark", "study")
"""Modules that run as commands."""

USAGE = f"""\
Usage: bevreshape COMMAND [ARGUMENT …]

%s

bevreshape COMMAND --help lists the arguments of a command, bevreshape --version prints the version, and
bevreshape completion {"|".join(SCRIPTS)} prints a script that completes commands and arguments in that shell."""


def main() -> None:
    """Run the command that the arguments name, as ``python -m`` does, or list the commands.

    An unknown command ends with one line and exit code 2.
    """
    make_console_safe()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[1:] = arguments
        runpy.run_module(f"bevreshape.{name}", run_name="__main__", alter_sys=True)
    elif name in ("--help", "-h"):
        print(USAGE % "\n".join(f"  {command:10} {line}" for command, line in summaries().items()))
    elif name == "--version":
        print(__version__)
    elif name == "completion" and len(arguments) == 1 and arguments[0] in SCRIPTS:
        print(completion_script(arguments[0], summaries()))
    elif name == "completion":
        _refuse(f"bevreshape completion {' '.join(arguments)}: name one shell, {', '.join(SCRIPTS)}")
    else:
        _refuse(f"bevreshape {name}: there is no such command; {suggest(name, (*COMMANDS, 'completion'))}")


def summaries() -> dict[str, str]:
    """Return what each command does, from its module's docstring; importing the modules would take longer."""
    lines = {}
    for name in COMMANDS:
        described = ast.get_docstring(ast.parse(files("bevreshape").joinpath(f"{name}.py").read_bytes()))
        lines[name] = str(described).partition("\n")[0].partition(": ")[2].removesuffix(".")
    return lines


def _refuse(message: str) -> None:
    print_error(message)
    sys.exit(2)
