"""The terminal: what a user sees of errors and of logs, on any console."""

import codecs
import errno
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from bevreshape.errors import user_message

PLAIN = {
    "→": "->", "←": "<-", "·": "-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "°": " deg", "±": "+-",
    "≥": ">=", "≤": "<=", "²": "^2", "³": "^3", "½": "1/2", "σ": "sigma", "│": "|",
}  # fmt: skip
"""What is written where a console has no such character; any other becomes a question mark."""


def make_console_safe() -> None:
    """Write what the console's encoding does not have in plain characters, and outlive the console, instead of failing
    on it."""
    codecs.register_error("bevreshape.plain", _in_plain_characters)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="bevreshape.plain")
        if type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:
            setattr(sys, name, _outliving(stream))


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, which outlives its other end: a terminal may be closed, and Ctrl-C also ends a ``tee`` behind a
    pipe."""
    stream.flush()
    buffer = io.BufferedWriter(_OutlivingFile(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=stream.write_through
    )


class _OutlivingFile(io.FileIO):
    """Goes on into nothing where its other end is gone."""

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


def print_error(message: str) -> None:
    """Print the message of an error, or why the program stops."""
    label = "" if message.startswith("stopped") else "[red]error:[/] "
    Console(stderr=True).print(f"{label}{message.replace('[', chr(92) + '[')}", highlight=False, soft_wrap=True)


def run_script(main: Callable[..., object], *args: object) -> None:
    """Run a script's ``main``; an error of the user's making is one line on stderr and exit code 1."""
    make_console_safe()
    log_to_stderr()
    try:
        main(*args)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print_error(message)
        sys.exit(1)


def log_to_stderr() -> None:
    """Write what the package logs to stderr, each message as it is."""
    log = logging.getLogger("bevreshape")
    if not any(isinstance(handler, _ToStderr) for handler in log.handlers):
        log.addHandler(_ToStderr())
        log.setLevel(logging.INFO)
        log.propagate = False  # Hydra gives the root logger a handler of its own


class _ToStderr(logging.Handler):
    """Write to the stream that stderr is when a message comes: a progress bar or a test may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)
