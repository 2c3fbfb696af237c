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

DECIDED = {
    "seed": "budget.seeds, the number of judged seeds",
    "optimizer.lr": "budget.rates",
    "optimizer.optimizer.lr": "budget.rates",
    "trainer.max_steps": "budget.steps",
    "trainer.max_epochs": "budget.steps",
    "trainer.val_check_interval": "budget.validations, their number in a training",
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
        instead = "reshapers.NAME.OPTION for one of them" if key.startswith("reshaper.") else DECIDED.get(key)
        if instead is not None:
            raise InputError(f"{argument}: a comparison decides {key}; set {instead}")
    name, composed = compose_each_reshaper(name, [part for one in arguments for part in _budget(one)])
    return name, [*composed, f"command={quoted(f'python -m bevreshape.compare {shlex.join(arguments)}'.strip())}"]


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


def _written(value: object) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
