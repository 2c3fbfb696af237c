"""Check the first sample of each split of a data source: its shapes, and the calibration of its cameras.

Some mistakes are certain and raise an error: a pose that is mirrored or not rigid, or farther away than 100 m and the
grid's corners (millimetres); a camera below the ground; an implausible pose whose inverse is plausible, as if
``cam_from_ego`` was given. Only a camera that is rolled by 90° and faces the ego origin would be like that.

Other values are possible on some rig, and are logged as warnings: heights above 5 m, centimetres, a rolled camera, a
transposed rotation, other camera axes, an unusual principal point.
"""

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from bevreshape.data.batch import BEVSource, Sample
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, check_calibration
from bevreshape.geometry.calibration_checks import WRONG_WAY, diagnose_intrinsics, diagnose_pose

log = logging.getLogger(__name__)

EXTENT_M = 100.0
"""Distance from the ego origin beyond which a camera is refused, unless the grid extends farther."""


def check_first_samples(source: BEVSource, splits: Sequence[str]) -> None:
    """Check the first sample of each split, without changing torch's random state.

    Raises:
        InputError: when a sample does not fit the source, or a calibration is certainly wrong; names source, split,
            sample, camera and remedy.
    """
    with torch.random.fork_rng(devices=()):
        for split in splits:
            dataset = source.split(split)
            if len(dataset) > 0:  # type: ignore[arg-type]  # an empty one is refused with the sizes of the splits
                check_sample(dataset[0], source, f"data: {type(source).__name__}, {split}[0]")


def check_sample(sample: Any, source: BEVSource, where: str) -> None:
    """Check one sample of a source.

    Args:
        sample: as its dataset returns it.
        source: of the sample.
        where: beginning of messages.

    Raises:
        InputError: as :func:`check_first_samples`.
    """
    if not isinstance(sample, Sample):
        raise InputError(f"{where} is a {type(sample).__name__}; return a bevreshape.data.batch.Sample")
    where = f"{where} ({sample.meta.name})"
    wanted = (len(source.camera_names), 3, *source.image_size)
    if tuple(sample.images.shape) != wanted:
        raise InputError(
            f"{where}: images are {tuple(sample.images.shape)} but camera_names and image_size of the source ask for "
            f"{wanted}; make them agree"
        )
    for number, name in enumerate(source.camera_names):
        if sample.full_mask[number]:
            _check_camera(sample, number, source.grid, f"{where}, camera {name!r}")


def _check_camera(sample: Sample, number: int, grid: BEVGrid, where: str) -> None:
    camera = sample.cameras.map(lambda values: values[:, [number]])
    intrinsics, pose = sample.intrinsics[number].double(), sample.ego_from_cam[number].double()
    if torch.equal(pose, torch.eye(4, dtype=pose.dtype)):
        _warn(f"{where}: its ego_from_cam is the identity; methods that project need a calibration")
        return
    farthest = math.hypot(max(map(abs, grid.forward_m)), max(map(abs, grid.left_m)))
    check_calibration(intrinsics, pose, camera.image_size, where, max(EXTENT_M, farthest), cropped=True)
    doubts = diagnose_intrinsics(intrinsics, camera.image_size)
    if (mistake := diagnose_pose(camera, grid)) is not None:
        if mistake.startswith(WRONG_WAY) or pose[2, 3] < 0:
            raise InputError(f"{where}: {mistake}; correct ego_from_cam of the samples (x forward, y left, z up, m)")
        doubts.append(mistake)
    for doubt in doubts:
        _warn(f"{where}: {doubt}")


@cache
def _warn(message: str) -> None:
    """Log a warning once in a process."""
    log.warning("%s", message)
