"""Choices of config groups without a YAML file: classes of other packages."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.config_store import ConfigStore

from bevreshape.config.command_line import CONFIG_DIR, asks_for_help
from bevreshape.config.construct import TARGET
from bevreshape.config.entry_points import ENTRY_POINTS, class_choice, entry_point_classes
from bevreshape.config.paths import conf_dir
from bevreshape.errors import InputError

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""A dotted Python path."""


def register_choices(arguments: Sequence[str]) -> None:
    """Register the entry points of installed packages, and the dotted paths of a command line, as choices.

    In a group of several nodes an entry point's node has its name, and that of a dotted path the name of the class. A
    head that is chosen alone, as in ``head=mine.Head``, is the head ``segmentation``.

    Args:
        arguments: of the command, such as ``reshaper=mine.ColumnMean``.

    Raises:
        InputError: when a class has the name of a built-in choice, or a dotted path cannot be imported.
    """
    chosen = [argument.lstrip("+").partition("=")[::2] for argument in arguments]
    lists = {group for group, values in chosen if "," in values.partition("[")[2].partition("]")[0]}
    alone = None if "head" in lists else "segmentation"
    _register_entry_points(asks_for_help(arguments), alone)
    for group, values in chosen:
        for value in re.split(r"[\[\],]", values) if group in ENTRY_POINTS else ():
            name = value.strip(" '\"")
            if DOTTED.fullmatch(name) and not _is_file(group, name, arguments):
                try:
                    node = class_choice(group, name, alone if group == "head" else None)
                except InputError as error:
                    raise InputError(f"{group}={name}: {error}") from error
                ConfigStore.instance().store(group=group, name=name, node=node)


def _register_entry_points(names_alone: bool, head: str | None) -> None:
    """Register all entry points; with ``names_alone`` without importing their classes. ``head`` names a head's node."""
    for group in ENTRY_POINTS:
        built_in = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
        for name, target in entry_point_classes(group).items():
            if name in built_in:
                raise InputError(
                    f"the installed package of {target} registers a {group} '{name}', which is the name of a built-in; "
                    f"rename its entry point, or choose {group}={target}"
                )
            node = {TARGET: target}
            if not names_alone:
                with suppress(InputError):  # reported when it is chosen
                    node = class_choice(group, target, head or name if group == "head" else name)
            ConfigStore.instance().store(group=group, name=name, node=node)


def _is_file(group: str, name: str, arguments: Sequence[str]) -> bool:
    """Return whether a config folder of the user has a YAML file of that name."""
    return any((folder / group / f"{name}.yaml").is_file() for folder in config_folders(arguments))


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folder of the YAML files, and the user's own of ``--config-dir``."""
    folders = [conf_dir()]
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, _, value = argument.partition("=")
        if flag in CONFIG_DIR and (value or following):
            folders.append(Path(value or following).expanduser())
    return folders
