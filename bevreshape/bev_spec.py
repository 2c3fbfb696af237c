"""What a model is built for: the cameras of a rig and the cells of a grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bevreshape.config.options import read_value
from bevreshape.data.batch import BEVSource
from bevreshape.data.image_io import ImageMode
from bevreshape.data.names import check_classes
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

MAX_PIXELS, MAX_CELLS = 1 << 23, 1 << 24
"""Largest image and largest grid that a checkpoint may ask for."""


@dataclass(frozen=True)
class BEVSpec:
    """What a model is built for: the cameras it reads and the cells it predicts."""

    grid: BEVGrid
    classes: tuple[str, ...]
    camera_names: tuple[str, ...]
    image_size: tuple[int, int]
    image_mode: str = "rgb"

    def __post_init__(self) -> None:
        check_classes(self.classes, "data.classes")

    @classmethod
    def of(cls, source: BEVSource) -> "BEVSpec":
        """Return the specification of a data source."""
        height, width = source.image_size
        return cls(
            source.grid, tuple(source.classes), tuple(source.camera_names), (height, width),
            getattr(source, "image_mode", "rgb"),
        )  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return {
            "forward_m": list(self.grid.forward_m),
            "left_m": list(self.grid.left_m),
            "cell_m": self.grid.cell_m,
            "classes": list(self.classes),
            "camera_names": list(self.camera_names),
            "image_size": list(self.image_size),
            "image_mode": self.image_mode,
        }

    @classmethod
    def from_plain(cls, plain: Any, where: str = "spec") -> "BEVSpec":
        """Build a specification from what :meth:`to_plain` returns.

        Raises:
            InputError: when a value is not one of a specification; names ``where`` and the key.
        """

        def numbers(key: str, count: int, kind: type = float) -> tuple[Any, ...]:
            values = plain.get(key)
            kinds = (int, float) if kind is float else (int,)
            if (
                not isinstance(values, list | tuple)
                or len(values) != count
                or not all(type(value) in kinds and abs(value) <= 1e6 for value in values)
            ):
                what = "numbers" if kind is float else "integers"
                raise InputError(
                    f"{where}.{key} must be {count} {what} of at most a million, not {values!r:.80}; it is damaged"
                )
            return tuple(values)

        def names(key: str) -> tuple[str, ...]:
            values = plain.get(key)
            if (
                not isinstance(values, list | tuple)
                or not values
                or not all(isinstance(value, str) and value for value in values)
                or len(set(values)) < len(values)
            ):
                raise InputError(
                    f"{where}.{key} must be different names, one at least, not {values!r:.80}; it is damaged"
                )
            return tuple(values)

        if not isinstance(plain, Mapping):
            raise InputError(f"{where} must be a mapping, not {plain!r:.80}; it is damaged")
        height, width = numbers("image_size", 2, int)
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise InputError(
                f"{where}.image_size=[{height}, {width}] must be height and width in pixels, {MAX_PIXELS:,} pixels at "
                "most; it is damaged"
            )
        cell_m: Any = plain.get("cell_m")
        if type(cell_m) not in (int, float) or not 1e-4 <= cell_m <= 1e6:
            raise InputError(
                f"{where}.cell_m must be the length of a cell in metres, not {cell_m!r:.80}; it is damaged"
            )
        try:
            grid = BEVGrid(numbers("forward_m", 2), numbers("left_m", 2), cell_m)
        except InputError as error:
            raise InputError(str(error) if where in str(error) else f"{where}: {error}") from None
        if math.prod(grid.shape) > MAX_CELLS:
            raise InputError(
                f"{where} has {grid.rows}×{grid.cols} cells, at most {MAX_CELLS:,} are read; it is damaged"
            )
        mode = read_value(f"{where}.image_mode", ImageMode, plain.get("image_mode", "rgb"))
        return cls(grid, names("classes"), names("camera_names"), (height, width), mode)
