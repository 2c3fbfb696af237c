"""Build objects from plain config nodes, without Hydra and OmegaConf and without interpolation."""

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from bevreshape.config.options import read_options
from bevreshape.errors import InputError, suggest

TARGET = "_target_"
"""The key of a node that names the class to call."""

PARTIAL = "_partial_"
"""The key of a node that becomes a function of the missing arguments, such as an optimizer of its parameters."""

RESERVED = (TARGET, PARTIAL)


def construct(key: str, node: Mapping[str, Any], **given: Any) -> Any:
    """Build the object of a config node ``{_target_: package.module.Class, option: value, …}``.

    Nested nodes, in mappings and lists at any depth, are built first. All other values are passed unchanged.

    Args:
        key: of the node in the config, for messages.
        node: plain values.
        given: further arguments of its class, which the node must not hold.

    Raises:
        InputError: when a class cannot be imported, does not take the options, or refuses their values.
    """
    target = _target(key, node)
    check_options(key, target, node, given)
    options = {option: _built(f"{key}.{option}", value) for option, value in node.items() if option not in RESERVED}
    options = read_options(key, target, options)
    if node.get(PARTIAL):
        return partial(target, **options, **given)
    try:
        return target(**options, **given)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        values = ", ".join(f"{option}={value}" for option, value in node.items() if option != TARGET)
        raise InputError(
            f"{key}: {node[TARGET]} cannot be built with {values or 'its defaults'}: {' '.join(str(error).split())}"
        ) from error


def check_node(key: str, node: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Check a config node and its nested nodes against the signatures of their classes, without building them.

    Args:
        key: of the node in the config, for messages.
        node: plain values.
        given: names of further arguments that its class will get.

    Raises:
        InputError: as :func:`construct`, except for errors that the class itself raises.
    """
    target = _target(key, node)
    check_options(key, target, node, given)
    for option, value in node.items():
        inner = _nodes(f"{key}.{option}", value)
        for place, found in inner:
            check_node(place, found)
        if not inner and option not in RESERVED:
            read_options(key, target, {option: value})


def taken(key: str, node: Mapping[str, Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the offered arguments that the class of a node takes."""
    parameters = inspect.signature(_target(key, node)).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in offered.items() if name in parameters or takes_all}


def accepted(key: str, node: Mapping[str, Any], offered: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the offered arguments that the class of a node takes and the node does not set."""
    parameters = inspect.signature(_target(key, node)).parameters
    return tuple(name for name in offered if name in parameters and name not in node)


def _target(key: str, node: Mapping[str, Any]) -> Any:
    name = node.get(TARGET)
    if not name:
        raise InputError(f"{key}.{TARGET} is missing; choose {key}=NAME, or set {key}.{TARGET} to a class")
    if not isinstance(name, str):
        raise InputError(f"{key}.{TARGET}={name!r} must be the dotted name of a class, such as package.module.Class")
    found = locate(name)
    if not callable(found):
        raise InputError(f"{key}.{TARGET}={name} is a {type(found).__name__}, not a class; name a class in it")
    try:
        inspect.signature(found)
    except ValueError:
        raise InputError(
            f"{key}.{TARGET}={name} has no signature that lists its options; name a class of Python"
        ) from None
    return found


def _nodes(key: str, value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the outermost nodes inside a value, with their keys."""
    if isinstance(value, Mapping):
        if TARGET in value:
            return [(key, value)]
        return [found for name, inner in value.items() for found in _nodes(f"{key}.{name}", inner)]
    if isinstance(value, list):
        return [found for number, inner in enumerate(value) for found in _nodes(f"{key}[{number}]", inner)]
    return []


def locate(target: str) -> Any:
    """Import the object of a dotted name.

    Raises:
        InputError: when there is no such object, or its module cannot be imported.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # TypeError: only dots; ValueError: an empty name
        raise InputError(f"{target} cannot be imported: {error}") from error


def check_options(key: str, target: Callable[..., Any], node: Mapping[str, Any], given: Collection[str]) -> None:
    """Compare the options of a node with the signature of its class.

    Raises:
        InputError: when the class does not have an option, or a required option is missing.
    """
    parameters = inspect.signature(target).parameters
    hydra = [
        option for option in node if str(option).startswith("_") and option not in RESERVED and option not in parameters
    ]
    if hydra:
        raise InputError(
            f"{key}.{hydra[0]} is not supported; a node has {TARGET} (and {PARTIAL}) and the options of its class"
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    options = [name for name in parameters if name not in given and name != "self"]
    for name in node:
        if name not in options and name not in RESERVED:
            raise InputError(
                f"{key}: {target.__name__} has no option {name}; "
                f"{suggest(str(name), options) if options else 'it has none'}"
            )
    if node.get(PARTIAL):
        return
    missing = [
        n for n, p in parameters.items() if p.default is p.empty and n not in given and n not in node and n != "self"
    ]
    if missing:
        raise InputError(f"{key}: {target.__name__} needs {', '.join(missing)}; set {key}.{missing[0]}=…")


def _built(key: str, value: Any) -> Any:
    """Return a value with its nested nodes built."""
    if isinstance(value, Mapping):
        if TARGET in value:
            return construct(key, value)
        return {name: _built(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_built(f"{key}[{number}]", inner) for number, inner in enumerate(value)]
    return value
