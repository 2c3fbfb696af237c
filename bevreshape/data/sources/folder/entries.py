"""Check values of ``calibration.json``: keys, numbers, matrices."""

import sys
from typing import Any

import torch
from torch import Tensor

from bevreshape.errors import InputError, shown, suggest


def read_matrix(rows: Any, side: int, where: str) -> Tensor:
    """Return a (side, side) float64 matrix.

    Raises:
        InputError: when it is not that many rows of that many numbers.
    """
    if not (isinstance(rows, list) and all(isinstance(row, list) and all(map(_is_number, row)) for row in rows)):
        raise InputError(f"{where} is {shown(rows)}; it must be {side} rows of {side} numbers")
    widths = {len(row) for row in rows}
    if len(rows) != side or widths != {side}:
        raise InputError(f"{where} is {len(rows)}×{' or '.join(map(str, sorted(widths)))}; it must be {side}×{side}")
    return torch.tensor(rows, dtype=torch.float64)


def _is_number(value: Any) -> bool:
    """Return whether a value is a number of float64; the calibration's checks refuse NaN and infinity."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def numbers(values: Any, *counts: int) -> bool:
    """Return whether a value is a list of that many finite numbers."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(_is_number(v) and abs(v) <= sys.float_info.max for v in values)
    )


def check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    """Refuse a value that is not an object, has an unknown key, or lacks a needed one.

    Raises:
        InputError: naming the key, after ``where``.
    """
    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: this is {type(entry).__name__}, it must be an object with {', '.join(sorted(known))}"
        )
    for key in entry:
        if key not in known:
            raise InputError(f"{where}: {shown(key)} is an unknown key; {suggest(key, known)}")
    for key in sorted(needed):
        if key not in entry:
            raise InputError(f"{where}: {key!r} is missing; see data/README.md for the schema")
