"""A model as a folder for the Hugging Face hub: its recipe in ``config.json``, its weights in ``model.safetensors``."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bevreshape.errors import InputError, shown
from bevreshape.storage.files import open_regular, write_atomic, write_text
from bevreshape.storage.plain_values import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of the folder, by the names that the hub expects."""

RECIPE, DIGEST = "bevreshape", "weights_sha256"
"""Keys of ``config.json``: what rebuilds the model, and the checksum of its weights."""

MOST_HEADER_BYTES = 16 << 20
"""Largest header of the weights' file; one tensor takes about 100 bytes of it."""


def write_pretrained(folder: Path, recipe: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Write a model as a folder.

    Args:
        folder: created if needed; other files in it are kept.
        recipe: plain values that rebuild the model, as in a checkpoint.
        weights: of the model, by name.

    Raises:
        InputError: when the folder cannot be written, or JSON cannot hold the recipe.
    """
    content = save({key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}, {"format": "pt"})
    text = json.dumps({RECIPE: recipe, DIGEST: hashlib.sha256(content).hexdigest()}, indent=2, ensure_ascii=False)
    if json.loads(text)[RECIPE] != _with_lists(recipe):
        raise InputError(f"{folder}: the model's config has keys or values that are not JSON; use a checkpoint")
    write_atomic(folder / WEIGHTS, partial(_write, content))
    write_text(folder / CONFIG, f"{text}\n")


def read_pretrained(folder: Path) -> dict[str, Any]:
    """Read a folder that :func:`write_pretrained` wrote, without executing anything in it.

    Returns:
        As a checkpoint: ``["bevreshape"]`` is the recipe, not yet checked, and ``["state_dict"]`` the weights under
        ``model.``.

    Raises:
        InputError: when a file is missing, damaged or of another program.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(
                f"checkpoint {folder} is not a file, and has no {name}; name a "
                f"runs/<date>/<time>/checkpoints/best.ckpt, or a folder of format=hub with {CONFIG} and {WEIGHTS}"
            )
    stored = read_json(folder / CONFIG)
    if not isinstance(stored.get(RECIPE), dict):
        raise InputError(
            f"checkpoint {folder} is of another program: its {CONFIG} has no {RECIPE!r} recipe; name a folder that "
            "bevreshape.export format=hub wrote"
        )
    try:
        with open_regular(folder / WEIGHTS) as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read ({error.strerror}); change its permissions") from None
    found = hashlib.sha256(content).hexdigest()
    if found != stored.get(DIGEST):
        raise InputError(
            f"checkpoint {folder}: {WEIGHTS} has the SHA-256 {found[:12]}… but {CONFIG} names "
            f"{shown(stored.get(DIGEST))}; one of them is damaged or replaced, so copy both again"
        )
    return {RECIPE: stored[RECIPE], "state_dict": {f"model.{key}": value for key, value in _tensors(content, folder)}}


def _tensors(content: bytes, folder: Path) -> list[tuple[str, torch.Tensor]]:
    header = int.from_bytes(content[:8], "little")
    if header > MOST_HEADER_BYTES:
        raise InputError(
            f"checkpoint {folder}: the header of {WEIGHTS} has {header:,} bytes, at most {MOST_HEADER_BYTES:,} are "
            "read; use a folder that bevreshape wrote"
        )
    try:
        return [*load(content).items()]
    except (
        SafetensorError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"checkpoint {folder}: {WEIGHTS} cannot be read ({reason}); it is damaged, so copy it again"
        ) from error


def _with_lists(value: Any) -> Any:
    """Return plain values with lists instead of tuples, as JSON returns them."""
    if isinstance(value, Mapping):
        return {key: _with_lists(inner) for key, inner in value.items()}
    return [_with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
