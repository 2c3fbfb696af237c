"""Define the cameras of a vehicle: their mountings and the spread of their poses."""

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from bevreshape.config.options import checked


@checked
@dataclass(frozen=True)
class Spread:
    """Hold standard deviations of a camera's pose about its mounting.

    Attributes:
        yaw_deg: of a rotation to the left, about the camera's vertical axis.
        pitch_deg: of a rotation downwards, about its horizontal axis.
        roll_deg: of a rotation about its optical axis.
        height_m: of a shift upwards.
    """

    yaw_deg: Annotated[float, Ge(0), Le(45)] = 0.0
    pitch_deg: Annotated[float, Ge(0), Le(45)] = 0.0
    roll_deg: Annotated[float, Ge(0), Le(45)] = 0.0
    height_m: Annotated[float, Ge(0), Le(1)] = 0.0

    def draw(self, ego_from_cam: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Perturb poses (n, 4, 4), each by its own draw; every camera takes four draws."""
        lots = rng.standard_normal((len(ego_from_cam), 4)) * np.array(list(asdict(self).values()))
        moved = ego_from_cam.copy()
        for pose, (yaw, pitch, roll, height) in zip(moved, lots, strict=True):
            # In the camera frame (x right, y down, z forward) a rotation about -y goes left, about -x down.
            pose[:3, :3] = pose[:3, :3] @ _turn(1, -yaw) @ _turn(0, -pitch) @ _turn(2, roll)
            pose[2, 3] += height
        return moved


def _turn(axis: int, degrees: float) -> NDArray[np.float64]:
    """Return the rotation (3, 3) about a coordinate axis, right-handed."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = cos, -sin, sin, cos
    return turn


@dataclass(frozen=True)
class Mounting:
    """Describe a camera: position in metres; heading to the left, dip and horizontal field of view in degrees."""

    x: float
    y: float
    z: float
    yaw_deg: float
    pitch_deg: float
    fov_deg: float


# The surround rig has the positions, headings and fields of view of nuScenes' cameras, rounded.
Rig = Literal["front", "surround"]

RIGS: dict[str, dict[str, Mounting]] = {
    "front": {"front": Mounting(1.2, 0.0, 1.65, 0.0, 5.0, 80.0)},
    "surround": {
        "front": Mounting(1.7, 0.0, 1.5, 0.0, 2.0, 70.0),
        "front_left": Mounting(1.5, 0.5, 1.5, 55.0, 2.0, 70.0),
        "front_right": Mounting(1.5, -0.5, 1.5, -55.0, 2.0, 70.0),
        "back": Mounting(0.0, 0.0, 1.55, 180.0, 2.0, 110.0),
        "back_left": Mounting(1.0, 0.5, 1.55, 110.0, 2.0, 70.0),
        "back_right": Mounting(1.0, -0.5, 1.55, -110.0, 2.0, 70.0),
    },
}


@cache
def nominal(rig: str, image_size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``pixel_from_cam`` (n, 3, 3), with square pixels, and ``ego_from_cam`` (n, 4, 4) of a rig's mountings."""
    height, width = image_size
    cam_axes = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # a camera that faces along ego x
    intrinsics, poses = [], []
    for mounting in RIGS[rig].values():
        focal = width / 2 / math.tan(math.radians(mounting.fov_deg) / 2)
        intrinsics.append([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = _turn(2, mounting.yaw_deg) @ _turn(1, mounting.pitch_deg) @ cam_axes
        pose[:3, 3] = mounting.x, mounting.y, mounting.z
        poses.append(pose)
    rig_of_all = np.array(intrinsics, np.float64), np.array(poses)
    for shared in rig_of_all:
        shared.flags.writeable = False
    return rig_of_all
