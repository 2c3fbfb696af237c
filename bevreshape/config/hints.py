"""Read type declarations of options, and describe in words what they allow."""

import json
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt
from typing_extensions import is_typeddict

UNIONS = (Union, types.UnionType)
"""Origins of ``A | B``."""


def describe(hint: Any) -> str:
    """Describe the allowed values of a declaration, for messages."""
    return _listed(dict.fromkeys(map(_kind, arms(hint))))


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def literals(hint: Any) -> Iterator[Any]:
    """Yield the literal values of an option, or of the members of its list."""
    for inner, _ in map(bare, arms(hint)):
        if get_origin(inner) is Literal:
            yield from get_args(inner)
        elif get_origin(inner) in (list, tuple, Sequence):
            yield from literals(get_args(inner)[0])


def show(value: Any) -> str:
    """Return a value as written in a config, truncated to 80 characters."""
    if isinstance(value, str) or value is None or isinstance(value, bool):
        text = repr(value) if isinstance(value, str) else json.dumps(value)
    elif isinstance(value, float):
        short = f"{value:g}"
        text = short if not math.isfinite(value) or (float(short) == value and "e" in short) else repr(value)
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(show, value))}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{name}: {show(inner)}' for name, inner in value.items())}}}"
    else:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


@cache
def fixed_keys(target: Any) -> dict[str, tuple[Any, bool]] | None:
    """Return the hint of every fixed key and whether it is required; ``None`` for a type without fixed keys."""
    if is_typeddict(target):
        hints = get_type_hints(target, include_extras=True)
        return {name: (_unqualified(hint), name in target.__required_keys__) for name, hint in hints.items()}
    if isclass(target) and is_dataclass(target):
        hints = get_type_hints(target, include_extras=True)
        return {
            field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
            for field in fields(target)
            if field.init
        }
    return None


def _unqualified(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (NotRequired, Required) else hint


def arms(hint: Any) -> list[Any]:
    """Return the members of a union, or the type itself."""
    if get_origin(hint) in UNIONS:
        return [arm for member in get_args(hint) for arm in arms(member)]
    return [hint]


def bare(arm: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without its ``Annotated``, and the annotations."""
    return (get_args(arm)[0], get_args(arm)[1:]) if get_origin(arm) is Annotated else (arm, ())


def _kind(arm: Any) -> str:
    inner, limits = bare(arm)
    origin, args = get_origin(inner), get_args(inner)
    if inner in (int, float):
        range_ = _range(limits)
        return f"an integer{range_}" if inner is int else f"a number{range_}" if range_ else "a finite number"
    if inner is bool:
        return "true or false"
    if inner in (None, type(None)):
        return "null"
    if inner is Path or (origin in UNIONS and Path in args):
        return "a path"
    if inner is str:
        return "text"
    if origin is Literal:
        return _listed(map(str, args))
    if origin is tuple and Ellipsis not in args:
        return f"a list of {len(args)}: {', '.join(map(describe, args))}"
    if origin in (list, tuple, Sequence):
        length = next((limit for limit in limits if isinstance(limit, Len)), Len(0))
        fixed = length.min_length == length.max_length
        count = f"{length.min_length}{'' if fixed else ' or more'} " if length.min_length else ""
        members = re.sub(r"^an? (finite )?([a-z]+)", r"\1\2s", describe(args[0]))
        if get_origin(args[0]) is Literal:
            return f"a list {f'of {count}' if count else ''}out of {members}"
        return f"a list of {count}{members}"
    if origin in (dict, Mapping):
        count = ", not empty," if any(isinstance(limit, Len) for limit in limits) else ""
        return f"a mapping{count} from names to {describe(args[1])}"
    if (keys := fixed_keys(inner)) is not None:
        return f"a mapping with {', '.join(keys)}"
    return f"an object of {getattr(inner, '__name__', inner)}"


def _range(limits: Sequence[Any]) -> str:
    low = next((limit.ge for limit in limits if isinstance(limit, Ge)), None)
    high = next((limit.le for limit in limits if isinstance(limit, Le)), None)
    above = next((limit.gt for limit in limits if isinstance(limit, Gt)), None)
    below = next((limit.lt for limit in limits if isinstance(limit, Lt)), None)
    if low is not None and high is not None:
        return f" from {low:.12g} to {high:.12g}"
    bounds = [
        f"{sign} {limit:.12g}"
        for sign, limit in ((">", above), ("≥", low), ("<", below), ("≤", high))
        if limit is not None
    ]
    return f" {' and '.join(bounds)}" if bounds else ""
