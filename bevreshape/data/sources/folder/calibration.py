"""Read ``calibration.json`` of a camera folder; its schema is in ``data/README.md``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bevreshape.data.image_io import MAX_MEGAPIXELS
from bevreshape.data.sources.folder.entries import check_keys, numbers
from bevreshape.data.sources.folder.label_map import LabelMap, read_bev_label_map, read_id_label_map, unique_names
from bevreshape.data.sources.folder.rig import RIG_KEYS, Rig, camera_entries, read_frame_rig, read_rig
from bevreshape.errors import InputError, shown, suggest
from bevreshape.geometry import (
    BEVGrid,
    Cameras,
    ground_pixels,
)
from bevreshape.geometry.calibration_checks import diagnose_pose
from bevreshape.storage.files import read_json
from bevreshape.storage.store_path import DataPath

VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """Hold a checked ``calibration.json``.

    Attributes:
        path: of the file.
        cameras: names, in the order of every tensor's camera dimension.
        shared: the rig of every frame without its own; ``None`` when each has one.
        frames: the rigs of single frames.
        note: from the author to the user.
        labels: meaning of the label images, if there are any.
        bev: meaning of the BEV labels, if there are any.
        bev_grid: its cells.
        boxes: categories of the 3D boxes, if there are any.
        camera_subfolders: whether every camera's files are in a folder of its own, as for several cameras.
    """

    path: DataPath
    cameras: tuple[str, ...]
    shared: Rig | None
    frames: Mapping[str, Rig]
    note: str = ""
    labels: LabelMap | None = None
    bev: LabelMap | None = None
    bev_grid: BEVGrid | None = None
    boxes: tuple[str, ...] | None = None
    camera_subfolders: bool = False

    def only(self, cameras: Sequence[str]) -> "Calibration":
        """Return the calibration with some of its cameras, in this order.

        Raises:
            InputError: when none is named, one twice, or an unknown one.
        """
        if isinstance(cameras, str) or not cameras:
            raise InputError(
                f"data.cameras={shown(cameras)} must list cameras, such as [{self.cameras[0]}]; null for all"
            )
        for number, name in enumerate(cameras):
            if name not in self.cameras:
                raise InputError(
                    f"data.cameras: {self.path} has no camera {shown(name)}; {suggest(str(name), self.cameras)}"
                )
            if name in cameras[:number]:
                raise InputError(f"data.cameras: camera {name!r} is there twice; remove one")
        order = [self.cameras.index(name) for name in cameras]

        def chosen(rig: Rig) -> Rig:
            sizes, distortions = tuple(rig.sizes[i] for i in order), tuple(rig.distortions[i] for i in order)
            return Rig(rig.intrinsics[order], rig.ego_from_cam[order], sizes, distortions)

        shared = None if self.shared is None else chosen(self.shared)
        frames = {name: chosen(rig) for name, rig in self.frames.items()}
        return replace(self, cameras=tuple(cameras), shared=shared, frames=frames)

    def of(self, frame: str) -> Rig:
        """Return the rig of a frame.

        Raises:
            InputError: when the frame has none.
        """
        rig = self.frames.get(frame, self.shared)
        if rig is None:
            raise InputError(
                f"{self.path}: frame {frame!r} has no calibration; add it under 'frames', or give one to all"
            )
        return rig

    @property
    def rigs(self) -> list[Rig]:
        """Return all different rigs."""
        return [*self.frames.values()] if self.shared is None else [self.shared, *self.frames.values()]

    @property
    def largest_size(self) -> tuple[int, int]:
        """Return (H, W) that every stored image fits into."""
        sizes = [size for rig in self.rigs for size in rig.sizes]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    def check_views(self, grid: BEVGrid) -> None:
        """Check that every camera observes some of the cells of ``grid``.

        Raises:
            InputError: naming a camera that observes no cell of the grid in any frame, and its pose.
        """
        for number, camera in enumerate(self.cameras):
            if not any(_sees(rig.camera(number), grid) for rig in self.rigs):
                mistake = diagnose_pose(self.rigs[0].camera(number), grid)
                raise InputError(
                    f"{self.path}: camera {camera!r} never observes the grid ({_bounds(grid)}); "
                    f"{_view(self.rigs[0], number)}; {f'{mistake}; ' if mistake else ''}correct ego_from_cam, choose "
                    "other bounds, or leave the camera out (data.cameras)"
                )


def read_calibration(path: DataPath) -> Calibration:
    """Read and check a ``calibration.json``.

    Raises:
        InputError: when the file is not JSON or not of the schema, or a camera is invalid (see
            :func:`~bevreshape.geometry.check_calibration`).
    """
    content = read_json(path, "there is no such file; data/README.md gives its schema")
    top = {"version", "note", "cameras", "frames", "labels", "bev", "boxes"}
    check_keys(content, top, {"version", "cameras"}, str(path))
    if content["version"] != VERSION:
        raise InputError(
            f"{path}: version is {shown(content['version'])}, this program reads {VERSION}; see data/README.md for the "
            "schema"
        )
    entries = camera_entries(content["cameras"], str(path))
    frames = content.get("frames", {})
    if not isinstance(frames, dict):
        raise InputError(f"{path}: 'frames' is {type(frames).__name__}; it must map frame names to cameras")
    own = {name: read_frame_rig(entries, frame, f"{path}: frame {name!r}") for name, frame in frames.items()}
    complete = all(entry.keys() >= RIG_KEYS for entry in entries.values())
    if not complete and not frames:
        missing = next((f"{c}: {k}" for c, e in entries.items() for k in sorted(RIG_KEYS - e.keys())), "")
        raise InputError(f"{path}: camera {missing} is missing; give it there, or under 'frames' for every frame")
    bev = content.get("bev")
    return Calibration(
        path=path,
        cameras=tuple(entries),
        shared=read_rig(entries, str(path)) if complete else None,
        frames=own,
        note=_note(content.get("note", ""), str(path)),
        labels=read_id_label_map(content["labels"], f"{path}: labels") if "labels" in content else None,
        bev=None if bev is None else read_bev_label_map(bev, f"{path}: bev"),
        bev_grid=None if bev is None else _grid(bev, f"{path}: bev"),
        boxes=_categories(content["boxes"], f"{path}: boxes") if "boxes" in content else None,
        camera_subfolders=len(entries) > 1,
    )


def _grid(bev: dict[str, Any], where: str) -> BEVGrid:
    keys, given = {"forward_m", "left_m", "cell_m"}, bev["grid"]
    check_keys(given, keys, keys, f"{where}: grid")
    if not (numbers(given["forward_m"], 2) and numbers(given["left_m"], 2) and numbers([given["cell_m"]], 1)):
        raise InputError(f"{where}: grid is {shown(given)}; its bounds must be two numbers of metres each, cell_m one")
    cell_m = float(given["cell_m"])
    sides = [(float(high) - float(low)) / cell_m for low, high in (given["forward_m"], given["left_m"]) if cell_m > 0]
    if max(sides, default=0) > 1e6 or (sides and sides[0] * sides[1] > MAX_MEGAPIXELS * 10**6):
        raise InputError(f"{where}: grid has {sides[0]:.3g}×{sides[1]:.3g} cells, more than any image; raise cell_m")
    try:
        return BEVGrid(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _note(note: Any, path: str) -> str:
    if not isinstance(note, str) or not all(letter.isprintable() or letter in "\n\t" for letter in note):
        raise InputError(f"{path}: note is {shown(note)}; it must be a text of printable characters")
    return note


def _categories(boxes: Any, where: str) -> tuple[str, ...]:
    check_keys(boxes, {"categories"}, {"categories"}, where)
    names = boxes["categories"]
    if not isinstance(names, list) or not names:
        raise InputError(f"{where}: categories is {shown(names)}; it must list the names that may occur in boxes/")
    return unique_names(names, f"{where}: categories")


def _sees(camera: Cameras, grid: BEVGrid) -> bool:
    above = camera.ego_from_cam[0, 0, 2, 3] > 0  # the ground is not visible from below
    return bool(above) and bool(ground_pixels(camera, grid)[1].any())


def _bounds(grid: BEVGrid) -> str:
    return f"forward {grid.forward_m[0]:g} to {grid.forward_m[1]:g} m, left {grid.left_m[0]:g} to {grid.left_m[1]:g} m"


def _view(rig: Rig, number: int) -> str:
    pose = rig.ego_from_cam[number]
    x, y, z = pose[:3, 3].tolist()
    forward, left, up = pose[:3, 2].tolist()
    return f"it is at ({x:.2f}, {y:.2f}, {z:.2f}) m and faces ({forward:.2f}, {left:.2f}, {up:.2f}) (forward, left, up)"
