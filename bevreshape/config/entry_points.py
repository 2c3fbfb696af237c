"""Classes of other installed packages."""

import inspect
from typing import Any

from bevreshape.config.construct import locate
from bevreshape.errors import InputError


def reshaper_fields(target: str) -> dict[str, Any]:
    """The config node of an announced reshaper: its target, and the signature's fields with their defaults."""
    fields: dict[str, Any] = {"_target_": target}
    try:
        found = locate(target)
    except InputError:
        return fields  # it is said when somebody chooses it
    for parameter in inspect.signature(found).parameters.values():
        if parameter.name in ("self", "source", "grid") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        fields[parameter.name] = "???" if parameter.default is parameter.empty else parameter.default
    return fields
