"""Read the calibrated cameras of one frame from ``calibration.json``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bevreshape.data.image_io import MAX_MEGAPIXELS
from bevreshape.data.names import check_name
from bevreshape.data.sources.folder.entries import check_keys, numbers, read_matrix
from bevreshape.errors import InputError, shown, suggest
from bevreshape.geometry import (
    Cameras,
    DistortionModel,
    check_calibration,
    pinhole_intrinsics,
    pinhole_rays,
    rays_at,
)
from bevreshape.geometry.distortion import MODELS


@dataclass(frozen=True)
class Rig:
    """Hold the calibrated cameras of one frame, each for its own image.

    Attributes:
        intrinsics: (n, 3, 3) float64; with distortion, those of the undistorted image.
        ego_from_cam: (n, 4, 4) float64, metres.
        sizes: (H, W) of every camera's stored image.
        distortions: of every stored image, ``None`` for a pinhole.
    """

    intrinsics: Tensor
    ego_from_cam: Tensor
    sizes: tuple[tuple[int, int], ...]
    distortions: tuple[DistortionModel | None, ...]

    def stored_intrinsics(self, number: int) -> Tensor:
        """Return (3, 3) intrinsics of a stored image, before it is undistorted."""
        distortion = self.distortions[number]
        return (
            self.intrinsics[number] if distortion is None else torch.tensor(distortion.intrinsics, dtype=torch.float64)
        )

    def camera(self, number: int) -> Cameras:
        """Return one camera, for its undistorted image of the stored size."""
        return Cameras(self.intrinsics[None, [number]], self.ego_from_cam[None, [number]], self.sizes[number])

    def rays(self, number: int) -> Callable[[Tensor], Tensor]:
        """Return a function from stored pixels (p, 2) to rays (p, 3) in the camera frame, NaN where there is none."""
        distortion = self.distortions[number]
        return partial(pinhole_rays, self.intrinsics[number]) if distortion is None else partial(rays_at, distortion)


RIG_KEYS = {"image_size", "intrinsics", "ego_from_cam"}
_OPTIONAL_KEYS = {"distortion"}


def camera_entries(cameras: Any, path: str) -> dict[str, dict[str, Any]]:
    """Return the entries of the cameras in ``calibration.json`` by their names, with known keys only.

    Raises:
        InputError: naming the camera, by ``path`` and its number.
    """
    if not isinstance(cameras, list) or not cameras:
        raise InputError(f"{path}: 'cameras' must be a list with at least one camera, in the order that tensors take")
    entries: dict[str, dict[str, Any]] = {}
    for number, camera in enumerate(cameras):
        check_keys(camera, {"name", *RIG_KEYS, *_OPTIONAL_KEYS}, {"name"}, f"{path}: camera {number}")
        name = check_name(camera["name"], f"{path}: camera {number}: name")
        if name in (".", "..") or {"/", "\\"} & {*name}:
            raise InputError(f"{path}: camera {number}: name {shown(name)} is not a valid folder name; rename it")
        if name in entries:
            raise InputError(f"{path}: two cameras are named {name!r}; names are folders, make them differ")
        entries[name] = {key: value for key, value in camera.items() if key != "name"}
    return entries


def read_frame_rig(entries: dict[str, dict[str, Any]], frame: Any, where: str) -> Rig:
    """Return the rig of a frame: its own cameras, and the shared ones for the rest."""
    check_keys(frame, set(entries), set(), where)
    for camera, entry in frame.items():
        check_keys(entry, RIG_KEYS | _OPTIONAL_KEYS, set(), f"{where}, camera {camera!r}")
    return read_rig({camera: {**shared, **frame.get(camera, {})} for camera, shared in entries.items()}, where)


def read_rig(entries: dict[str, dict[str, Any]], where: str) -> Rig:
    """Return the rig of complete entries.

    Raises:
        InputError: naming the camera and the key.
    """
    intrinsics, poses, sizes, distortions = [], [], [], []
    for camera, entry in entries.items():
        at = f"{where}, camera {camera!r}"
        check_keys(entry, RIG_KEYS | _OPTIONAL_KEYS, RIG_KEYS, at)
        poses.append(read_matrix(entry["ego_from_cam"], 4, f"{at}: ego_from_cam"))
        matrix, size, distortion = optics(entry, at, poses[-1])
        intrinsics.append(matrix if distortion is None else _undistorted_intrinsics(distortion, at))
        sizes.append(size)
        distortions.append(distortion)
    return Rig(torch.stack(intrinsics), torch.stack(poses), tuple(sizes), tuple(distortions))


def optics(
    entry: Mapping[str, Any], at: str, ego_from_cam: Tensor | None = None
) -> tuple[Tensor, tuple[int, int], DistortionModel | None]:
    """Return the stored intrinsics (3, 3), size (H, W) and distortion of a camera whose pose may be missing.

    Raises:
        InputError: naming the key, after ``at``.
    """
    matrix, size = read_matrix(entry["intrinsics"], 3, f"{at}: intrinsics"), entry["image_size"]
    if not (numbers(size, 2) and all(isinstance(side, int) and side > 0 for side in size)):
        raise InputError(f"{at}: image_size is {shown(size)}; it must be [height, width] in whole pixels")
    height, width = size
    if height * width > MAX_MEGAPIXELS * 10**6:
        raise InputError(
            f"{at}: image_size is {size}, more than the {MAX_MEGAPIXELS} million pixels that an image may have"
        )
    pose = torch.eye(4, dtype=torch.float64) if ego_from_cam is None else ego_from_cam
    check_calibration(matrix, pose, (height, width), at)
    return matrix, (height, width), _read_distortion(entry, (height, width), at)


def _read_distortion(entry: Mapping[str, Any], size: tuple[int, int], at: str) -> DistortionModel | None:
    stated = entry.get("distortion")
    if stated is None:
        return None
    check_keys(stated, {"model", "coefficients", "intrinsics"}, {"model", "coefficients"}, f"{at}: distortion")
    model, coefficients = stated["model"], stated["coefficients"]
    if not isinstance(model, str) or model not in MODELS:
        raise InputError(f"{at}: distortion: model is {shown(model)}; {suggest(str(model), MODELS)}")
    if not numbers(coefficients, *MODELS[model]):
        counts = " or ".join(map(str, MODELS[model]))
        raise InputError(f"{at}: distortion: coefficients are {shown(coefficients)}; {model} takes {counts} numbers")
    chosen = stated.get("intrinsics")
    if chosen is not None:
        check_calibration(
            read_matrix(chosen, 3, f"{at}: distortion: intrinsics"), torch.eye(4), size, f"{at}: distortion"
        )
    return DistortionModel(model, tuple(map(float, coefficients)), _tuples(entry["intrinsics"]), size, _tuples(chosen))


def _undistorted_intrinsics(distortion: DistortionModel, at: str) -> Tensor:
    try:
        return pinhole_intrinsics(distortion)
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _tuples(matrix: Any) -> Any:
    return None if matrix is None else tuple(tuple(float(value) for value in row) for row in matrix)
