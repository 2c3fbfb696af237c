"""Command lines of scripts without Hydra: what cannot be parsed is a one-line error and exit code 1, as of the other
commands."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bevreshape.errors import InputError, suggest


class Parser(argparse.ArgumentParser):
    """A parser that shows a docstring as it stands, takes no abbreviations, and reports an error in one line.

    Args:
        description: the docstring.
    """

    def __init__(self, description: str | None) -> None:
        self.flags: list[str] = []
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """As argparse's; remembers the flags, to suggest one."""
        self.flags = [*self.flags, *(name for name in names if name.startswith("--"))]
        return super().add_argument(*names, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an unknown flag is named before a missing one is."""
        for argument in sys.argv[1:] if args is None else args:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag not in ("--", *self.flags):
                raise InputError(f"{self.prog}: {flag} is no argument here; {suggest(flag, self.flags)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.prog}: {message}; --help lists what it takes")


def integer(least: int, most: int) -> Callable[[str], int]:
    """The type of an argument that is an integer between two bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer from {least} to {most}")
        return int(text)

    return read
