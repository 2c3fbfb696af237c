"""``calibration.json`` of a camera folder; its schema is in ``data/README.md``."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, Lens, check_calibration, ground_pixels, pinhole_intrinsics
from bevreshape.geometry.ipm import VOID
from bevreshape.geometry.lens import MODELS
from bevreshape.geometry.mistakes import pose_mistake

VERSION = 1


@dataclass(frozen=True)
class Codes:
    """What the bytes of a label picture mean.

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
        """Compare the values of a label picture with the ones that may occur.

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
    """The calibrated cameras of one frame, each for its own picture.

    Attributes:
        intrinsics: (n, 3, 3) float64; with a lens, those of the undistorted picture.
        ego_from_cam: (n, 4, 4) float64, metres.
        sizes: (H, W) of every camera's stored picture.
        lenses: what bends it, ``None`` for a pinhole.
    """

    intrinsics: Tensor
    ego_from_cam: Tensor
    sizes: tuple[tuple[int, int], ...]
    lenses: tuple[Lens | None, ...]

    def camera(self, number: int) -> Cameras:
        """One of them alone, for its picture as large as it is stored."""
        return Cameras(self.intrinsics[None, [number]], self.ego_from_cam[None, [number]], self.sizes[number])


@dataclass(frozen=True)
class Calibration:
    """A checked ``calibration.json``.

    Attributes:
        path: where it was read.
        cameras: names, in the order of every tensor's camera dimension.
        shared: the rig of every frame that has none of its own; ``None`` when each has.
        frames: the rigs of single frames.
        note: what its author wants a user to know.
        labels: meaning of the label pictures, if there are any.
        bev: meaning of the BEV truth, if there is one.
        bev_grid: its cells.
        boxes: categories of the 3D boxes, if there are any.
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
        """(H, W) that every stored picture fits into."""
        sizes = [size for rig in self.rigs for size in rig.sizes]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    def check_views(self, grid: BEVGrid) -> None:
        """Compare what the cameras see with the cells that are wanted.

        Raises:
            InputError: naming a camera that sees no cell of the grid in any frame, and what it sees.
        """
        for number, camera in enumerate(self.cameras):
            if not any(_sees(rig.camera(number), grid) for rig in self.rigs):
                mistake = pose_mistake(self.rigs[0].camera(number), grid)
                raise InputError(
                    f"{self.path}: camera {camera!r} never sees the grid ({_bounds(grid)}); {_view(self.rigs[0], number)}; "
                    f"{f'{mistake}; ' if mistake else ''}correct ego_from_cam, choose other bounds, or leave the camera out"
                )


