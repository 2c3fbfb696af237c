"""The command lines of the tools: what cannot be parsed is one sentence and exit code 1, as of bevreshape's own commands."""

import argparse
import re
from typing import Any, NoReturn

from bevreshape.errors import InputError, suggest


class Parser(argparse.ArgumentParser):
    """A parser that shows a tool's docstring as it stands, takes no abbreviations, and says what is wrong in a sentence.

    Args:
        description: the tool's docstring.
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

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: always.
        """
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown is None:
            raise InputError(f"{self.prog}: {message}; --help lists what it takes")
        raise InputError(f"{self.prog}: {unknown[1]} is no argument of this tool; {suggest(unknown[1], self.flags)}")
