"""Check names of classes, cameras and labels that become keys, columns, folders or console output."""

from collections.abc import Iterable
from typing import Any

from bevreshape.errors import InputError, shown

RESERVED = ("mean",)
"""Names of metrics that belong to no class."""

LONGEST = 64
"""Highest number of characters in a class's name, which heads columns."""


def check_name(name: Any, where: str) -> str:
    """Return a name that is a text of printable characters, without blanks at its ends.

    Raises:
        InputError: naming the problem, after ``where``.
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
    """Return names of classes that are valid in metrics' keys such as ``iou/<class>/<band>`` and ``iou/mean``.

    Raises:
        InputError: naming the class, after ``where``.
    """
    found: list[str] = []
    for given in names:
        name = check_name(given, f"{where}: class")
        at = f"{where}: class {shown(name)}"
        if "/" in name:
            raise InputError(
                f"{at} holds a slash, the separator of metrics' keys; rename it, such as {name.replace('/', '_')!r}"
            )
        if name in RESERVED:
            raise InputError(f"{at} is the metrics' name for the mean of all classes; rename it")
        if len(name) > LONGEST:
            raise InputError(f"{at} has {len(name)} characters, more than {LONGEST}; shorten it")
        if name in found:
            raise InputError(f"{at} is there twice; rename or remove one")
        found.append(name)
    return tuple(found)
