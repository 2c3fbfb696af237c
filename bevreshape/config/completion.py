"""``-sc query=SHELL``: Hydra's completion of a command line that is being typed."""

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress

from bevreshape.config.choices import config_folders
from bevreshape.errors import InputError

FLAGS = ("--shell-completion", "-sc")
"""Hydra's flags for shell completion."""


def completes(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask what completes a command line."""
    return not {*FLAGS}.isdisjoint(arguments) and any(argument.startswith("query=") for argument in arguments)


def prepare_completion(
    name: str, arguments: Sequence[str], prepare: Callable[[str, list[str]], tuple[str, list[str]]]
) -> tuple[str, list[str]]:
    """Prepare the line in ``COMP_LINE`` as the command would, for Hydra's completion, which reads it there.

    Words with spaces are left out, since Hydra splits the line at them, and no checkpoint is read.

    Args:
        name: of the primary config.
        arguments: ``-sc query=SHELL``.
        prepare: of a name and arguments, as the command does before Hydra reads them.

    Returns:
        The name of the primary config, and the arguments with the user's own folders of configs.
    """
    line = os.environ.get("COMP_LINE", "")
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed
        words = line.split()
    last = words.pop() if words[2:] and not line[-1:].isspace() else ""
    typed = [word for word in words[2:] if not word.startswith("checkpoint=")]
    folders = [part for folder in config_folders(typed)[1:] for part in ("--config-dir", str(folder))]
    with suppress(InputError):  # the command will report it
        name, typed = prepare(name, [*typed, "--help"])  # as for help, nothing is required
    typed = [word for word in typed if word != "--help" and not {*" \t\n"} & {*word}]
    os.environ["COMP_LINE"] = " ".join(["bevreshape", *typed, last])
    return name, [*arguments, *folders]
