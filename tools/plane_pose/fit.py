"""Fit the unknowns of a pose by least squares, and estimate their errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from bevreshape.errors import InputError
from plane_pose.camera import Array, Camera, Marks, pixel_from_ground, pose

ROLL_DEG = 1.0
"""Standard deviation of a roll that is assumed to be 0, radians."""


@dataclass(frozen=True)
class Fit:
    """Hold a least-squares solution and its problem.

    Attributes:
        unknown: the solution.
        pose: from unknowns to ``ego_from_cam``.
        errors: from unknowns to residuals, in pixels of the stored image.
        free: number of unknowns solved for, the first ones; with two lines the roll, the last one, is assumed.
    """

    unknown: Array
    pose: Callable[[Array], Array]
    errors: Callable[[Array], Array]
    free: int

    @property
    def redundancy(self) -> int:
        """Return the number of residuals beyond the free unknowns."""
        return len(self.errors(self.unknown)) - self.free

    @property
    def mark_px(self) -> float:
        """Return the marks' error by the residuals; 0 without redundancy."""
        squares = float(np.sum(self.errors(self.unknown) ** 2))
        return math.sqrt(squares / self.redundancy) if self.redundancy > 0 else 0.0

    def covariance(self, mark_px: float) -> Array | None:
        """Return the covariance of the unknowns for marks of that error; ``None`` where some are undetermined."""
        slopes = jacobian(self.errors, self.unknown) / mark_px
        if self.free < len(self.unknown):
            slopes = np.vstack([slopes, np.eye(len(self.unknown))[-1] / math.radians(ROLL_DEG)])
        sizes = np.linalg.norm(slopes, axis=0)
        if not sizes.all():
            return None
        _, singular, turned = np.linalg.svd(slopes / sizes, full_matrices=False)
        if singular[-1] < 1e-7 * singular[0]:
            return None
        root = turned.T / singular / sizes[:, None]
        return root @ root.T


def fit_points(camera: Camera, places: Array, most: int = 12) -> list[Fit]:
    """Return the least-squares poses with all points in front of the camera, the best first, of ``most`` starts.

    Raises:
        InputError: when there is none.
    """
    marks, ground = camera.marks(places[:, :2]), places[:, 2:]
    middle = ground.mean(0)
    unit = float(np.linalg.norm(ground - middle, axis=1).max())
    homogeneous = np.column_stack([ground, np.ones(len(ground))])
    stored_from_straight = np.linalg.inv(marks.straight_from_stored)

    def posed(unknown: Array) -> Array:
        yaw, pitch, roll, x, y, log_height = unknown
        return pose(yaw, pitch, roll, (middle[0] + unit * x, middle[1] + unit * y, unit * _height(log_height)))

    def errors(unknown: Array) -> Array:
        mapped = homogeneous @ pixel_from_ground(camera.intrinsics, posed(unknown)).T
        depth = np.maximum(mapped[:, 2:], 1e-3 * unit)  # behind the camera the error is large, and falls as it rotates
        return np.einsum("pij,pj->pi", stored_from_straight, mapped[:, :2] / depth - marks.straight).ravel()

    def depths(unknown: Array) -> Array:
        return homogeneous @ pixel_from_ground(camera.intrinsics, posed(unknown))[2]

    starts = []
    seen = np.linalg.solve(camera.intrinsics, [*marks.straight.mean(0), 1.0])
    for yaw in np.radians(np.arange(0, 360, 30)):
        for pitch in np.radians([5, 20, 50]):
            ray = pose(yaw, pitch, 0.0, (0, 0, 0))[:3, :3] @ seen
            if ray[2] < -1e-3:
                for height in (0.05, 0.2, 0.8):
                    x, y = -ray[:2] * (height / -ray[2])
                    starts.append(np.array([yaw, pitch, 0.0, x, y, math.log(height)]))
    if not starts:
        raise InputError("the marks are in the sky for every tried pose; is v, the row, second?")
    solved = _least_squares(errors, starts, most)
    before = [unknown for unknown in solved if (depths(unknown) > 0).all()]
    if not before:
        u, v, x, y = places[depths(solved[0]).argmin()]
        raise InputError(
            f"point ({u:g}, {v:g}) would be above the horizon for ({x:g}, {y:g}) m to appear there with the others; "
            "are u and v, or x (ahead) and y (left), in the right order?"
        )
    return [Fit(unknown, posed, errors, 6) for unknown in before]


