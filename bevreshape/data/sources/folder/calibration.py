"""``calibration.json`` of a camera folder; its schema is in ``data/README.md``."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevreshape.data.image_io import MAX_MEGAPIXELS
from bevreshape.data.names import check_name
from bevreshape.errors import InputError, shown, suggest
from bevreshape.geometry import (
    BEVGrid,
    Cameras,
    DistortionModel,
    check_calibration,
    ground_pixels,
    pinhole_intrinsics,
    pinhole_rays,
    rays_at,
)
from bevreshape.geometry.calibration_checks import diagnose_pose
from bevreshape.geometry.distortion import MODELS
from bevreshape.geometry.ipm import VOID
from bevreshape.storage.files import read_json

VERSION = 1


@dataclass(frozen=True)
class Codes:
    """What the bytes of a label image mean.

    Attributes:
        members: for every name, (256,) bool, which byte values count as it.
        void: (256,) bool, values of pixels that nobody labelled.
        allowed: (256,) bool, values that may occur at all.
    """

    members: dict[str, Tensor]
    void: Tensor
    allowed: Tensor

    def any_of(self, names: Sequence[str], where: str) -> Tensor:
        """(256,) bool: the values that count as one of ``names``.

        Raises:
            InputError: when a name is not one of the calibration's.
        """
        for name in names:
            if name not in self.members:
                raise InputError(f"{where}: {name!r} is not labelled in this folder; {suggest(name, self.members)}")
        return torch.stack([self.members[name] for name in names]).any(0)

    def check(self, labels: Tensor, path: Path) -> None:
        """Compare the values of a label image with the ones that may occur.

        Raises:
            InputError: naming the file and the values that the calibration does not explain.
        """
        unknown = (torch.bincount(labels.flatten(), minlength=256) > 0) & ~self.allowed
        if unknown.any():
            ids = ", ".join(str(i) for i in unknown.nonzero().flatten().tolist())
            raise InputError(
                f"{path}: the label holds {ids}, which calibration.json does not explain (it lists "
                f"{', '.join(self.members)}); add them there, to 'void' where nobody knows"
            )


@dataclass(frozen=True)
class Rig:
    """The calibrated cameras of one frame, each for its own image.

    Attributes:
        intrinsics: (n, 3, 3) float64; with a lens, those of the undistorted image.
        ego_from_cam: (n, 4, 4) float64, metres.
        sizes: (H, W) of every camera's stored image.
        lenses: what bends it, ``None`` for a pinhole.
    """

    intrinsics: Tensor
    ego_from_cam: Tensor
    sizes: tuple[tuple[int, int], ...]
    lenses: tuple[DistortionModel | None, ...]

    def stored_intrinsics(self, number: int) -> Tensor:
        """(3, 3) of a stored image, before it is undistorted."""
        lens = self.lenses[number]
        return self.intrinsics[number] if lens is None else torch.tensor(lens.intrinsics, dtype=torch.float64)

    def camera(self, number: int) -> Cameras:
        """One of them alone, for its image as large as it is stored."""
        return Cameras(self.intrinsics[None, [number]], self.ego_from_cam[None, [number]], self.sizes[number])

    def rays(self, number: int) -> Callable[[Tensor], Tensor]:
        """Of a camera: what gives rays (p, 3) in its frame at stored pixels (p, 2), NaN where it shows nothing."""
        lens = self.lenses[number]
        return partial(pinhole_rays, self.intrinsics[number]) if lens is None else partial(rays_at, lens)


@dataclass(frozen=True)
class Calibration:
    """A checked ``calibration.json``.

    Attributes:
        path: where it was read.
        cameras: names, in the order of every tensor's camera dimension.
        shared: the rig of every frame that has none of its own; ``None`` when each has.
        frames: the rigs of single frames.
        note: what its author wants a user to know.
        labels: meaning of the label images, if there are any.
        bev: meaning of the BEV truth, if there is one.
        bev_grid: its cells.
        boxes: categories of the 3D boxes, if there are any.
        parted: whether every camera's files lie in a folder of its own, as those of several cameras do.
    """

    path: Path
    cameras: tuple[str, ...]
    shared: Rig | None
    frames: Mapping[str, Rig]
    note: str = ""
    labels: Codes | None = None
    bev: Codes | None = None
    bev_grid: BEVGrid | None = None
    boxes: tuple[str, ...] | None = None
    parted: bool = False

    def only(self, cameras: Sequence[str]) -> "Calibration":
        """The same with some of its cameras, in this order.

        Raises:
            InputError: when none is named, one twice, or one that is not there.
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
            sizes, lenses = tuple(rig.sizes[i] for i in order), tuple(rig.lenses[i] for i in order)
            return Rig(rig.intrinsics[order], rig.ego_from_cam[order], sizes, lenses)

        shared = None if self.shared is None else chosen(self.shared)
        frames = {name: chosen(rig) for name, rig in self.frames.items()}
        return replace(self, cameras=tuple(cameras), shared=shared, frames=frames)

    def of(self, frame: str) -> Rig:
        """The rig of a frame.

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
        """All different rigs."""
        return [*self.frames.values()] if self.shared is None else [self.shared, *self.frames.values()]

    @property
    def largest_size(self) -> tuple[int, int]:
        """(H, W) that every stored image fits into."""
        sizes = [size for rig in self.rigs for size in rig.sizes]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    def check_views(self, grid: BEVGrid) -> None:
        """Compare what the cameras see with the cells that are wanted.

        Raises:
            InputError: naming a camera that sees no cell of the grid in any frame, and what it sees.
        """
        for number, camera in enumerate(self.cameras):
            if not any(_sees(rig.camera(number), grid) for rig in self.rigs):
                mistake = diagnose_pose(self.rigs[0].camera(number), grid)
                raise InputError(
                    f"{self.path}: camera {camera!r} never sees the grid ({_bounds(grid)}); {_view(self.rigs[0], number)}; "
                    f"{f'{mistake}; ' if mistake else ''}correct ego_from_cam, choose other bounds, or leave the camera out (data.cameras)"
                )


def read_calibration(path: Path) -> Calibration:
    """Read and check a ``calibration.json``.

    Raises:
        InputError: not JSON, not of the schema, or a camera that cannot be one (see
            :func:`~bevreshape.geometry.check_calibration`).
    """
    content = read_json(path, "there is no such file; data/README.md says what it must hold")
    top = {"version", "note", "cameras", "frames", "labels", "bev", "boxes"}
    _check_keys(content, top, {"version", "cameras"}, str(path))
    if content["version"] != VERSION:
        raise InputError(
            f"{path}: version is {shown(content['version'])}, this program reads {VERSION}; see data/README.md for the schema"
        )
    entries = camera_entries(content["cameras"], str(path))
    frames = content.get("frames", {})
    if not isinstance(frames, dict):
        raise InputError(f"{path}: 'frames' is {type(frames).__name__}; it must map frame names to cameras")
    own = {name: _frame_rig(entries, frame, f"{path}: frame {name!r}") for name, frame in frames.items()}
    complete = all(entry.keys() >= _RIG_KEYS for entry in entries.values())
    if not complete and not frames:
        missing = next((f"{c}: {k}" for c, e in entries.items() for k in sorted(_RIG_KEYS - e.keys())), "")
        raise InputError(f"{path}: camera {missing} is missing; give it there, or under 'frames' for every frame")
    bev = content.get("bev")
    return Calibration(
        path=path,
        cameras=tuple(entries),
        shared=_rig(entries, str(path)) if complete else None,
        frames=own,
        note=_note(content.get("note", ""), str(path)),
        labels=_id_codes(content["labels"], f"{path}: labels") if "labels" in content else None,
        bev=None if bev is None else _bev_codes(bev, f"{path}: bev"),
        bev_grid=None if bev is None else _grid(bev, f"{path}: bev"),
        boxes=_categories(content["boxes"], f"{path}: boxes") if "boxes" in content else None,
        parted=len(entries) > 1,
    )


_RIG_KEYS = {"image_size", "intrinsics", "ego_from_cam"}
_OPTIONAL_KEYS = {"distortion"}


def camera_entries(cameras: Any, path: str) -> dict[str, dict[str, Any]]:
    """What ``calibration.json`` says of its cameras, by their names, each with known keys alone.

    Raises:
        InputError: naming the camera, by ``path`` and its number.
    """
    if not isinstance(cameras, list) or not cameras:
        raise InputError(f"{path}: 'cameras' must be a list with at least one camera, in the order that tensors take")
    entries: dict[str, dict[str, Any]] = {}
    for number, camera in enumerate(cameras):
        _check_keys(camera, {"name", *_RIG_KEYS, *_OPTIONAL_KEYS}, {"name"}, f"{path}: camera {number}")
        name = check_name(camera["name"], f"{path}: camera {number}: name")
        if name in (".", "..") or {"/", "\\"} & {*name}:
            raise InputError(f"{path}: camera {number}: name {shown(name)} is no folder's name; rename it")
        if name in entries:
            raise InputError(f"{path}: two cameras are called {name!r}; names are folders, make them differ")
        entries[name] = {key: value for key, value in camera.items() if key != "name"}
    return entries


def _frame_rig(entries: dict[str, dict[str, Any]], frame: Any, where: str) -> Rig:
    _check_keys(frame, set(entries), set(), where)
    for camera, entry in frame.items():
        _check_keys(entry, _RIG_KEYS | _OPTIONAL_KEYS, set(), f"{where}, camera {camera!r}")
    return _rig({camera: {**shared, **frame.get(camera, {})} for camera, shared in entries.items()}, where)


def _rig(entries: dict[str, dict[str, Any]], where: str) -> Rig:
    intrinsics, poses, sizes, lenses = [], [], [], []
    for camera, entry in entries.items():
        at = f"{where}, camera {camera!r}"
        _check_keys(entry, _RIG_KEYS | _OPTIONAL_KEYS, _RIG_KEYS, at)
        poses.append(_matrix(entry["ego_from_cam"], 4, f"{at}: ego_from_cam"))
        matrix, size, lens = optics(entry, at, poses[-1])
        intrinsics.append(matrix if lens is None else _straightened(lens, at))
        sizes.append(size)
        lenses.append(lens)
    return Rig(torch.stack(intrinsics), torch.stack(poses), tuple(sizes), tuple(lenses))


def optics(
    entry: Mapping[str, Any], at: str, ego_from_cam: Tensor | None = None
) -> tuple[Tensor, tuple[int, int], DistortionModel | None]:
    """Intrinsics as they stand there, (3, 3), size (H, W) and lens of a camera whose pose may be missing.

    Raises:
        InputError: naming the key, after ``at``.
    """
    matrix, size = _matrix(entry["intrinsics"], 3, f"{at}: intrinsics"), entry["image_size"]
    if not (numbers(size, 2) and all(isinstance(side, int) and side > 0 for side in size)):
        raise InputError(f"{at}: image_size is {shown(size)}; it must be [height, width] in whole pixels")
    height, width = size
    if height * width > MAX_MEGAPIXELS * 10**6:
        raise InputError(
            f"{at}: image_size is {size}, more than the {MAX_MEGAPIXELS} million pixels that an image may have"
        )
    pose = torch.eye(4, dtype=torch.float64) if ego_from_cam is None else ego_from_cam
    check_calibration(matrix, pose, (height, width), at)
    return matrix, (height, width), _lens(entry, (height, width), at)


def _lens(entry: Mapping[str, Any], size: tuple[int, int], at: str) -> DistortionModel | None:
    distortion = entry.get("distortion")
    if distortion is None:
        return None
    _check_keys(distortion, {"model", "coefficients", "intrinsics"}, {"model", "coefficients"}, f"{at}: distortion")
    model, coefficients = distortion["model"], distortion["coefficients"]
    if not isinstance(model, str) or model not in MODELS:
        raise InputError(f"{at}: distortion: model is {shown(model)}; {suggest(str(model), MODELS)}")
    if not numbers(coefficients, *MODELS[model]):
        counts = " or ".join(map(str, MODELS[model]))
        raise InputError(f"{at}: distortion: coefficients are {shown(coefficients)}; {model} takes {counts} numbers")
    chosen = distortion.get("intrinsics")
    if chosen is not None:
        check_calibration(_matrix(chosen, 3, f"{at}: distortion: intrinsics"), torch.eye(4), size, f"{at}: distortion")
    return DistortionModel(model, tuple(map(float, coefficients)), _tuples(entry["intrinsics"]), size, _tuples(chosen))


def _straightened(lens: DistortionModel, at: str) -> Tensor:
    try:
        return pinhole_intrinsics(lens)
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _tuples(matrix: Any) -> Any:
    return None if matrix is None else tuple(tuple(float(value) for value in row) for row in matrix)


def _matrix(rows: Any, side: int, where: str) -> Tensor:
    if not (isinstance(rows, list) and all(isinstance(row, list) and all(map(_is_number, row)) for row in rows)):
        raise InputError(f"{where} is {shown(rows)}; it must be {side} rows of {side} numbers")
    widths = {len(row) for row in rows}
    if len(rows) != side or widths != {side}:
        raise InputError(f"{where} is {len(rows)}×{' or '.join(map(str, sorted(widths)))}; it must be {side}×{side}")
    return torch.tensor(rows, dtype=torch.float64)


def _grid(bev: dict[str, Any], where: str) -> BEVGrid:
    keys, given = {"forward_m", "left_m", "cell_m"}, bev["grid"]
    _check_keys(given, keys, keys, f"{where}: grid")
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


def _bev_codes(bev: Any, where: str) -> Codes:
    _check_keys(bev, {"grid", "bits", "ids", "void"}, {"grid"}, where)
    if ("bits" in bev) == ("ids" in bev):
        raise InputError(f"{where} must have either 'bits' (names from bit 0 on) or 'ids' (a name for every id)")
    if "ids" in bev:
        return _id_codes({key: value for key, value in bev.items() if key != "grid"}, where)
    if "void" in bev:
        raise InputError(f"{where}: 'void' goes with 'ids'; every byte of 'bits' has a meaning, leave it out")
    if not isinstance(bev["bits"], list) or not 1 <= len(bev["bits"]) <= 8:
        raise InputError(
            f"{where}: bits is {shown(bev['bits'])}; it must be a list of one to eight names, from bit 0 on"
        )
    names = _each_once(bev["bits"], f"{where}: bits")
    values = torch.arange(256)
    members = {name: (values >> bit & 1).bool() for bit, name in enumerate(names)}
    return Codes(members, torch.zeros(256, dtype=torch.bool), values < 1 << len(names))


def _each_once(names: list[Any], where: str) -> tuple[str, ...]:
    for number, name in enumerate(names):
        if check_name(name, f"{where}: name") in names[:number]:
            raise InputError(f"{where}: {name!r} is named twice; rename or remove one")
    return tuple(names)


def _note(note: Any, path: str) -> str:
    if not isinstance(note, str) or not all(letter.isprintable() or letter in "\n\t" for letter in note):
        raise InputError(f"{path}: note is {shown(note)}; it must be a text of printable characters")
    return note


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float64 holds; NaN and infinity are, which the calibration's own checks refuse."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def numbers(values: Any, *counts: int) -> bool:
    """Whether it is a list of that many finite numbers."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(_is_number(v) and abs(v) <= sys.float_info.max for v in values)
    )


