"""What a file that came from anywhere may hold, and how to put it there."""

from collections.abc import Iterator
from typing import Any

CANARY = "canary"
CALLS = (
    "${oc.create:{_target_:os.mkdir,path:canary}}",
    "${oc.env:HOME}",
    "${hydra:runtime.cwd}",
    "before ${name} after",
    "\\${name}",
    "${",
)
"""What Hydra or OmegaConf would resolve."""


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values that are not containers."""
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield path
    else:
        for key, value in items:
            yield from leaves(value, (*path, key))


def changed(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = changed(node[path[0]], path[1:], value)
    return copy
