"""Reading and checking checkpoints."""

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bevreshape.errors import InputError, RunError, shown
from bevreshape.ops.shards import shard_like, whole
from bevreshape.storage.archive import MOST_OPCODES, check_archive
from bevreshape.storage.plain_values import check_plain
from bevreshape.storage.pretrained import WEIGHTS, read_pretrained
from bevreshape.storage.run_folder import difference

FORMAT = 3
"""Version of the recipe inside a checkpoint; increased when its meaning changes."""

MOST_DEPTH = 64
"""Deepest nesting of mappings and lists. Lightning's are nested about 8 deep, a config at most 32."""

LONGEST_NAME = 1000
"""Most characters of a weight's name, which messages quote."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of this program, or a folder of ``format=hub``, without executing anything in it.

    Returns:
        The Lightning checkpoint; ``["bevreshape"]`` is the recipe that rebuilds the model (plain values), and
        ``["state_dict"]`` its weights under ``model.``.

    Raises:
        InputError: when it is no checkpoint, damaged, unsafe, of another program, or of another format.
    """
    path = Path(path)
    if path.is_dir():
        return _checked(read_pretrained(path), path, path / WEIGHTS)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file; name a runs/<date>/<time>/checkpoints/best.ckpt")
    try:
        with path.open("rb") as file:
            check_archive(file, path)
            file.seek(0)
            checkpoint = _plain(torch.load(file, map_location="cpu", weights_only=True), path)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"checkpoint {path} holds Python objects that loading would execute; it is refused") from error
    except (
        ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError,
        OSError,
        RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise InputError(
            f"checkpoint {path} cannot be read ({_first_line(error)}); it is damaged or not a checkpoint"
        ) from error
    return _checked(checkpoint, path, path)


def _checked(checkpoint: Any, path: Path, weights: Path) -> dict[str, Any]:
    """Return a loaded checkpoint after checks of its recipe and its weights, which are in the file ``weights``."""
    recipe = checkpoint.get("bevreshape") if isinstance(checkpoint, dict) else None
    if not isinstance(recipe, dict) or "state_dict" not in checkpoint:
        raise InputError(
            f"checkpoint {path} is of another program: it has no 'bevreshape' recipe; train one with bevreshape.train"
        )
    check_plain(recipe, f"checkpoint {path}")
    if recipe.get("format") != FORMAT:
        raise InputError(
            f"checkpoint {path} has format {recipe.get('format')}, this version reads {FORMAT}; use the version that "
            "wrote it"
        )
    return {**checkpoint, "state_dict": _weights(checkpoint["state_dict"], path, weights.stat().st_size)}


def _plain(loaded: Any, path: Path) -> Any:
    """Return a checkpoint with plain mappings; a pickle may have replaced the methods of others.

    A shared object is copied for each place that refers to it. All copies together have at most ``MOST_OPCODES``
    values.
    """
    left = MOST_OPCODES

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MOST_DEPTH or left < 0:
            raise InputError(
                f"checkpoint {path} is nested deeper than {MOST_DEPTH} or has more than {MOST_OPCODES:,} values; use a "
                "file that bevreshape wrote"
            )
        if isinstance(value, dict):
            return {key: copied(inner, depth + 1) for key, inner in dict.items(value)}
        if isinstance(value, list):
            return [copied(inner, depth + 1) for inner in value]
        if type(value) is tuple:  # but no torch.Size
            return tuple(copied(inner, depth + 1) for inner in value)
        return value

    return copied(loaded, 0)


def _weights(state: Any, path: Path, size: int) -> dict[str, torch.Tensor]:
    """Return the state dict, and check that it holds only dense tensors with values in a file of ``size`` bytes."""
    if not isinstance(state, dict):
        raise InputError(
            f"checkpoint {path}: state_dict is a {type(state).__name__}, not weights by name; it is damaged"
        )
    for key, value in state.items():
        named = isinstance(key, str) and key.isprintable() and len(key) <= LONGEST_NAME
        if not named or not isinstance(value, torch.Tensor):
            raise InputError(
                f"checkpoint {path}: state_dict has a {type(value).__name__} under {shown(key)}, where weights by name "
                "belong; it is damaged"
            )
    total = sum(value.numel() * value.element_size() for value in state.values())
    if total > 2 * size:  # some models refer to a weight twice
        raise InputError(
            f"checkpoint {path}: its weights would take {total:,} bytes, which its {size:,} do not hold; it is damaged"
        )
    return state


def differences(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return how given weights differ from a module's in names, shapes and types; empty if they fit.

    The first two differences of each kind are listed.
    """
    kinds = (
        [
            f"{key} is {_kind(given[key], own[key])} there and {_kind(own[key], given[key])} here"
            for key in sorted(own.keys() & given.keys())
            if given[key].shape != own[key].shape or given[key].dtype != own[key].dtype
        ],
        [f"{key} is missing there" for key in sorted(own.keys() - given.keys())],
        [f"{key} is unknown here" for key in sorted(given.keys() - own.keys())],
    )
    said = [text for kind in kinds for text in kind[:2]]
    more = sum(map(len, kinds)) - len(said)
    return "; ".join(said) + (f" and {more} more" if more else "")


def load_weights(model: torch.nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Load a checkpoint's weights into a model, which may be sharded.

    Raises:
        InputError: when the model has another architecture, or a weight is NaN or infinite; names the tensors.
    """
    weights = model_weights(checkpoint)
    check_architecture(model, weights, path)
    own = model.state_dict()
    for key, value in weights.items():
        broken = ~value.isfinite()
        if broken.any():  # a buffer may hold infinities on purpose, such as a mask; then the new model has the same
            broken &= whole(own[key]).to(value.device).isfinite()
        if broken.any():
            raise InputError(
                f"checkpoint {path}: {key} holds {int(broken.sum())} values that are NaN or infinite, so the run had "
                "diverged; use an earlier checkpoint, or train again with a lower optimizer.lr"
            )
    model.load_state_dict({key: shard_like(value, own[key]) for key, value in weights.items()})


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint's model, under the names of the model."""
    prefix = "model."
    return {
        key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }


def check_architecture(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Compare a model with weights before they are loaded; the model may be on the device ``meta``.

    Raises:
        InputError: when the model has another architecture; names the first tensors that differ.
    """
    wrong = differences(model.state_dict(), weights)
    if wrong:
        raise InputError(
            f"checkpoint {path} has another architecture: {wrong}; set the encoder, reshaper, head and data it was "
            "trained with"
        )


def read_resumable(module: torch.nn.Module, path: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read a run's ``last.ckpt`` and compare it with the task that resumes, before a trainer restores it.

    Args:
        module: the task.
        path: of the checkpoint.
        config: of the run, to compare options that do not change the shapes of weights.

    Raises:
        InputError: when it lacks the state of training, or is of another model.
    """
    checkpoint = read_checkpoint(path)
    stored = checkpoint["bevreshape"].get("config")
    if isinstance(stored, dict) and (found := difference(stored, config)) is not None:
        key, saved, given = found
        raise RunError(
            f"checkpoint {path} was saved with {key}={saved} but its run's config has {key}={given}; restore the "
            "config.yaml that it began with, or start a new run"
        )
    kinds = {
        "epoch": int,
        "global_step": int,
        "loops": dict,
        "callbacks": dict,
        "optimizer_states": list,
        "lr_schedulers": list,
    }
    for key, kind in kinds.items():
        found = checkpoint.get(key)
        if type(found) is not kind or (isinstance(found, list) and len(found) != 1):
            what = "a list of one" if kind is list else f"of kind {kind.__name__}"
            raise InputError(
                f"checkpoint {path}: {key} must be {what}, not {type(found).__name__}; it is damaged, so "
                "start a new run"
            )
    if _counted_steps(checkpoint["loops"]) != checkpoint["global_step"]:
        raise InputError(
            f"checkpoint {path}: its loops counted {_counted_steps(checkpoint['loops'])} steps but global_step is "
            f"{checkpoint['global_step']}; it is damaged, so start a new run"
        )
    wrong = differences(module.state_dict(), checkpoint["state_dict"])
    if wrong:
        raise InputError(f"checkpoint {path} is of another model than its run's config: {wrong}; start a new run")
    return checkpoint


def _counted_steps(loops: Mapping[str, Any]) -> int | None:
    """Return the optimizer steps that Lightning's loops have counted; ``None`` if a loop has no state to restore."""
    try:
        loop = loops["fit_loop"]
        counted = [loop[key]["total"]["completed"] for key in ("epoch_progress", "epoch_loop.batch_progress")]
        steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    except (LookupError, TypeError):
        return None
    return steps if all(type(count) is int for count in (*counted, steps)) else None


@contextmanager
def restoring(path: str | Path, began: Callable[[], bool]) -> Iterator[None]:
    """Turn an error before training has begun into a message about the checkpoint.

    Raises:
        InputError: when restoring fails; names the checkpoint.
    """
    try:
        yield
    except InputError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if began():
            raise
        raise InputError(
            f"checkpoint {path} cannot be restored ({type(error).__name__}: {_first_line(error)}); it is damaged "
            "or of another version, so start a new run"
        ) from error


def _kind(tensor: torch.Tensor, other: torch.Tensor) -> str:
    """Return the shape of a tensor, or its type if the shapes are equal."""
    return str(tuple(tensor.shape)) if tensor.shape != other.shape else str(tensor.dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__