def _categories(boxes: Any, where: str) -> tuple[str, ...]:
    _check_keys(boxes, {"categories"}, {"categories"}, where)
    names = boxes["categories"]
    if not isinstance(names, list) or not names:
        raise InputError(f"{where}: categories is {shown(names)}; it must list the names that may occur in boxes/")
    return _each_once(names, f"{where}: categories")


def _id_codes(labels: Any, where: str) -> Codes:
    _check_keys(labels, {"ids", "void"}, {"ids"}, where)
    given, void_ids = labels["ids"], labels.get("void", [])
    if not isinstance(given, dict) or not given:
        raise InputError(f'{where}: ids is {shown(given)}; it must map ids to names, such as {{"3": "road"}}')
    if not isinstance(void_ids, list):
        raise InputError(f"{where}: void is {shown(void_ids)}; it must be a list of ids, such as [11]")
    members: dict[str, Tensor] = {}
    named: dict[int, str] = {}
    for key, name in given.items():
        number = _byte(key, where)
        if number in named:
            raise InputError(f"{where}: id {number} is there twice, as {named[number]!r} and {shown(name)}; remove one")
        named[number] = check_name(name, f"{where}: id {number}: name")
        members.setdefault(name, torch.zeros(256, dtype=torch.bool))[number] = True
    void = torch.zeros(256, dtype=torch.bool)
    void[[VOID, *(_byte(value, where) for value in void_ids)]] = True
    for name, values in members.items():
        if (values & void).any():
            raise InputError(
                f"{where}: an id of {name!r} is void as well ({VOID} always is); number that class differently"
            )
    allowed = torch.stack([*members.values(), void]).any(0)
    return Codes(members, void, allowed)


