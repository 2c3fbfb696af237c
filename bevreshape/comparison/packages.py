"""Packages of third parties in a config of a comparison."""

from collections.abc import Iterator, Mapping
from typing import Any

from bevreshape.config.construct import TARGET


def own_packages(config: Mapping[str, Any]) -> list[str]:
    """Return the packages of the classes that a config names, apart from this one; its command line named them."""
    return sorted({str(target).partition(".")[0] for target in _targets(config)} - {"bevreshape"})


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from [value] if key == TARGET else _targets(value)
