"""Read the tables of a nuScenes release, keyframe by keyframe, in the conventions of this package.

The ego frame is that of the published protocols: the vehicle at the time of the lidar sweep, rotated about the vertical
alone, as in CVT. Every camera has its pose at the time of its own image, so a rig differs slightly between keyframes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from bevreshape.errors import InputError
from bevreshape.reporting.progress import track

CameraName = Literal[
    "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"
]  # fmt: skip
CAMERAS: tuple[CameraName, ...] = get_args(CameraName)
"""Cameras of the vehicle, from left to right, the front ones first."""

LIDAR = "LIDAR_TOP"

Matrix = NDArray[np.float64]


class CameraRecord(TypedDict):
    """Describe an image and its camera."""

    file: str
    """Relative to the folder of the release."""
    size: tuple[int, int]
    """(H, W) in pixels."""
    intrinsics: list[list[float]]
    ego_from_cam: list[list[float]]


class BoxRecord(TypedDict):
    """Describe an annotated object in the ego frame."""

    category: str
    """Such as ``vehicle.car``."""
    visibility: int
    """1 to 4: the share of it visible to all cameras together, up to 40, 60, 80, 100 %."""
    center_m: tuple[float, float, float]
    size_m: tuple[float, float, float]
    """Length, width, height."""
    yaw: float
    """Radians, counter-clockwise seen from above."""


class Keyframe(TypedDict):
    """A keyframe."""

    token: str
    world_from_ego: list[list[float]]
    cameras: dict[str, CameraRecord]
    boxes: list[BoxRecord]


class SceneRecord(TypedDict):
    """Describe a drive of about 20 s."""

    name: str
    location: str
    description: str
    split: str
    """Its official split: ``train``, ``val``, ``test`` (without labels), or ``unlisted``."""
    first: int
    """Index of its first keyframe."""
    count: int


def open_tables(root: Path, version: str) -> Any:
    """Open the devkit's ``NuScenes`` of a release.

    Raises:
        InputError: when the devkit, the release or one of its tables is missing.
    """
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise InputError(
            f"the tables of nuScenes are read with nuscenes-devkit, which cannot be imported ({error}); "
            "pip install 'bevreshape[nuscenes]', if necessary in a separate environment: training does not need it"
        ) from None
    folder = root / version
    if not folder.is_dir():
        there = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir()) if root.is_dir() else []
        known = f"there are {', '.join(there)}" if there else f"{root} holds no release at all"
        raise InputError(f"{folder}: there is no such release; {known}: set version=, or root= to its folder")
    tables = (
        "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
        "sample", "sample_data", "sample_annotation", "map",
    )  # fmt: skip
    for name in tables:
        if not (folder / f"{name}.json").is_file():
            raise InputError(f"{folder / f'{name}.json'}: this table is missing; unpack the release's metadata again")
    try:
        return NuScenes(version, str(root), verbose=False)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{folder}: a table is damaged or refers to missing records ({error!r}); unpack the release's metadata "
            "again"
        ) from None


def open_map(root: Path, location: str) -> Any:
    """Open the devkit's ``NuScenesMap`` of a location.

    Raises:
        InputError: when the map expansion is missing or outdated.
    """
    from nuscenes.map_expansion.map_api import NuScenesMap

    path = root / "maps" / "expansion" / f"{location}.json"
    if not path.is_file():
        raise InputError(
            f"{path}: the map expansion is missing; download nuScenes-map-expansion-v1.3.zip from nuscenes.org and "
            f"unpack it in {root / 'maps'}"
        )
    try:
        return NuScenesMap(str(root), location)
    except Exception as error:  # the devkit raises a bare Exception for an outdated one
        raise InputError(f"{path}: it cannot be read ({error}); download the map expansion v1.3 again") from None


def read_keyframes(tables: Any, root: Path) -> tuple[list[SceneRecord], list[Keyframe], list[str]]:
    """Return all keyframes of a release, scene by scene, in the order of time.

    Args:
        tables: from :func:`open_tables`.
        root: of the release.

    Returns:
        The scenes, their keyframes, and the reason for every keyframe that was left out.
    """
    from nuscenes.utils.splits import create_splits_scenes

    names = ("mini_train", "mini_val") if "mini" in tables.version else ("train", "val", "test")
    splits = {name: split.removeprefix("mini_") for split in names for name in create_splits_scenes()[split]}
    scenes: list[SceneRecord] = []
    keyframes: list[Keyframe] = []
    skipped: list[str] = []
    for scene in track(sorted(tables.scene, key=lambda record: record["name"]), "reading scenes"):
        first, token = len(keyframes), scene["first_sample_token"]
        while token:
            sample = _referred(tables, "sample", token, scene["name"])
            try:
                lacking = _lacking(tables, root, sample)
                if not lacking:
                    keyframes.append(_keyframe(tables, sample))
            except KeyError as error:
                lacking = f"a table refers to {error}, which is not there"
            if lacking:
                skipped.append(f"{scene['name']} {token}: {lacking}")
            token = sample["next"]
        scenes.append(
            SceneRecord(
                name=scene["name"], location=_referred(tables, "log", scene["log_token"], scene["name"])["location"],
                description=scene["description"], split=splits.get(scene["name"], "unlisted"), first=first,
                count=len(keyframes) - first,
            )
        )  # fmt: skip
    return scenes, keyframes, skipped


def _referred(tables: Any, table: str, token: str, where: str) -> Mapping[str, Any]:
    """Return a record that a scene needs.

    Raises:
        InputError: when it is missing.
    """
    try:
        found: Mapping[str, Any] = tables.get(table, token)
    except KeyError:
        raise InputError(
            f"{tables.version}/{table}.json: {where} refers to {token}, which is not there; unpack the release's "
            "metadata again"
        ) from None
    return found


def _lacking(tables: Any, root: Path, sample: Mapping[str, Any]) -> str:
    """Return why a keyframe cannot be used, or an empty text."""
    for channel in (*CAMERAS, LIDAR):
        if channel not in sample["data"]:
            return f"it has no {channel}"
    for camera in CAMERAS:
        file = tables.get("sample_data", sample["data"][camera])["filename"]
        if not (root / file).is_file():
            return f"{file} is not there"
    return ""


def _keyframe(tables: Any, sample: Mapping[str, Any]) -> Keyframe:
    lidar = tables.get("sample_data", sample["data"][LIDAR])
    world_from_ego = levelled(_pose(tables.get("ego_pose", lidar["ego_pose_token"])))
    ego_from_world = inverse(world_from_ego)
    cameras: dict[str, CameraRecord] = {}
    for name in CAMERAS:
        image = tables.get("sample_data", sample["data"][name])
        sensor = tables.get("calibrated_sensor", image["calibrated_sensor_token"])
        world_from_vehicle = _pose(tables.get("ego_pose", image["ego_pose_token"]))  # at the time of the image
        cameras[name] = CameraRecord(
            file=image["filename"], size=(image["height"], image["width"]), intrinsics=sensor["camera_intrinsic"],
            ego_from_cam=(ego_from_world @ world_from_vehicle @ _pose(sensor)).tolist(),
        )  # fmt: skip
    boxes = [_box(tables.get("sample_annotation", token), ego_from_world) for token in sample["anns"]]
    return Keyframe(token=sample["token"], world_from_ego=world_from_ego.tolist(), cameras=cameras, boxes=boxes)


def _box(annotation: Mapping[str, Any], ego_from_world: Matrix) -> BoxRecord:
    ego_from_box = ego_from_world @ _pose(annotation)
    width, length, height = annotation["size"]
    x, y, z = ego_from_box[:3, 3].tolist()
    return BoxRecord(
        category=annotation["category_name"], visibility=int(annotation["visibility_token"] or 4), center_m=(x, y, z),
        size_m=(length, width, height), yaw=math.atan2(ego_from_box[1, 0], ego_from_box[0, 0]),
    )  # fmt: skip


def _pose(record: Mapping[str, Any]) -> Matrix:
    """Return the (4, 4) pose of a record's unit quaternion and translation."""
    return pose_of(record["rotation"], record["translation"])


def pose_of(quaternion: Sequence[float], translation: Sequence[float]) -> Matrix:
    """Return the (4, 4) pose of a quaternion w, x, y, z and a translation in metres."""
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation
    return pose


def levelled(pose: Matrix) -> Matrix:
    """Return the pose with its rotation about the vertical alone."""
    yaw = math.atan2(pose[1, 0], pose[0, 0])
    level = np.eye(4)
    level[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    level[:3, 3] = pose[:3, 3]
    return level


def inverse(pose: Matrix) -> Matrix:
    """Invert a rigid (4, 4) transform."""
    turned = np.eye(4)
    turned[:3, :3] = pose[:3, :3].T
    turned[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return turned
