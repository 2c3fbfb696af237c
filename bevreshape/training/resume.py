"""Checks of a checkpoint's training state before a run resumes from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from bevreshape.errors import InputError, shown
from bevreshape.training.optimizer import AdamWOneCycle

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}

ABSENT = "absent"


def _fused_alike(own: Optimizer, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of an optimizer, fused where the stored ones are: that depends on their device."""
    groups, stored = own.state_dict()["param_groups"], given.get("param_groups")
    for group, other in zip(groups, stored if isinstance(stored, list) else [], strict=False):
        if isinstance(other, dict) and "fused" in other and other["fused"] in (None, False, True):
            group["fused"] = other["fused"]
    return groups


def check_optimizer(
    checkpoint: Mapping[str, Any], optimizer: AdamWOneCycle, model: nn.Module, total_steps: int, path: str | Path
) -> None:
    """Compare rates and schedule with those of the run's options at this step, and the shapes of moments with the
    weights.

    Args:
        checkpoint: of Lightning.
        optimizer: the options.
        model: the model that the optimizer updates.
        total_steps: of the whole run.
        path: of the checkpoint, for messages.

    Raises:
        InputError: when the run cannot resume from a value; names the first one.
    """
    steps = checkpoint["global_step"]
    if not 0 <= steps <= total_steps:
        raise InputError(
            f"checkpoint {path}: global_step={steps} is not among the {total_steps} steps of its run; it is damaged, "
            "so start a new run"
        )
    own, schedule = optimizer.after(model, total_steps, steps)
    given = _entries(checkpoint["optimizer_states"][0])
    pairs = (
        ("optimizer_states.param_groups", _fused_alike(own, given), given.get("param_groups")),
        ("lr_schedulers", schedule.state_dict(), checkpoint["lr_schedulers"][0]),
    )
    for name, expected, found in pairs:
        for key, wanted, stored in _unequal(name, expected, found):
            raise InputError(
                f"checkpoint {path}: {key} is {shown(stored)} but must be {shown(wanted)} by its run's config "
                f"after {steps} steps; it is damaged or of another version, so start a new run"
            )
    wrong = _wrong_moments(given.get("state"), own, steps)
    scaled = (
        "MixedPrecision" in checkpoint
    )  # then the first steps may have been skipped, until the loss scale was found
    if not wrong and not given["state"] and steps > 0 and not scaled:
        wrong = f"is empty after {steps} steps"
    if wrong:
        raise InputError(f"checkpoint {path}: optimizer_states.state {wrong}; it is damaged, so start a new run")


def check_callbacks(checkpoint: Mapping[str, Any], callbacks: Sequence[Callback], path: str | Path) -> None:
    """Compare the stored states of callbacks with the types of values that they save.

    Raises:
        InputError: when a state is missing or has another type; names the callback.
    """
    for callback in callbacks:
        stored = _entries(checkpoint["callbacks"].get(callback.state_key))
        for key, own in callback.state_dict().items():
            if key not in stored or not _fits(own, stored[key]):
                found = shown(stored[key]) if key in stored else "missing"
                raise InputError(
                    f"checkpoint {path}: callbacks: {key} of {type(callback).__name__} is {found}; it is damaged or of "
                    "another version, so start a new run"
                )


def _entries(state: Any) -> dict[Any, Any]:
    return state if isinstance(state, dict) else {}


def _unequal(key: str, wanted: Any, stored: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys at which two plain values differ by more than rounding, and both values."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        for name in wanted | stored:
            yield from _unequal(f"{key}.{name}", wanted.get(name, ABSENT), stored.get(name, ABSENT))
    elif isinstance(wanted, list | tuple) and isinstance(stored, list | tuple) and len(wanted) == len(stored):
        for number, pair in enumerate(zip(wanted, stored, strict=True)):
            yield from _unequal(f"{key}[{number}]", *pair)
    elif _is_number(wanted) and _is_number(stored):
        if not math.isclose(wanted, stored, rel_tol=1e-9):
            yield key, wanted, stored
    elif type(wanted) is not type(stored) or wanted != stored:
        yield key, wanted, stored


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong_moments(state: Any, optimizer: Optimizer, steps: int) -> str:
    """Return what is wrong with the moments of parameters; empty if nothing is. Without a gradient there are none."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(state, dict) or not all(type(key) is int and 0 <= key < len(parameters) for key in state):
        return f"is {shown(state)}, not moments by the indices of {len(parameters)} parameters"
    for number, entry in state.items():
        if not isinstance(entry, dict) or entry.keys() != MOMENTS:
            return f"[{number}] is {shown(entry)}, not {', '.join(sorted(MOMENTS))}"
        for key, value in entry.items():
            shape = torch.Size() if key == "step" else parameters[number].shape
            if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
                what = tuple(value.shape) if isinstance(value, Tensor) else shown(value)
                return f"[{number}].{key} is {what}, where {tuple(shape)} floats belong"
            if not value.isfinite().all() or (key == "exp_avg_sq" and (value < 0).any()):
                return f"[{number}].{key} holds impossible values, such as {value.flatten()[value.argmin()].item():g}"
        if not 1 <= entry["step"].item() <= steps:
            return f"[{number}].step is {entry['step'].item():g} after {steps} steps"
    return ""


def _fits(own: Any, found: Any) -> bool:
    """Return whether a value has the type that a callback saves.

    ``None`` is a score that is not known yet; a mapping contains scores.
    """
    if isinstance(own, dict):
        return isinstance(found, dict) and all(isinstance(key, str) and _fits(0, found[key]) for key in found)
    if isinstance(own, str):
        return isinstance(found, str)
    score = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    return _is_number(score) or (score is None and own is None)
