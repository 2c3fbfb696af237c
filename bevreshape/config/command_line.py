"""The arguments of a command, before Hydra reads them."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from bevreshape.config.allowed import read_trust
from bevreshape.config.options import LocalPath, read_value
from bevreshape.errors import InputError

CONFIG_DIR = ("--config-dir", "-cd")
"""Hydra's flag for a further folder of configs."""

FLAGS_WITH_VALUE = (
    *CONFIG_DIR, "--cfg", "-c", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun", "--info", "-i",
    "--package", "-p",
)  # fmt: skip
"""Hydra's flags that may be followed by their value."""

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
"""Hydra's keys for local folders."""


def local_folders(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with folders as paths on this machine, ``~`` expanded.

    Raises:
        InputError: when a folder is a remote address.
    """
    found, is_folder = [], False
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if is_folder:
            argument = read_value("--config-dir", LocalPath, argument)
        elif equals and (key in FOLDERS or key == "--config-dir"):
            bare = value.strip("'\"")
            path = read_value(key, LocalPath, bare)
            argument = argument if path == bare else f"{key}={path}" if key.startswith("--") else f"{key}='{path}'"
        is_folder = argument in CONFIG_DIR
        found.append(argument)
    return found


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with all overrides before all flags; Hydra takes overrides on one side of a flag only."""
    overrides: list[str] = []
    flags: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        is_flag = argument.startswith("-") or (
            before in FLAGS_WITH_VALUE and (before in CONFIG_DIR or "=" not in argument)
        )
        (flags if is_flag else overrides).append(argument)
    return [*overrides, *flags]


def typed_value(arguments: Sequence[str], key: str) -> str | None:
    """Return the last value of ``key=value``; ``None`` if it is not given, or null."""
    found: list[Any] = [match[1] for argument in arguments if (match := re.fullmatch(rf"\+*{key}=(.*)", argument))]
    return found[-1].strip("'\"") if found and found[-1] not in ("", "null") else None


def typed_trust(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the packages of ``trust=…``."""
    typed = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith("trust=")]
    try:
        return read_trust(yaml.safe_load(typed[-1]) or []) if typed else ()
    except yaml.YAMLError:
        raise InputError(f"trust={typed[-1]} is not understood; write trust=[their_package]") from None


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask only for help or for the config."""
    return not {"--help", "-h"}.isdisjoint(arguments)


def quoted(text: str) -> str:
    """Quote a text as the value of an override, so that Hydra reads it unchanged; interpolations stay."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + (found[2] and r"\""), text) + '"'
