"""Write and read the output of ``tools/prepare_nuscenes.py``; reading does not need the devkit.

A folder ``VERSION-DIGEST``, with the digest of cells and line width, holds ``index.json`` and a folder of records that
is named after their content. A record is a keyframe: its JSON and its map on the cells, exact and as published, all
compressed.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevreshape.data.sources.nuscenes import maps, tables
from bevreshape.data.sources.nuscenes.tables import Keyframe, SceneRecord
from bevreshape.data.storage import START_METHOD, exclusive, explain_unwritable, prepare, read_record
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reporting.progress import track
from bevreshape.storage.files import read_json, write_text
from bevreshape.storage.store_path import DataPath, unchanging

FORMAT = 3
"""Version of the records, raised with every change of their content."""

PARTS = struct.Struct("<III")  # bytes of the JSON, of the exact and of the published map
INDEX = "index.json"

RASTERS = ("exact", "published")


@dataclass(frozen=True)
class Content:
    """Describe the parameters of a prepared folder.

    Attributes:
        version: of the release, such as ``v1.0-mini``.
        grid: cells of the map.
        line_width_m: width of dividers; ``None`` for that of a cell.
    """

    version: str
    grid: BEVGrid
    line_width_m: float | None = None

    def __post_init__(self) -> None:
        if self.line_width_m is not None and not self.line_width_m > 0:
            raise InputError(
                f"line_width_m={self.line_width_m} must be a positive width in metres, or null for that of a cell"
            )

    @property
    def width_m(self) -> float:
        """Of dividers."""
        return self.grid.cell_m if self.line_width_m is None else self.line_width_m

    def meta(self) -> dict[str, object]:
        """Return the parameters as plain values."""
        bounds = {"forward_m": list(self.grid.forward_m), "left_m": list(self.grid.left_m), "cell_m": self.grid.cell_m}
        return {"format": FORMAT, "version": self.version, **bounds, "line_width_m": float(self.width_m)}

    def folder_name(self) -> str:
        """Return the name of its folder, a different one for different parameters."""
        digest = hashlib.sha256(json.dumps(self.meta(), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.version}-{digest}"

    def command(self, root: DataPath, out: DataPath) -> str:
        """Return the command that prepares it."""
        bounds = (
            f"'forward_m={list(self.grid.forward_m)}' 'left_m={list(self.grid.left_m)}' cell_m={self.grid.cell_m:g}"
        )
        line = "" if self.line_width_m is None else f" line_width_m={self.line_width_m:g}"
        return f"python tools/prepare_nuscenes.py root={root} version={self.version} out={out} {bounds}{line}"


@dataclass(frozen=True)
class Index:
    """List the prepared keyframes.

    Attributes:
        records: folder of the keyframes.
        scenes: in the order of their keyframes.
        places: (m, 2) position of the vehicle at every keyframe, metres of the map.
    """

    records: DataPath
    scenes: Sequence[SceneRecord]
    places: NDArray[np.float64]

    def scene_of(self) -> NDArray[np.intp]:
        """Return the scene's index of every keyframe, (m,)."""
        return np.repeat(np.arange(len(self.scenes)), [scene["count"] for scene in self.scenes])


def prepare_release(root: Path, out: Path, content: Content, workers: int) -> tuple[Index, list[str]]:
    """Read a release and its maps, and write the records for training.

    It resumes an interrupted preparation; a second process on the same folder waits.

    Args:
        root: of the release.
        out: folder of prepared ones.
        content: the wanted parameters.
        workers: processes that draw maps.

    Returns:
        The index, and the reason for every keyframe and shape of a map that was left out.

    Raises:
        InputError: when a file is missing, or the folder cannot be written.
    """
    folder = out / content.folder_name()
    found = tables.open_tables(root, content.version)
    scenes, keyframes, skipped = tables.read_keyframes(found, root)
    del found  # gigabytes, which the workers would inherit
    if not keyframes:
        raise InputError(
            f"{root}: none of the {len(skipped)} keyframes of {content.version} is complete, first "
            f"{skipped[0] if skipped else ''}; unpack the archives of images too"
        )
    locations = sorted({scene["location"] for scene in scenes if scene["count"]})
    layers = {}
    for place in track(locations, "reading maps"):
        layers[place], lost = maps.read_layers(tables.open_map(root, place), content.width_m)
        skipped += [f"map of {place}: {what}" for what in lost]
    drawn = partial(
        _draw, keyframes, [scene["location"] for scene in scenes for _ in range(scene["count"])], layers, content.grid
    )
    _inherited["draw"] = drawn
    records = folder / _fingerprint(keyframes)
    prepare(records, content.meta(), len(keyframes), _make, workers if START_METHOD == "fork" else 1, "out")
    places = np.array([[keyframe["world_from_ego"][axis][3] for axis in (0, 1)] for keyframe in keyframes])
    with explain_unwritable(folder, "out"), exclusive(folder):
        plain = {"records": records.name, "skipped": skipped, "scenes": scenes, "places": places.round(3).tolist()}
        write_text(folder / INDEX, json.dumps(plain) + "\n")
    return Index(records, scenes, places), skipped


