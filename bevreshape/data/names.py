"""Names that people give to classes, cameras and labels, refused where a key, a column, a folder or a console would
break."""

from collections.abc import Iterable
from typing import Any

from bevreshape.errors import InputError, shown

RESERVED = ("mean",)
"""What metrics call other values than a class's."""

LONGEST = 64
"""Characters of a class's name, which heads columns."""


def check_name(name: Any, where: str) -> str:
    """A name that is a text of printable characters, without blanks at its ends.

    Raises:
        InputError: naming what is wrong with it, after ``where``.
    """
    if not isinstance(name, str):
        raise InputError(
            f"{where} {shown(name)} is {type(name).__name__}, not a text; put it into quotes, or rename it"
        )
    odd = next((letter for letter in name if not letter.isprintable()), None)
    if odd is not None:
        raise InputError(f"{where} {shown(name)} holds the unprintable character {odd!r}; rename it")
    if not name or name != name.strip():
        raise InputError(f"{where} {shown(name)} is {'empty' if not name else 'with blanks at its ends'}; rename it")
    return name


def check_classes(names: Iterable[Any], where: str) -> tuple[str, ...]:
    """Names of classes, each of which can stand in metrics' keys such as ``iou/<class>/<band>`` beside ``iou/mean``.

    Raises:
        InputError: naming the class, after ``where``.
    """
    found: list[str] = []
    for given in names:
        name = check_name(given, f"{where}: class")
        at = f"{where}: class {shown(name)}"
        if "/" in name:
            raise InputError(
                f"{at} holds a slash, which parts the keys of metrics; rename it, such as {name.replace('/', '_')!r}"
            )
        if name in RESERVED:
            raise InputError(f"{at} is what metrics call the mean of all classes; rename it")
        if len(name) > LONGEST:
            raise InputError(f"{at} has {len(name)} characters, more than {LONGEST}; shorten it")
        if name in found:
            raise InputError(f"{at} is there twice; rename or remove one")
        found.append(name)
    return tuple(found)