def read_calibration(path: Path) -> Calibration:
    """Read and check a ``calibration.json``.

    Raises:
        InputError: not JSON, not of the schema, or a camera that cannot be one (see
            :func:`~bevreshape.geometry.check_calibration`).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; data/README.md says what it must hold") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: the file is not JSON ({error}); write it anew or copy it again") from None
    top = {"version", "note", "cameras", "frames", "labels", "bev", "boxes"}
    _check_keys(content, top, {"version", "cameras"}, str(path))
    if content["version"] != VERSION:
        raise InputError(
            f"{path}: version is {content['version']!r}, this program reads {VERSION}; see data/README.md for the schema"
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
        note=str(content.get("note", "")),
        labels=_id_codes(content["labels"], f"{path}: labels") if "labels" in content else None,
        bev=None if bev is None else _bev_codes(bev, f"{path}: bev"),
        bev_grid=None if bev is None else _grid(bev, f"{path}: bev"),
        boxes=_categories(content["boxes"], f"{path}: boxes") if "boxes" in content else None,
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
        if camera["name"] in entries:
            raise InputError(f"{path}: two cameras are called {camera['name']!r}; names are folders, make them differ")
        entries[camera["name"]] = {key: value for key, value in camera.items() if key != "name"}
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
) -> tuple[Tensor, tuple[int, int], Lens | None]:
    """Intrinsics as they stand there, (3, 3), size (H, W) and lens of a camera whose pose may be missing.

    Raises:
        InputError: naming the key, after ``at``.
    """
    matrix, size = _matrix(entry["intrinsics"], 3, f"{at}: intrinsics"), entry["image_size"]
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(v, int) and v > 0 for v in size)):
        raise InputError(f"{at}: image_size is {size}; it must be [height, width] in whole pixels")
    height, width = size
    pose = torch.eye(4, dtype=torch.float64) if ego_from_cam is None else ego_from_cam
    check_calibration(matrix, pose, (height, width), at)
    return matrix, (height, width), _lens(entry, (height, width), at)


def _lens(entry: Mapping[str, Any], size: tuple[int, int], at: str) -> Lens | None:
    distortion = entry.get("distortion")
    if distortion is None:
        return None
    _check_keys(distortion, {"model", "coefficients", "intrinsics"}, {"model", "coefficients"}, f"{at}: distortion")
    model, coefficients = distortion["model"], distortion["coefficients"]
    if model not in MODELS:
        raise InputError(f"{at}: distortion: model is {model!r}; {suggest(str(model), MODELS)}")
    if not numbers(coefficients, *MODELS[model]):
        counts = " or ".join(map(str, MODELS[model]))
        raise InputError(f"{at}: distortion: coefficients are {coefficients!r}; {model} takes {counts} numbers")
    chosen = distortion.get("intrinsics")
    if chosen is not None:
        check_calibration(_matrix(chosen, 3, f"{at}: distortion: intrinsics"), torch.eye(4), size, f"{at}: distortion")
    return Lens(model, tuple(map(float, coefficients)), _tuples(entry["intrinsics"]), size, _tuples(chosen))


def _straightened(lens: Lens, at: str) -> Tensor:
    try:
        return pinhole_intrinsics(lens)
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _tuples(matrix: Any) -> Any:
    return None if matrix is None else tuple(tuple(float(value) for value in row) for row in matrix)


def _matrix(rows: Any, side: int, where: str) -> Tensor:
    try:
        matrix = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where} is {rows!r}; it must be {side} rows of {side} numbers") from None
    if tuple(matrix.shape) != (side, side):
        raise InputError(f"{where} is {'×'.join(map(str, matrix.shape)) or 'a number'}; it must be {side}×{side}")
    return matrix


def _grid(bev: dict[str, Any], where: str) -> BEVGrid:
    keys = {"forward_m", "left_m", "cell_m"}
    _check_keys(bev["grid"], keys, keys, f"{where}: grid")
    return BEVGrid(**bev["grid"])


def _bev_codes(bev: Any, where: str) -> Codes:
    _check_keys(bev, {"grid", "bits", "ids", "void"}, {"grid"}, where)
    if ("bits" in bev) == ("ids" in bev):
        raise InputError(f"{where} must have either 'bits' (names from bit 0 on) or 'ids' (a name for every id)")
    if "ids" in bev:
        return _id_codes({key: value for key, value in bev.items() if key != "grid"}, where)
    if not isinstance(bev["bits"], list) or not 1 <= len(bev["bits"]) <= 8:
        raise InputError(f"{where}: bits is {bev['bits']!r}; it must be a list of one to eight names, from bit 0 on")
    values = torch.arange(256)
    members = {name: (values >> bit & 1).bool() for bit, name in enumerate(bev["bits"])}
    return Codes(members, torch.zeros(256, dtype=torch.bool), values < 1 << len(bev["bits"]))


def numbers(values: Any, *counts: int) -> bool:
    """Whether it is a list of that many finite numbers."""
    return (
        isinstance(values, list)
        and len(values) in counts
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )


def _categories(boxes: Any, where: str) -> tuple[str, ...]:
    _check_keys(boxes, {"categories"}, {"categories"}, where)
    names = boxes["categories"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: categories is {names!r}; it must list the names that may occur in boxes/")
    return tuple(names)


def _id_codes(labels: Any, where: str) -> Codes:
    _check_keys(labels, {"ids", "void"}, {"ids"}, where)
    members: dict[str, Tensor] = {}
    for key, name in labels["ids"].items():
        members.setdefault(name, torch.zeros(256, dtype=torch.bool))[_byte(key, where)] = True
    void = torch.zeros(256, dtype=torch.bool)
    void[[VOID, *(_byte(value, where) for value in labels.get("void", []))]] = True
    for name, values in members.items():
        if (values & void).any():
            raise InputError(
                f"{where}: an id of {name!r} is void as well ({VOID} always is); number that class differently"
            )
    allowed = torch.stack([*members.values(), void]).any(0)
    return Codes(members, void, allowed)


def _byte(value: Any, where: str) -> int:
    if not str(value).isdigit() or not 0 <= int(value) <= 255:
        raise InputError(f"{where}: {value!r} is not an id; ids are whole numbers from 0 to 255")
    return int(value)


def _check_keys(entry: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: this is {type(entry).__name__}, it must be an object with {', '.join(sorted(known))}"
        )
    for key in entry:
        if key not in known:
            raise InputError(f"{where}: {key!r} is no key here; {suggest(key, known)}")
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
