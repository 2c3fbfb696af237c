"""Types and ranges of options, declared in signatures and checked before anything is built.

A class that a config can name declares every option in its constructor: ``height_m: Annotated[float, Ge(-10),
Le(10)]``. A mapping of fixed keys is declared as a dataclass or a TypedDict, so that unknown keys in it are refused.
:func:`read_options` checks a config node before its class is called. :func:`checked` checks the arguments of a library
call in the same way. Numbers are finite, ``true`` is no number, 2 is accepted for 2.0, 2.0 is no integer, and no string
is a number or a boolean.
"""

import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from typing import (
    Annotated,
    Any,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from typing_extensions import is_typeddict

from bevreshape.config.hints import arms, bare, describe, fixed_keys, literals, show
from bevreshape.errors import InputError, suggest

Built = TypeVar("Built", bound=type)


def local_path(path: str | Path) -> str:
    """Return a path on this machine, ``~`` expanded.

    Raises:
        InputError: when it is empty, or a remote address such as ``s3://bucket/x``.
    """
    text = str(path)
    if re.match(r"([^/\s@]+@)?[a-zA-Z][a-zA-Z0-9+.-]+:/", text):  # one letter is a drive
        raise InputError("is an address, not a path on this machine; copy or mount it, and name the local path")
    if not text.strip() or "\0" in text:
        raise InputError("is not a path; name a file or a folder")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise InputError("names the home folder of an unknown user; write the full path") from None


def data_root(path: str | Path) -> str:
    """Return a path on this machine, ``~`` expanded, or an address in an object store, such as ``s3://bucket/mine``.

    Raises:
        InputError: when it is empty, of an unknown store, or names no bucket.
    """
    text = str(path)
    if not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::)", text):
        return local_path(path)
    import fsspec  # of lightning, but not needed for help

    protocol, _, place = text.partition("://")
    if "::" in text:
        raise InputError("is a chain of stores; name one of them, such as s3://bucket/mine")
    if protocol not in fsspec.available_protocols():
        raise InputError(f"is in no store that fsspec knows; {suggest(protocol, fsspec.available_protocols())}")
    if not place.strip("/"):
        raise InputError(f"names nothing in the store; write {protocol}://bucket/mine")
    return text


Count = Annotated[int, Ge(1), Le(1024)]
"""A number of heads, layers, points or workers."""
CountOrNone = Annotated[int, Ge(0), Le(1024)]
"""The same, or 0 for none."""
Width = Annotated[int, Ge(1), Le(65_536)]
"""Channels, tokens or hidden units."""
Upsample = Annotated[int, Ge(1), Le(64)]
"""Fine cells per coarse cell along a side."""
BatchSize = Annotated[int, Ge(1), Le(65_536)]
"""Samples in a batch."""
Steps = Annotated[int, Ge(1), Le(1_000_000_000)]
"""Optimizer steps, samples or scenes."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""Seed of a random generator; numpy takes at most 32 bits."""
Share = Annotated[float, Ge(0), Le(1)]
"""A fraction or a probability, 0 to 1."""
OpenShare = Annotated[float, Gt(0), Lt(1)]
"""A fraction between 0 and 1, both excluded."""
Weight = Annotated[float, Ge(0), Le(1e6)]
"""A factor ≥ 0."""
Factor = Annotated[float, Gt(0), Le(1e9)]
"""A factor > 0."""
Height = Annotated[float, Ge(-100), Le(100)]
"""A height above the ground or the camera, in metres."""
Heights = Annotated[Sequence[Height], Len(1)]
"""Several heights, in metres."""
HeightRange = Annotated[Sequence[Height], Len(2, 2)]
"""[lowest, highest], in metres."""
Length = Annotated[float, Ge(0.001), Le(1000)]
"""A length or a distance, in metres."""
Depths = Annotated[Sequence[Length], Len(2)]
"""Borders of bands of depth, in metres."""
Edges = Annotated[Sequence[Annotated[float, Ge(-10_000), Le(10_000)]], Len(2, 2)]
"""[lowest, highest] coordinate on the ground, in metres."""
FocalLength = Annotated[float, Ge(1), Le(1e6)]
"""A length in pixels."""
ImageSize = Annotated[Sequence[Annotated[int, Ge(16), Le(16_384)]], Len(2, 2)]
"""[height, width] of images, in pixels."""
LocalPath = Annotated[str | Path, AfterValidator(local_path)]
"""A file or folder on this machine."""
DataRoot = Annotated[str | Path, AfterValidator(data_root)]
"""A folder on this machine or in an object store."""

CONFIG = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)