def _byte(value: Any, where: str) -> int:
    written = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch("[0-9]{1,3}", written) or int(written) > 255:
        raise InputError(f"{where}: {shown(value)} is not an id; ids are whole numbers from 0 to 255")
    return int(written)


def _check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: this is {type(entry).__name__}, it must be an object with {', '.join(sorted(known))}"
        )
    for key in entry:
        if key not in known:
            raise InputError(f"{where}: {shown(key)} is no key here; {suggest(key, known)}")
    for key in sorted(needed):
        if key not in entry:
            raise InputError(f"{where}: {key!r} is missing; see data/README.md for the schema")


def _sees(camera: Cameras, grid: BEVGrid) -> bool:
    above = camera.ego_from_cam[0, 0, 2, 3] > 0  # from below the ground shows nothing
    return bool(above) and bool(ground_pixels(camera, grid)[1].any())


def _bounds(grid: BEVGrid) -> str:
    return f"forward {grid.forward_m[0]:g} to {grid.forward_m[1]:g} m, left {grid.left_m[0]:g} to {grid.left_m[1]:g} m"


def _view(rig: Rig, number: int) -> str:
    pose = rig.ego_from_cam[number]
    x, y, z = pose[:3, 3].tolist()
    forward, left, up = pose[:3, 2].tolist()
    return (
        f"it stands at ({x:.2f}, {y:.2f}, {z:.2f}) m and looks along ({forward:.2f}, {left:.2f}, {up:.2f}) "
        "(forward, left, up)"
    )
