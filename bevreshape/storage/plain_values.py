"""Reading checkpoints' recipes and run folders as plain values.

Such a file may come from an unknown source. It may hold mappings, lists, strings and numbers, but no string that Hydra
or OmegaConf would resolve. :mod:`bevreshape.config.allowed` lists the classes that it may name.
"""

import csv
import io
import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bevreshape.errors import InputError
from bevreshape.storage.files import parsed_mb

MOST_VALUES, MOST_DEPTH, MOST_CHARACTERS, MOST_BYTES = 100_000, 32, 100_000, 64 << 20
"""Limits of a stored config, string or file: far above any that bevreshape writes, but small enough to read at once."""

MOST_YAML_BYTES, MOST_JSON_MB = 4 << 20, 100
"""Largest YAML text (a megabyte is read in about a second), and largest memory of a JSON text's values in MB."""


def check_plain(node: Any, where: str) -> None:
    """Refuse values that no config of bevreshape holds: other types, interpolations, and too many or too long values.

    Args:
        node: from a file, or from a config that will be stored.
        where: the file or key, for messages.

    Raises:
        InputError: when a value is refused; names the key.
    """
    left = MOST_VALUES

    def visit(value: Any, key: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if depth > MOST_DEPTH or left < 0:
            raise _too_much(where)
        if type(value) is dict:
            for name, inner in value.items():
                if type(name) not in (str, int, float, bool):
                    raise InputError(
                        f"{where}: {key or 'its top'} has a key that is a {type(name).__name__}, not a text"
                    )
                visit(name, key, depth + 1)
                visit(inner, f"{key}.{short(name)}".lstrip("."), depth + 1)
        elif type(value) in (list, tuple):
            for number, inner in enumerate(value):
                visit(inner, f"{key}[{number}]", depth + 1)
        elif type(value) is str:
            _check_text(value, f"{where}: {key}")
        elif type(value) is int and not -(2**63) <= value < 2**63:
            raise InputError(f"{where}: {key} is an integer of {value.bit_length()} bits, which no option takes")
        elif value is not None and type(value) not in (bool, int, float):
            raise InputError(f"{where}: {key} is a {type(value).__name__}, not a plain value")

    visit(node, "", 0)


def _too_much(where: str) -> InputError:
    return InputError(
        f"{where} is nested deeper than {MOST_DEPTH} or has more than {MOST_VALUES} values, which no config has; use "
        "another file"
    )


def _check_text(text: str, where: str) -> None:
    if "${" in text:
        raise InputError(
            f"{where} holds {short(text)!r}, which is written like an interpolation; stored values are never resolved, "
            "so write its value"
        )
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{where} is a text of {len(text)} characters, which no option takes")
    if any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" for sign in text):
        raise InputError(f"{where} holds {short(text)!r} with control characters, which no option takes")


class _TooMuch(Exception):
    """A text has more values than allowed."""


class _Loader(yaml.SafeLoader):
    """Load plain values and refuse references, a few of which can stand for any amount of values.

    Values are counted while reading, as :func:`check_plain` counts them.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.left, self.depth = MOST_VALUES, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "a reference, which no run writes", event.start_mark)
        self.left -= 1
        if self.depth > MOST_DEPTH or self.left < 0:
            raise _TooMuch
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of plain values, for instance from a run's ``config.yaml``.

    Raises:
        InputError: when it is damaged or no such mapping; names the file.
    """
    text = _read_text(path, MOST_YAML_BYTES)
    try:
        found = yaml.load(text, _Loader)
    except _TooMuch:
        raise _too_much(str(path)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or no YAML ({_reason(error)}); restore it, or name another folder"
        ) from None
    return _checked_mapping(found, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping of plain values, for instance from a run's ``metrics.json``.

    Raises:
        InputError: when it is damaged or no such mapping; names the file.
    """
    text = _read_text(path)
    if parsed_mb(text) > MOST_JSON_MB:
        raise _too_much(str(path))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or no JSON ({_reason(error)}); restore it, or name another folder"
        ) from None
    return _checked_mapping(found, path)


def read_history(path: Path) -> list[dict[str, str]]:
    """Read the rows of a run's ``history.csv``, one per validation, with values as strings.

    Raises:
        InputError: when it is damaged; names the file and the line.
    """
    remedy = "restore it, or rename it if its rows may be lost"
    try:
        text = _read_text(path)
        if "\0" in text:
            raise InputError(f"{path} is damaged: it holds bytes of 0; {remedy}")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = next(lines, [])
        if "step" not in columns or len(set(columns)) < len(columns):
            raise InputError(f"{path} is damaged: its first line does not list columns with step; {remedy}")
        rows = []
        for values in lines:
            row = dict(zip(columns, values, strict=False))
            if len(values) != len(columns) or not row["step"].isdecimal() or not all(map(_is_figure, values)):
                raise InputError(
                    f"{path} is damaged: line {lines.line_num} is no row of {len(columns)} figures; {remedy}"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} is damaged: it is no CSV ({error}); {remedy}") from None
    return rows


def _is_figure(text: str) -> bool:
    """Return whether a text is a number, or empty for an unknown one."""
    try:
        return text == "" or math.isfinite(float(text)) or text in ("nan", "inf", "-inf")
    except ValueError:
        return False


def _read_text(path: Path, most: int = MOST_BYTES) -> str:
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing or not a file; name a folder that bevreshape wrote")
        if path.stat().st_size > most:
            raise InputError(f"{path} has more than {most >> 20} MB, so bevreshape did not write it; restore it")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: it is no UTF-8 text; restore it, or name another folder") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); change its permissions, or name another folder"
        ) from None


def _checked_mapping(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        kind = "empty" if found is None else f"a {type(found).__name__}, not a mapping of names"
        raise InputError(f"{path} is damaged: it is {kind}; restore it, or name another folder")
    check_plain(found, str(path))
    return found


def short(value: Any) -> str:
    """Return an untrusted value as text, shortened for a message."""
    text = str(value) if not isinstance(value, int) or abs(value) < 2**64 else "a large integer"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())[:120] or type(error).__name__


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML for :func:`read_yaml`, without references."""
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Write YAML without references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
