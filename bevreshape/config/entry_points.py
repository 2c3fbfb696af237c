"""Config nodes for classes of other packages, named by entry points or dotted paths."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any

from bevreshape.config.construct import TARGET, locate
from bevreshape.config.groups import GIVEN, NAMED
from bevreshape.config.options import declared
from bevreshape.errors import InputError

ENTRY_POINTS: Mapping[str, str] = {
    "data": "bevreshape.data",
    "encoder": "bevreshape.encoders",
    "reshaper": "bevreshape.reshapers",
    "head": "bevreshape.heads",
    "objective": "bevreshape.objectives",
    "metric": "bevreshape.metrics",
}
"""Config group → entry-point group, in which other packages register their classes."""


def entry_point_classes(group: str) -> dict[str, str]:
    """Return the classes of other installed packages for a config group: name → ``package.module.Class``.

    Raises:
        InputError: when two packages register one name.
    """
    found: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS[group]) if group in ENTRY_POINTS else ():
        target = point.value.replace(":", ".")
        if found.setdefault(point.name, target) != target:
            raise InputError(
                f"two installed packages register a {group} '{point.name}' ({found[point.name]} and {target}); "
                f"uninstall one, or choose {group}={target}"
            )
    return found


def class_choice(group: str, target: str, name: str | None = None) -> dict[str, Any]:
    """Return the config node of a class: its target, and the options of its signature.

    An option without a default must be given. A default that is no plain value is left to the class.

    Args:
        group: of the config.
        target: ``package.module.Class``.
        name: of the node in a group of several; by default the class's, as in ``smooth_l1`` of ``SmoothL1``.

    Raises:
        InputError: when the class cannot be imported.
    """
    node = {TARGET: target, **_options(locate(target), GIVEN.get(group, ()))}
    if group not in NAMED:
        return node
    return {name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target.rpartition(".")[2]).lower(): node}


def _options(build: Any, given: tuple[str, ...] = ()) -> dict[str, Any]:
    hints, _ = declared(build)
    node: dict[str, Any] = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if name in ("self", *given) or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            hint = hints.get(name)
            node[name] = _options(hint) if is_dataclass(hint) else "???"
        else:
            try:
                node[name] = _plain(parameter.default)
            except TypeError:
                continue
    return node


def _plain(default: Any) -> Any:
    if default is None or type(default) in (bool, int, float, str):
        return default
    if isinstance(default, list | tuple):
        return [_plain(value) for value in default]
    if isinstance(default, Mapping):
        return {name: _plain(value) for name, value in default.items()}
    if is_dataclass(default) and not isinstance(default, type):
        return {field.name: _plain(getattr(default, field.name)) for field in fields(default) if field.init}
    raise TypeError(default)
