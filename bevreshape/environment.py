"""What a command sets for its own process before torch is loaded. It imports neither torch nor anything that does."""

import codecs
import errno
import io
import os
import sys
from typing import Any

WAITING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
"""How long a thread of OpenMP spins at a barrier before it sleeps: turns of GNU's runtime, milliseconds of LLVM's and Intel's.

Their own defaults spin for so long that training becomes several times slower where another process takes a core away.
"""

PLAIN = {
    "→": "->", "←": "<-", "·": "-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "°": " deg", "±": "+-",
    "≥": ">=", "≤": "<=", "²": "^2", "³": "^3", "½": "1/2", "σ": "sigma", "│": "|",
}  # fmt: skip
"""What is written where a console has no such character; any other becomes a question mark."""


def prepare_process() -> None:
    """Let OpenMP's threads sleep early and every console take what is printed.

    The environment passes it on to the processes that are started from here. It is to be called before torch is loaded,
    whose OpenMP reads it once; settings of the user's own are left as they are.
    """
    if not {"OMP_WAIT_POLICY", *WAITING} & os.environ.keys():
        os.environ.update(WAITING)
    make_console_safe()


def make_console_safe() -> None:
    """Write what the console's encoding does not have in plain characters, and outlive the console, instead of failing on it."""
    codecs.register_error("bevreshape.plain", _in_plain_characters)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="bevreshape.plain")
        if type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO:
            setattr(sys, name, _outliving(stream))


def _outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, which outlives its other end: a terminal may be closed, and Ctrl-C also ends a ``tee`` behind a pipe."""
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
