"""Find the encodings of a reshaper's tokens, and move them with permuted tokens (claim A11)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import singledispatch
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.reshapers import CrossAttention, GeometricReshaper, Reshaper, SelfAttention
from bevreshape.reshapers.positional import PositionalEncoding, RotaryEncoding

Encodings = list[tuple[nn.Module, tuple[int, ...]]]
"""Modules that encode the positions of tokens, and which of their inputs and outputs are tokens, (b, …, tokens, c)."""


@singledispatch
def token_encodings(reshaper: Reshaper) -> Encodings:
    """Return the modules that encode positions of a reshaper's source tokens, not those of its queries.

    The list is empty for one without encodings. Register the encodings of your own class by
    ``token_encodings.register(Mine, lambda mine: [(mine.encode, (0,))])``.

    Raises:
        InputError: if it has encodings but is not registered, or they follow from the calibration.
    """
    if any(isinstance(module, PositionalEncoding | RotaryEncoding) for module in reshaper.modules()):
        raise InputError(
            f"{reshaper.name}: it has positional encodings, but which are those of its tokens is not known; register "
            "it with bevreshape.analysis.token_encodings.token_encodings"
        )
    return []


@token_encodings.register
def _(reshaper: GeometricReshaper) -> Encodings:
    raise InputError(
        f"{reshaper.name}: its tokens' positions follow from the calibration, which cannot be permuted; leave "
        "move_encodings off"
    )


@token_encodings.register
def _(reshaper: CrossAttention) -> Encodings:
    rotary, rays = reshaper.attention.rotary, reshaper.encode_rays
    found: Encodings = [(reshaper.encode_tokens, (0,))]
    found += [] if rays is None else [(rays, (0,))]
    return found + ([] if rotary is None else [(rotary, (1,))])  # keys


@token_encodings.register
def _(reshaper: SelfAttention) -> Encodings:
    rotary = reshaper.attention.rotary
    return [(reshaper.encode, (0,))] + ([] if rotary is None else [(rotary, (0, 1))])  # queries are tokens too


def can_move(reshaper: Reshaper) -> bool:
    """Return whether a reshaper has encodings that can move with its tokens."""
    try:
        return bool(token_encodings(reshaper))
    except InputError:
        return False


@contextmanager
def moved_encodings(reshaper: Reshaper, permutation: Int[Tensor, " nt"]) -> Iterator[None]:
    """Move encodings with permuted tokens: in the context, the token at position j has the encoding of position π[j].

    Every encoding receives its tokens in the original order, and its result is permuted again.

    Args:
        reshaper: the reshaper that receives tokens permuted by π.
        permutation: permutation of all cameras' tokens.

    Raises:
        InputError: see :func:`token_encodings`.
    """
    inverse = permutation.argsort()
    with ExitStack() as hooks:
        for module, positions in token_encodings(reshaper):
            hooks.callback(_hook_inputs(module, positions, inverse).remove)
            hooks.callback(_hook_outputs(module, positions, permutation).remove)
        yield


def _hook_inputs(module: nn.Module, positions: tuple[int, ...], permutation: Tensor) -> Any:
    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_move(x, permutation) if i in positions else x for i, x in enumerate(given))

    return module.register_forward_pre_hook(hook)


def _hook_outputs(module: nn.Module, positions: tuple[int, ...], permutation: Tensor) -> Any:
    def hook(_: nn.Module, __: Any, made: Any) -> Any:
        if isinstance(made, Tensor):
            return _move(made, permutation)
        return tuple(_move(x, permutation) if i in positions else x for i, x in enumerate(made))

    return module.register_forward_hook(hook)


def _move(x: Tensor, permutation: Tensor) -> Tensor:
    """Permute (b, …, n·t, c), or (b·n, …, t, c) if cameras are processed separately."""
    n = len(permutation) // x.shape[-2]
    x = x.unflatten(0, (-1, n)).movedim(1, -3)  # b … n t c
    x = x.flatten(-3, -2)[..., permutation.to(x.device), :].unflatten(-2, (n, -1))
    return x.movedim(-3, 1).flatten(0, 1)