def _fingerprint(keyframes: Sequence[Keyframe]) -> str:
    """Return a digest of all keyframes, which separates records of fewer images or older tables."""
    digest = hashlib.sha256()
    for keyframe in keyframes:
        digest.update(json.dumps(keyframe).encode())
    return digest.hexdigest()[:12]


_inherited: dict[str, Any] = {}
"""Keyframes and maps that workers inherit when they are forked, because sending them is slow."""


def _make(first: int, stop: int) -> list[bytes]:
    made: list[bytes] = _inherited["draw"](first, stop)
    return made


def _draw(
    keyframes: Sequence[Keyframe], locations: Sequence[str], layers: Mapping[str, Mapping[str, maps.Layer]],
    grid: BEVGrid,
    first: int, stop: int,
) -> list[bytes]:  # fmt: skip
    return [_encode(keyframes[i], layers[locations[i]], grid) for i in range(first, stop)]


def _encode(keyframe: Keyframe, layers: Mapping[str, maps.Layer], grid: BEVGrid) -> bytes:
    world_from_ego = np.array(keyframe["world_from_ego"])
    drawn = [draw(layers, world_from_ego, grid) for draw in (maps.draw_exact, maps.draw_published)]
    parts = [json.dumps(keyframe).encode(), *(plane.astype("<u2").tobytes() for plane in drawn)]
    packed = [zlib.compress(part, 6) for part in parts]
    return PARTS.pack(*map(len, packed)) + b"".join(packed)


def read_index(root: DataPath, out: DataPath, content: Content) -> Index:
    """Read the index of a prepared folder.

    Raises:
        InputError: when it was not prepared; the message gives the command.
    """
    path = out / content.folder_name() / INDEX
    remedy = content.command(root, out)
    plain = read_json(
        path,
        f"there is no such file, so {content.version} is not, or not fully, prepared for these cells; {remedy}",
    )
    try:
        records = unchanging(path.parent / plain["records"])
        index = Index(records, plain["scenes"], np.array(plain["places"], np.float64))
        whole = index.places.shape == (sum(scene["count"] for scene in index.scenes), 2)
        if not whole or not all(SceneRecord.__required_keys__ <= scene.keys() for scene in index.scenes):
            raise ValueError("its scenes are incomplete")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: it differs from the tool's output ({error}); delete the folder, {remedy}") from None
    return index


def read_keyframe(
    records: DataPath, number: int, remedy: str, raster: str, shape: tuple[int, int]
) -> tuple[Keyframe, NDArray[np.uint16]]:
    """Read a keyframe and its map, one bit for each layer, (rows, cols).

    Args:
        records: of an :class:`Index`.
        number: index of the keyframe.
        remedy: how it is prepared again.
        raster: one of :data:`RASTERS`.
        shape: (rows, cols).

    Raises:
        InputError: when its record is missing or damaged.
    """
    record = read_record(records, number, remedy)
    lengths = PARTS.unpack(record[: PARTS.size])
    bounds = np.cumsum([PARTS.size, *lengths])
    which = 1 + RASTERS.index(raster)
    keyframe: Keyframe = json.loads(zlib.decompress(record[bounds[0] : bounds[1]]))
    plane = np.frombuffer(zlib.decompress(record[bounds[which] : bounds[which + 1]]), "<u2").reshape(shape)
    return keyframe, plane
