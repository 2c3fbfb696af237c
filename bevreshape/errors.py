"""User errors and their one-line messages."""

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from reprlib import Repr


class InputError(ValueError):
    """The user's input is wrong; the one-line message names the file or key, both values and the remedy.

    The commands print it without a traceback and exit with code 1; in a library call it is an ordinary ``ValueError``.
    """


class Divergence(InputError):
    """Training has diverged: its loss or output is NaN or infinite. Commands exit with code 3."""

    exit_code = 3


class RunError(InputError):
    """A run can neither begin nor resume: its logger, its lock or what its folder holds; the model is not the cause."""


class DataError(InputError):
    """The data cannot be prepared or read, such as a damaged file; the model is not the cause."""


class TrainingInterrupted(BaseException):
    """Training was stopped by a signal, after ``last.ckpt`` was saved. No ``Exception``, so no handler catches it."""


_brief = Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxtuple, _brief.maxdict = 4, 8, 8, 8
_brief.maxstring = _brief.maxlong = _brief.maxother = 80


def shown(value: object) -> str:
    """Return the ``repr`` of a value for a message, shortened where it is long or deep."""
    return _brief.repr(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an "unknown name" message: the nearest known names, or all where none is near."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(names[:12])}{f' and {len(names) - 12} more' if len(names) > 12 else ''}"


REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "your quota is used up: free some space or choose another folder",
    errno.EFBIG: "it would be larger than files may be here: raise the limit (ulimit -f) or choose another folder",
    errno.EACCES: "permission is denied: choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
}


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system behind another error; torch's writer does not set it as the cause."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link


def out_of_memory(error: BaseException) -> bool:
    """Return whether torch ran out of memory."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


def user_message(error: BaseException) -> str | None:
    """Return the one-line message of a user error; ``None`` for an internal error, which keeps its traceback."""
    chain = causes(error)
    for link in chain:
        if isinstance(link, InputError):
            return _without_traceback(link)
    if (full := next(filter(out_of_memory, chain), None)) is not None:
        reason = " ".join(str(full).split())[:160]
        return (
            f"not enough memory ({reason}); lower loader.batch_size, or choose smaller images, fewer cells or a "
            "smaller model"
        )
    system = system_error(error)
    if system is not None and (system.errno in REMEDIES or (system in chain and system.filename)):
        remedy = REMEDIES.get(system.errno or 0, f"{system.strerror}: choose another one")
        return f"cannot use {system.filename or 'a file'}: {remedy}"
    return None


def _without_traceback(error: InputError) -> str:
    """Return the message of an error; one that a loader's worker has raised begins with its traceback."""
    text = str(error)
    if re.match(r"Caught \w+ in .*\nOriginal Traceback", text):
        text = re.split(rf"^(?:[\w.<>]+\.)?{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]
    return text.strip()


@contextmanager
def data_errors() -> Iterator[None]:
    """Raise every :class:`InputError` of the block as a :class:`DataError`."""
    try:
        yield
    except InputError as error:
        raise DataError(user_message(error)) from error


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and its chain of causes."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    return chain