def read_options(key: str, target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options of a node to the types in the signature of its class: 2 to 2.0, a list to a tuple.

    Args:
        key: of the node in the config, for messages.
        target: the class; options without a declared type pass unchanged.
        options: by name; objects built from nested nodes are checked by their class.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    hints, defaults = declared(target)
    return {
        name: value
        if name not in hints or _is_default(value, defaults.get(name))
        else read_value(f"{key}.{name}", hints[name], value)
        for name, value in options.items()
    }


def read_settings(schema: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the composed config of a command to the types of its TypedDict.

    Raises:
        InputError: when the command does not have a key, with similar keys of any level; or as :func:`read_value`.
    """
    keys = fixed_keys(schema)
    assert keys is not None
    for name in settings:
        if name not in keys:
            known = {key: settings.get(key) for key in keys}
            raise InputError(f"{name} is not a key of this command; {suggest_key(str(name), known)}")
    for name in keys:
        if name not in settings:
            raise InputError(f"{name} is missing; leave it in the config, it must be {describe(keys[name][0])}")
    return {name: read_value(name, keys[name][0], value) for name, value in settings.items()}


def suggest_key(key: str, known: Mapping[str, Any]) -> str:
    """Return the end of an "unknown key" message: similar keys of a nested config, at any level.

    Args:
        key: dotted.
        known: the config.
    """
    paths = list(_paths(known))
    parent, _, name = key.rpartition(".")
    siblings = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == parent}
    close = get_close_matches(name, siblings, n=3, cutoff=0.7) or get_close_matches(name, siblings, n=1, cutoff=0.6)
    near = [siblings[other] for other in close]
    alike = [path for path in paths if path.rpartition(".")[2] == name]
    if found := near or alike:
        return f"did you mean {' or '.join(found[:3])}?"
    return suggest("", siblings.values() or known)


def _paths(known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in known.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")


def checked(target: Built) -> Built:
    """Make a class check the arguments of its constructor by their declared types, also when called from Python."""
    build = target.__init__  # type: ignore[misc]
    signature = inspect.signature(build)

    @wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        bound = signature.bind(self, *args, **kwargs)
        hints, _ = declared(build)
        for name, value in bound.arguments.items():
            if name in hints:
                bound.arguments[name] = read_value(f"{target.__name__}: {name}", hints[name], value)
        build(*bound.args, **bound.kwargs)

    target.__init__ = __init__  # type: ignore[misc]
    return target


def read_value(key: str, hint: Any, value: Any) -> Any:
    """Convert a value to its declared type.

    Args:
        key: of the value, for messages.
        hint: a type, with its range by ``Annotated``.
        value: plain, or holding objects.

    Raises:
        InputError: naming the key, the value and what it may be.
    """
    if hint is Any:
        return value
    if isinstance(value, Mapping):
        for arm in arms(hint):
            inner = bare(arm)[0]
            if (keys := fixed_keys(inner)) is not None:
                return _read_keys(key, inner, keys, value)
            if get_origin(inner) in (dict, Mapping):
                value = _read_entries(key, get_args(inner)[1], value)
    adapter = _adapter(hint)
    if adapter is None:
        return value
    try:
        plain = json.dumps(value)
    except (TypeError, ValueError):  # it holds objects
        plain = None
    try:
        if plain is None:
            return adapter.validate_python(value, strict=True)
        return adapter.validate_json(plain, strict=True)
    except ValidationError as error:
        raise InputError(_message(key, hint, value, error)) from None


def _read_keys(key: str, target: Any, keys: Mapping[str, tuple[Any, bool]], value: Mapping[Any, Any]) -> Any:
    """Convert a mapping of fixed keys to the dataclass or TypedDict ``target``."""
    for name in value:
        if name not in keys:
            raise InputError(f"{key}.{name} is unknown; {suggest(str(name), keys)}")
    missing = [name for name, (_, required) in keys.items() if required and name not in value]
    if missing:
        raise InputError(f"{key} lacks {missing[0]}, which must be {describe(keys[missing[0]][0])}")
    read = {name: read_value(f"{key}.{name}", keys[name][0], inner) for name, inner in value.items()}
    return read if is_typeddict(target) else target(**read)


def _read_entries(key: str, hint: Any, value: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert a mapping with arbitrary names."""
    for name in value:
        if not isinstance(name, str):
            raise InputError(f"{key} has the name {name!r}, which is not a string; put it into quotes")
    return {name: read_value(f"{key}.{name}", hint, inner) for name, inner in value.items()}


def _message(key: str, hint: Any, value: Any, error: ValidationError) -> str:
    shown = show(value)
    for found in error.errors(include_url=False):
        if found["type"] == "value_error":
            return f"{key}={shown} {found['ctx']['error']}"
    message = f"{key}={shown} must be {describe(hint)}"
    words = list(map(str, literals(hint)))
    unknown = [word for word in (value if isinstance(value, list | tuple) else [value]) if word not in words]
    near = suggest(unknown[0], words) if words and unknown and isinstance(unknown[0], str) else ""
    return f"{message}; {near}" if near.startswith("did you mean") else message


@cache
def declared(target: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return type hints and defaults of the named parameters of a class or function."""
    build = target.__init__ if inspect.isclass(target) else target
    names = getattr(inspect.unwrap(build), "__globals__", {})
    hints: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is not parameter.empty:
            defaults[name] = parameter.default
        if parameter.annotation is not parameter.empty:
            alone = types.SimpleNamespace(__annotations__={name: parameter.annotation})
            try:
                hints |= get_type_hints(alone, names, include_extras=True)
            except (NameError, TypeError):  # imported only for type checkers
                continue
    return hints, defaults


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a value equals a third party's default, None or infinite, which its hint does not allow."""
    return default is None is value or (isinstance(value, float) and type(default) is float and value == default)


@cache
def _adapter(hint: Any) -> TypeAdapter | None:
    """Return the adapter that converts values to a type; ``None`` for hints that only a type checker can use."""
    own_config = fixed_keys(hint) is not None  # pydantic accepts no config for these
    try:
        return TypeAdapter(hint) if own_config else TypeAdapter(hint, config=CONFIG)
    except (PydanticUserError, SchemaError, NameError, TypeError):
        return None
