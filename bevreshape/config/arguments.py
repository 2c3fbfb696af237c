"""Command lines of scripts without Hydra: errors are one line with exit code 1, as in the other commands."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bevreshape.errors import InputError, suggest


class Parser(argparse.ArgumentParser):
    """A parser that shows a docstring unchanged, accepts no abbreviations, and reports an error in one line.

    Args:
        description: the docstring.
    """

    def __init__(self, description: str | None) -> None:
        self.flags: list[str] = []
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument as argparse does; record the flags for suggestions."""
        self.flags = [*self.flags, *(name for name in names if name.startswith("--"))]
        return super().add_argument(*names, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but report an unknown flag before a missing one."""
        for argument in sys.argv[1:] if args is None else args:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag not in ("--", *self.flags):
                raise InputError(f"{self.prog}: {flag} is unknown; {suggest(flag, self.flags)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.prog}: {message}; --help lists the arguments")


def integer(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an integer argument between two bounds, for argparse."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer from {least} to {most}")
        return int(text)

    return read
