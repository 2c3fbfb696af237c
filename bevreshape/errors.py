"""Errors of the user's input, and the one-line message for each."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr


class InputError(ValueError):
    """The user's input is wrong; the one-line message names the culprit, both values and the remedy.

    The commands print it without a traceback and exit with code 1; in a library call it is an ordinary ``ValueError``.
    """


class Divergence(InputError):
    """Training has diverged, its loss or output being NaN or infinite; commands then end with exit code 3."""

    exit_code = 3


class TrainingInterrupted(BaseException):
    """Training was stopped by a signal, after ``last.ckpt`` was saved. No error, so nothing may catch it on its way."""


_brief = Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxtuple, _brief.maxdict = 4, 8, 8, 8
_brief.maxstring = _brief.maxlong = _brief.maxother = 80


def shown(value: object) -> str:
    """A value as a message quotes it: its ``repr``, shortened where it is long or deep."""
    return _brief.repr(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of an "unknown name" message: the nearest known names, or all of them where none is near."""
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
    """The error of the operating system behind another one; torch's writer does not name it as its cause."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link


def out_of_memory(error: BaseException) -> bool:
    """Whether torch found no room for a tensor."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


def user_message(error: BaseException) -> str | None:
    """The one-line message for an error of the user's making; ``None`` for one of ours, which deserves its
    traceback."""
    chain = causes(error)
    for link in chain:
        if isinstance(link, InputError):
            return str(link).rpartition("InputError: ")[2].strip()  # a loader's worker wraps it in its traceback
    if (full := next(filter(out_of_memory, chain), None)) is not None:
        reason = " ".join(str(full).split())[:160]
        return (
            f"memory does not suffice ({reason}); lower loader.batch_size, or choose smaller images, fewer cells or a "
            "smaller model"
        )
    system = system_error(error)
    if system is not None and (system.errno in REMEDIES or (system in chain and system.filename)):
        remedy = REMEDIES.get(system.errno or 0, f"{system.strerror}: choose another one")
        return f"cannot use {system.filename or 'a file'}: {remedy}"
    return None


def causes(error: BaseException) -> list[BaseException]:
    """An error, and the causes that it names."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    return chain
