"""Compilation of many models in one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch

LIMITS = (("recompile_limit", "accumulated_recompile_limit"), ("cache_size_limit", "accumulated_cache_size_limit"))
"""Torch's limits of compilations of one function, and their older names."""

MANY = 10_000


def compile_alone(module: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return ``torch.compile`` of a module, or of a method of one, with a cache of its own.

    Torch keeps compiled code by function. All models of a class share its ``forward``: torch would compile it for eight
    of them, run the others uncompiled, and look through the code of all of them at every call.

    Args:
        module: in its final mode; or a method of one.
        options: of ``torch.compile``.
    """

    def call(*args: Any) -> Any:
        return module(*args)

    own = FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
    return torch.compile(own, **options)


@contextmanager
def any_number_of_models() -> Iterator[None]:
    """Lift torch's limits for functions that models share after a graph break, while they are called first.

    If this version of torch has other limits, they stay.
    """
    config: Any = torch._dynamo.config
    known = next((names for names in LIMITS if all(hasattr(config, name) for name in names)), ())
    with config.patch(dict.fromkeys(known, MANY)):
        yield