def fit_lines(camera: Camera, marks: Sequence[Marks], spacing_m: float, meet: Array) -> Fit:
    """Fit the pose with the least squared distances of marks from their lines, which are ordered from left to right."""
    roll_free = len(marks) > 2
    free = 5 if roll_free else 4

    def posed(unknown: Array) -> Array:
        yaw, pitch, log_height, _, roll = unknown
        return pose(yaw, pitch, roll, (0.0, 0.0, spacing_m * _height(log_height)))

    def errors(unknown: Array) -> Array:
        homography = pixel_from_ground(camera.intrinsics, posed(unknown))
        distances = []
        for number, line in enumerate(marks):
            left_m = spacing_m * (unknown[3] - number)
            a, b, c = np.cross(homography[:, 0], homography[:, 1] * left_m + homography[:, 2])
            inexact = np.linalg.norm([a, b] @ line.straight_from_stored, axis=1)
            distances.append((line.straight @ [a, b] + c) / inexact)
        return np.concatenate(distances)

    across, down, ahead = np.linalg.solve(camera.intrinsics, [*meet, 1.0])
    yaw, pitch = math.atan2(across, ahead), -math.atan2(down, math.hypot(across, ahead))
    starts = [
        np.array([yaw, pitch, math.log(height), share * (len(marks) - 1)])
        for height in (0.05, 0.4, 1.5)
        for share in (0.0, 0.5, 1.0)
    ]
    if roll_free:
        solved = _least_squares(errors, [np.append(start, 0.0) for start in starts])[0]
    else:
        solved = np.append(_least_squares(lambda unknown: errors(np.append(unknown, 0.0)), starts)[0], 0.0)
    return Fit(solved, posed, errors, free)


def vanishing_point(camera: Camera, marks: Sequence[Marks]) -> Array | None:
    """Return where the lines meet in the undistorted image; ``None`` where they are parallel or the same."""
    size = max(camera.image_size)
    lines = []
    for line in marks:
        points = line.straight / size
        middle = points.mean(0)
        normal = np.linalg.svd(points - middle)[2][-1]
        lines.append([*normal, -normal @ middle])
    _, singular, turned = np.linalg.svd(np.array(lines))
    u, v, w = turned[-1]
    if singular[1] < 1e-6 or abs(w) < 1e-4 * math.hypot(u, v):
        return None
    return np.array([u, v]) / w * size


def _height(logarithm: float) -> float:
    """Return a height above the ground, bounded so that every step of the solver is finite."""
    return math.exp(min(20.0, max(-20.0, logarithm)))


def _least_squares(errors: Callable[[Array], Array], starts: Sequence[Array], most: int = 12) -> list[Array]:
    """Return least-squares solutions from the best starts, the best first."""
    promising = sorted(starts, key=lambda start: float(np.abs(errors(start)).sum()))[:most]
    solutions = [least_squares(errors, start, x_scale="jac", max_nfev=200) for start in promising]
    return [solution.x for solution in sorted(solutions, key=lambda solution: solution.cost)]


def jacobian(values: Callable[[Array], Array], at: Array) -> Array:
    """Return the Jacobian (values, unknowns) by central differences."""
    steps = 1e-6 * np.eye(len(at))
    return np.stack([(values(at + step) - values(at - step)) / 2e-6 for step in steps], axis=1)
