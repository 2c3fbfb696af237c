"""Checkpoints: what is read from one, and what is refused."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bevreshape.errors import InputError

FORMAT = 2
"""Raised when the recipe inside a checkpoint changes its meaning; :func:`_renewed` reads the earlier ones."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of this program without ever executing anything in it.

    Returns:
        The Lightning checkpoint; ``["bevreshape"]`` is the recipe that rebuilds the model (plain values), and
        ``["state_dict"]`` its weights under ``model.``.

    Raises:
        InputError: not a file, not a checkpoint, cut off, unsafe, of another program, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file; name a runs/<date>/<time>/checkpoints/best.ckpt")
    if not zipfile.is_zipfile(path):  # torch.save writes one; other pickles are not even looked into
        raise InputError(f"checkpoint {path} is cut off or not a checkpoint; name a .ckpt that bevreshape wrote whole")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"checkpoint {path} holds Python objects that loading would execute; it is refused") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({_first_line(error)}); it is damaged or not a checkpoint"
        ) from error
    recipe = checkpoint.get("bevreshape") if isinstance(checkpoint, dict) else None
    if not isinstance(recipe, dict) or "state_dict" not in checkpoint:
        raise InputError(
            f"checkpoint {path} is of another program: it has no 'bevreshape' recipe; train one with bevreshape.train"
        )
    if recipe.get("format") not in (1, FORMAT):
        raise InputError(
            f"checkpoint {path} has format {recipe.get('format')}, this version reads 1 to {FORMAT}; use the version that wrote it"
        )
    return {**checkpoint, "bevreshape": _renewed(recipe)}


def _renewed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe in the present format.

    Format 1 had no ``normalise_values``: its cross-attention projected V from the normalised tokens.
    """
    config = recipe.get("config")
    reshaper = config.get("reshaper") if isinstance(config, dict) else None
    if recipe["format"] != 1 or not isinstance(config, dict) or not isinstance(reshaper, dict):
        return recipe
    if not str(reshaper.get("_target_")).endswith(".CrossAttention"):
        return recipe
    return {**recipe, "config": {**config, "reshaper": {"normalise_values": True, **reshaper}}}


def differences(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """How given weights differ from a module's own in names and shapes, the first two of each kind; empty where they fit."""
    kinds = (
        [
            f"{key} is {tuple(given[key].shape)} there and {tuple(own[key].shape)} here"
            for key in sorted(own.keys() & given.keys())
            if given[key].shape != own[key].shape
        ],
        [f"{key} is missing there" for key in sorted(own.keys() - given.keys())],
        [f"{key} is unknown here" for key in sorted(given.keys() - own.keys())],
    )
    said = [sentence for kind in kinds for sentence in kind[:2]]
    more = sum(map(len, kinds)) - len(said)
    return "; ".join(said) + (f" and {more} more" if more else "")


def load_weights(model: torch.nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        InputError: when the model is of another architecture; names the first tensors that differ.
    """
    prefix = "model."
    weights = {
        key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    wrong = differences(model.state_dict(), weights)
    if wrong:
        raise InputError(
            f"checkpoint {path} is of another architecture: {wrong}; set the encoder, reshaper, head and data it was trained with"
        )
    model.load_state_dict(weights)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
