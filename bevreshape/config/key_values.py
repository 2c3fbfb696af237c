"""``key=value`` arguments of scripts without Hydra, read by the types of a TypedDict."""

from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import yaml

from bevreshape.config.options import LocalPath, read_settings
from bevreshape.errors import InputError, suggest


def read_key_values(schema: type, defaults: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a script: its defaults, changed by ``key=value`` arguments.

    Args:
        schema: a TypedDict of the keys and their types. Values are written as in YAML, strings and paths unquoted.
        defaults: of every key.
        arguments: such as ``samples=2`` and ``trust=[mine,yours]``.

    Raises:
        InputError: when an argument is no ``key=value``, a key is unknown, or a value is out of range.
    """
    hints = get_type_hints(schema, include_extras=True)
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise InputError(f"{argument} is not KEY=VALUE; write one of {', '.join(f'{name}=' for name in hints)}")
        if key not in hints:
            raise InputError(f"{key} is no option; {suggest(key, hints)}")
        given[key] = text if hints[key] in (str, LocalPath) else _parsed(argument, text)
    return read_settings(schema, {**defaults, **given})


def _parsed(argument: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{argument} is not understood; write KEY=VALUE, a list as [a,b]") from None
