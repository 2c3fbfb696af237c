"""Read the 3D boxes of a frame, ``boxes/<frame>.json`` of a camera folder (schema: ``data/README.md``)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.data.sources.folder.entries import numbers
from bevreshape.errors import InputError, shown, suggest
from bevreshape.storage.files import read_json
from bevreshape.storage.store_path import DataPath

LONGEST_M, FARTHEST_M, MOST_DEG = 1000, 10_000, 3600
"""Largest plausible side of a box, distance along an axis, and yaw."""

MOST_MB = 50
"""Memory limit for reading the boxes of a frame, enough for 30,000."""

KEYS = ("category", "center_m", "size_m", "yaw_deg")


@dataclass(frozen=True)
class Boxes:
    """Hold upright boxes in the ego frame, in float64.

    Attributes:
        categories: of each of the k boxes.
        centers: (k, 3) x, y, z of the middle, metres.
        sizes: (k, 3) length, width, height, metres.
        yaws: (k,) radians, counter-clockwise seen from above; 0 points the length along x.
    """

    categories: tuple[str, ...]
    centers: Tensor
    sizes: Tensor
    yaws: Tensor

    def among(self, categories: Collection[str]) -> Bool[Tensor, " k"]:
        """Return which boxes are of one of these categories."""
        return torch.tensor([category in categories for category in self.categories], dtype=torch.bool)

    @property
    def from_above(self) -> Float[Tensor, "k 5"]:
        """Return (x, y, yaw, length, width), the input of :func:`~bevreshape.geometry.rasterize.rasterize_boxes`."""
        return torch.cat([self.centers[:, :2], self.yaws[:, None], self.sizes[:, :2]], dim=1)

    @property
    def corners(self) -> Float[Tensor, "k 8 3"]:
        """Return ego points, metres. Bit 0 of a corner's index means front, bit 1 left, bit 2 top."""
        bits = torch.tensor([[number >> axis & 1 for axis in range(3)] for number in range(8)], dtype=torch.float64)
        ahead, left, up = ((bits - 0.5) * self.sizes[:, None]).unbind(-1)  # k 8
        cos, sin = self.yaws.cos()[:, None], self.yaws.sin()[:, None]
        return self.centers[:, None] + torch.stack([ahead * cos - left * sin, ahead * sin + left * cos, up], dim=-1)


def read_boxes(path: DataPath, known: Sequence[str]) -> Boxes:
    """Read and check the boxes of a frame; a frame without boxes has an empty list.

    Args:
        path: the JSON file.
        known: categories that may occur.

    Raises:
        InputError: when the file is missing, not JSON, or not of the schema, a category is unknown, or a size is not
            positive.
    """
    entries = read_json(
        path,
        "there is no such file; write the frame's boxes, [] where it has none, or take it out of the split",
        MOST_MB,
    )
    if not isinstance(entries, list):
        raise InputError(f"{path}: this is {type(entries).__name__}; it must be a list of boxes")
    for number, entry in enumerate(entries):
        _check(entry, known, f"{path}: box {number}")
    values = torch.tensor(
        [[*entry["center_m"], *entry["size_m"], math.radians(entry["yaw_deg"])] for entry in entries],
        dtype=torch.float64,
    ).reshape(-1, 7)
    return Boxes(tuple(entry["category"] for entry in entries), values[:, :3], values[:, 3:6], values[:, 6])


def _check(entry: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict) or set(entry) != set(KEYS):
        found = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise InputError(f"{where}: this has {found or 'nothing'}; it must have {', '.join(KEYS)}")
    if entry["category"] not in known:
        raise InputError(
            f"{where}: category {shown(entry['category'])} is not in calibration.json under boxes; "
            f"{suggest(str(entry['category']), known)}"
        )
    for key in ("center_m", "size_m"):
        if not numbers(entry[key], 3):
            raise InputError(f"{where}: {key} is {shown(entry[key])}; it must be three numbers in metres")
    if min(entry["size_m"]) <= 0:
        raise InputError(f"{where}: size_m is {entry['size_m']}; length, width and height must be positive")
    if max(entry["size_m"]) > LONGEST_M or max(map(abs, entry["center_m"])) > FARTHEST_M:
        raise InputError(
            f"{where}: size_m is {entry['size_m']} and center_m {entry['center_m']}, above {LONGEST_M} or beyond "
            f"{FARTHEST_M} metres; are they millimetres, or world coordinates? They must be metres in the ego frame"
        )
    if not numbers([entry["yaw_deg"]], 1) or abs(entry["yaw_deg"]) > MOST_DEG:
        raise InputError(
            f"{where}: yaw_deg is {shown(entry['yaw_deg'])}; it must be a number of degrees, at most {MOST_DEG} either "
            "way"
        )
