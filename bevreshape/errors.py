"""What the program says when the input is at fault."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr


class InputError(ValueError):
    """The user's input is wrong; the message is one sentence that names the culprit, both values and the remedy.

    The commands print it without a traceback and exit with code 1; in a library call it is an ordinary ``ValueError``.
    """


class Divergence(InputError):
    """Training has diverged, its loss or output being NaN or infinite; commands then end with exit code 3."""

    exit_code = 3


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
