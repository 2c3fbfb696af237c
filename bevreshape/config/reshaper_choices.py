"""``reshaper=a,b`` of commands that take several view transformers, and the arguments that a comparison decides."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence

import yaml

from bevreshape.config.choices import DOTTED, config_folders
from bevreshape.config.command_line import quoted, typed_value
from bevreshape.config.entry_points import entry_point_classes
from bevreshape.errors import InputError, suggest
from bevreshape.storage.plain_values import read_yaml

DECIDED = {
    "seed": "budget.seeds, the number of judged seeds",
    "optimizer.lr": "budget.rates",
    "optimizer.optimizer.lr": "budget.rates",
    "trainer.max_steps": "budget.steps",
    "trainer.max_epochs": "budget.steps",
    "trainer.val_check_interval": "budget.validations, their number in a training",
    "trainer.early_stopping": "budget.steps, which all trainings take to their end",
    "resume": "the same name=, which resumes",
}
"""Keys of ``bevreshape.train`` that a comparison decides, and what to set instead."""


def compose_each_reshaper(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Compose the config of each reshaper of ``reshaper=a,b`` below ``reshapers``; by default of all reshapers.

    Raises:
        InputError: when a reshaper is unknown, or two have the same name.
    """
    files = {path.stem for folder in config_folders(arguments) for path in (folder / "reshaper").glob("*.yaml")}
    known = sorted(files | set(entry_point_classes("reshaper")))
    wanted = typed_value(arguments, "reshaper") or "all"
    chosen = known if wanted == "all" else [one.strip() for one in wanted.strip("[]").split(",")]
    names: dict[str, str] = {}
    for one in chosen:
        if one not in known and not DOTTED.fullmatch(one):
            raise InputError(f"reshaper={one} is unknown; {suggest(one, known)}")
        if names.setdefault(one.rpartition(".")[2], one) != one:
            raise InputError(
                f"reshaper={wanted}: two are named {one.rpartition('.')[2]}; give one of them another name"
            )
    kept = [argument for argument in arguments if not argument.startswith("reshaper=")]
    return name, [*kept, *(f"+reshaper@reshapers.{key}={one}" for key, one in names.items())]


def compose_comparison(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Return the arguments of a comparison for Hydra: its reshapers, its budget key by key, and the line as typed.

    Raises:
        InputError: as :func:`compose_each_reshaper`; when an argument is decided by the comparison.
    """
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        instead = "reshapers.NAME.OPTION for one of them" if key.startswith("reshaper.") else _decided(key)
        if instead is not None:
            raise InputError(f"{argument}: a comparison decides {key}; set {instead}")
    given = [part for one in arguments for part in _budget(one)]
    name, composed = compose_each_reshaper(name, [*given, *_scaled_rungs(given)])
    return name, [*composed, f"command={quoted(f'python -m bevreshape.compare {shlex.join(arguments)}'.strip())}"]


def _decided(key: str) -> str | None:
    """Return what to set instead of a key that a comparison decides, or of one below it."""
    return next((instead for own, instead in DECIDED.items() if f"{key}.".startswith(f"{own}.")), None)


def _budget(argument: str) -> Sequence[str]:
    """Return ``budget={steps: 100}`` as ``budget.steps=100``, and any other argument as it is."""
    match = re.fullmatch(r"budget=(\{.*\})", argument, re.DOTALL)
    if match is None:
        return [argument]
    try:
        given = yaml.safe_load(match[1])
    except yaml.YAMLError:
        given = None
    if not isinstance(given, Mapping):
        raise InputError(f"{argument} is not understood; write budget=quick, or budget.steps=400 and so on")
    return [f"budget.{key}={_written(value)}" for key, value in given.items()]


def _scaled_rungs(arguments: Sequence[str]) -> list[str]:
    """Return rungs in the ratio of the chosen budget's to its steps, if other steps are given but no rungs."""
    steps, chosen = typed_value(arguments, r"budget\.steps"), typed_value(arguments, "budget") or "quick"
    if steps is None or not steps.isdecimal() or typed_value(arguments, r"budget\.rungs") is not None:
        return []
    paths = [folder / "budget" / f"{chosen}.yaml" for folder in config_folders(arguments)]
    stored = next((read_yaml(path) for path in paths if path.is_file()), {})
    own, rungs = stored.get("steps"), stored.get("rungs")
    if not isinstance(own, int) or not isinstance(rungs, list) or not all(isinstance(one, int) for one in rungs):
        return []  # refused with its reason when it is read
    scaled = sorted({max(1, round(int(steps) * one / own)) for one in rungs}) if own > 0 else rungs
    return [f"budget.rungs={_written(scaled)}"]


def _written(value: object) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
