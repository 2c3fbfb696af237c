"""Errors and logs on the terminal, with any encoding."""

import codecs
import errno
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from bevreshape.errors import TrainingInterrupted, user_message
from bevreshape.signals import stops_as_interrupts

PLAIN = {
    "→": "->", "←": "<-", "·": "-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "°": " deg", "±": "+-",
    "≥": ">=", "≤": "<=", "²": "^2", "³": "^3", "½": "1/2", "σ": "sigma", "│": "|",
}  # fmt: skip
"""Replacements of characters that a console's encoding lacks; any other becomes a question mark."""


def make_console_safe() -> None:
    """Replace characters that the console's encoding lacks, and continue when the console is closed."""
    codecs.register_error("bevreshape.plain", _in_plain_characters)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="bevreshape.plain")
        if type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:
            setattr(sys, name, _outliving(stream))


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return the stream, which keeps accepting text when its reader is gone.

    A terminal may be closed, and Ctrl-C also ends a ``tee`` behind a pipe.
    """
    stream.flush()
    buffer = io.BufferedWriter(_OutlivingFile(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


class _OutlivingFile(io.FileIO):
    """Discard what is written when the reader is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return memoryview(data).nbytes


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def print_line(*parts: str | tuple[str, str], stderr: bool = False) -> None:
    """Print a line as it is: square brackets are not markup, colons not emoji, and nothing wraps.

    Args:
        parts: of the line; one in a style is a pair, such as ``("doubt:", "yellow")``.
        stderr: print on stderr, not stdout.
    """
    Console(stderr=stderr).print(Text.assemble(*parts), highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print an error message, or the reason why the program stops."""
    label = () if message.startswith("stopped") else (("error:", "red"), " ")
    print_line(*label, message, stderr=True)


def run_script(main: Callable[..., object], *args: object) -> None:
    """Run a script's ``main``; a user error ends it with one line on stderr and exit code 1, a signal with code 130."""
    make_console_safe()
    log_to_stderr()
    try:
        with stops_as_interrupts():
            main(*args)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print_error(message)
        sys.exit(1)
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        print_error(str(stop) or "stopped")
        sys.exit(130)


def log_to_stderr() -> None:
    """Write the package's log messages to stderr, unformatted."""
    log = logging.getLogger("bevreshape")
    if not any(isinstance(handler, _ToStderr) for handler in log.handlers):
        log.addHandler(_ToStderr())
        log.setLevel(logging.INFO)
        log.propagate = False  # Hydra gives the root logger a handler of its own


class _ToStderr(logging.Handler):
    """Write to the current ``sys.stderr``, which a progress bar or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)
