"""Where a camera stands and looks, from marks on flat ground: ``ego_from_cam`` where nobody has measured it.

From points: four or more pixels whose places on the ground are known, as ``u,v,x,y``: pixels of the stored image, and
metres ahead and to the left of the ego origin, which may be anywhere on the ground. Finds all of the pose.

From lanes: two or more straight, parallel lines on the ground, equally far apart, each by two or more pixels ``u,v``. The
ego frame then has its origin on the ground below the camera and its x along the lines. Two lines give yaw, pitch and height
of a camera that is assumed not to roll; three give the roll too.

The camera's intrinsics, and its distortion if it has one, stand in a ``calibration.json`` whose camera still lacks
``ego_from_cam``, or are given by ``--intrinsics fx fy cx cy --size height width``. The pose with the least squared distance
in pixels between marks and their places is written to ``--out``, a ``calibration.json`` for a camera folder.

Behind each ± is one standard error: what marks that are off by ``--mark-px`` pixels, or by more where the residuals say so,
do to it. Errors of the intrinsics, and ground that is not flat, come on top. Marks that do not fit one pose, fit several, or
leave the pose open are refused, and so is a camera in a height where no vehicle has one; then nothing is written.

    python tools/calibrate_plane.py --calibration data/mine/calibration.json --out data/mine/calibration.json \\
        --points 302,608,6,1.75 978,609,6,-1.75 527,443,18,1.75 753,443,18,-1.75
    python tools/calibrate_plane.py --intrinsics 1158 1158 640 360 --size 720 1280 --out data/mine/calibration.json \\
        --line 302,608 527,443 --line 978,609 753,443 --spacing 3.5
"""

import argparse
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from camera_folder import read_json, rows
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from scipy.optimize import least_squares

from bevreshape.config import cli
from bevreshape.config.arguments import Parser
from bevreshape.data.sources.folder.calibration import VERSION, camera_entries, optics, read_calibration
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import DistortionModel
from bevreshape.geometry.calibration_checks import HEIGHTS_M
from bevreshape.storage.files import write_text

Array = NDArray[np.float64]

MARK_PX = 1.0
"""How exactly marks are placed, where nobody says so: the standard deviation of a pixel's u, and of its v."""
DOUBTFUL, UNFIT = 1.5, 3.0
"""From how many times the marks' own inexactness a residual is doubted, and refused."""
COLLINEAR = 0.02
"""Points whose spread across their line is less than this share of that along it say nothing about one turn."""
ROLL_DEG = 1.0
"""Standard deviation of the roll where it is assumed to be 0."""
OPEN_DEG, OPEN_SHARE = 5.0, 1 / 3
"""Standard errors of an angle, and of the height as a share of it, from which a pose is called open."""
HIGH_M = 3.0
"""Cars have no cameras above it."""
NEAREST_M, FARTHEST_M = 0.001, 1000.0
"""Between lines; the latter also of a mark from the ego origin."""
AHEAD_M = 30.0
"""Where on the ground the uncertainty is shown in metres."""
RIVAL = 9.0
"""A second pose is as good when its sum of squares is larger by less than this many times that of one mark."""


@dataclass(frozen=True)
class Marks:
    """Marked pixels.

    Attributes:
        stored: (p, 2), of the stored image.
        straight: (p, 2), where a camera with the same intrinsics and no distortion would have them.
        straight_from_stored: (p, 2, 2), how a small step in the one moves the other.
    """

    stored: Array
    straight: Array
    straight_from_stored: Array


@dataclass(frozen=True)
class Camera:
    """What is known of a camera.

    Attributes:
        intrinsics: (3, 3), of the stored image.
        image_size: (H, W).
        lens: its distortion; ``None`` for a pinhole.
        mark_px: how exactly its pixels are marked.
    """

    intrinsics: Array
    image_size: tuple[int, int]
    lens: DistortionModel | None = None
    mark_px: float = MARK_PX

    def marks(self, pixels: Array) -> Marks:
        """Marks at stored pixels (p, 2).

        Raises:
            InputError: outside the image, or where the distortion cannot be undone.
        """
        height, width = self.image_size
        for u, v in pixels:
            if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
                raise InputError(
                    f"mark ({u:g}, {v:g}) lies outside the image of {width}×{height} pixels; u, the column, comes first"
                )
        if self.lens is None:
            return Marks(pixels, pixels, np.broadcast_to(np.eye(2), (len(pixels), 2, 2)))
        steps = np.array([[0, 0], [0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
        points, found = self.lens.undistort(torch.from_numpy((steps[:, None] + pixels).reshape(-1, 2)))
        complete = found.reshape(5, -1).all(0).numpy()
        if not complete.all():
            u, v = pixels[~complete][0]
            raise InputError(
                f"mark ({u:g}, {v:g}): the distortion cannot be undone there; choose one nearer to the middle"
            )
        straight = points.numpy() @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]
        middle, right, left, down, up = straight.reshape(5, -1, 2)
        return Marks(pixels, middle, np.stack([right - left, down - up], axis=-1))


@dataclass(frozen=True)
class Fit:
    """The least sum of squares, and what it is of.

    Attributes:
        unknown: the solution.
        pose: ``ego_from_cam`` of such unknowns.
        errors: residuals in pixels of the stored image of such unknowns.
        free: how many of the unknowns, the first ones, were solved for; the roll of two lines, the last one, is assumed.
    """

    unknown: Array
    pose: Callable[[Array], Array]
    errors: Callable[[Array], Array]
    free: int

    @property
    def redundancy(self) -> int:
        """Residuals that the marks have to spare."""
        return len(self.errors(self.unknown)) - self.free

    @property
    def mark_px(self) -> float:
        """How exact the marks are by the residuals; 0 where nothing is to spare."""
        squares = float(np.sum(self.errors(self.unknown) ** 2))
        return math.sqrt(squares / self.redundancy) if self.redundancy > 0 else 0.0

    def covariance(self, mark_px: float) -> Array | None:
        """Of the unknowns, of marks that exact; ``None`` where the marks leave some of them open."""
        slopes = _slopes(self.errors, self.unknown) / mark_px
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


@dataclass(frozen=True)
class Solution:
    """A camera's pose on the ground, and one standard error of each figure.

    Attributes:
        ego_from_cam: (4, 4), metres.
        angles_deg: yaw to the left, pitch downwards, roll clockwise.
        angles_error_deg: theirs.
        position_error_m: of x, y, z.
        ahead_error_m: of a place on the ground ``AHEAD_M`` before the camera: along its line of sight, and across.
        residuals_px: of every mark.
        redundancy: residuals to spare; with 0 nothing checks the marks.
        marks_px: how exact the marks are by their residuals.
        note: what was assumed.
    """

    ego_from_cam: Array
    angles_deg: tuple[float, float, float]
    angles_error_deg: tuple[float, float, float]
    position_error_m: tuple[float, float, float]
    ahead_error_m: tuple[float, float]
    residuals_px: Array
    redundancy: int
    marks_px: float
    note: str

    @property
    def rms_px(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals_px**2)))


def pose(yaw: float, pitch: float, roll: float, position: Sequence[float]) -> Array:
    """``ego_from_cam`` of a camera that looks to the left by yaw, down by pitch, turned clockwise by roll: radians."""
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)])
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    right = math.cos(roll) * level + math.sin(roll) * np.cross(forward, level)
    result = np.eye(4)
    result[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    result[:3, 3] = position
    return result


def pixel_from_ground(intrinsics: Array, ego_from_cam: Array) -> Array:
    """Homography (3, 3) from ground points (x, y, 1) to pixels; its third coordinate is depth."""
    return intrinsics @ np.linalg.inv(ego_from_cam)[:3, [0, 1, 3]]


def from_points(camera: Camera, places: Array) -> Solution:
    """Pose from places (p, 4): u, v in pixels, x, y in metres.

    Raises:
        InputError: fewer than four, (nearly) on one line, marks that fit no pose or several, or that leave it open.
    """
    count = min(len(np.unique(places[:, columns], axis=0)) for columns in ([0, 1], [2, 3]))
    if count < 4:
        raise InputError(f"{count} different points were marked; yaw, pitch, roll and position need four or more")
    for x, y in places[:, 2:]:
        if math.hypot(x, y) > FARTHEST_M:
            raise InputError(
                f"({x:g}, {y:g}) m is farther than {FARTHEST_M:g} m from the ego origin; places are in metres"
            )
    for what, columns in (("on the ground", places[:, 2:]), ("in the image", places[:, :2])):
        along, across = np.linalg.svd(columns - columns.mean(0), compute_uv=False)[:2]
        if across <= COLLINEAR * along:
            raise InputError(f"the {len(places)} points lie on one line {what}; mark some beside it")
    fits = _fit_points(camera, places)
    names = [f"({u:g}, {v:g}) for ({x:g}, {y:g}) m" for u, v, x, y in places]
    note = "ground points, all of the pose free"
    return _checked(camera, fits, names, note, 2, lambda: _other_readings(camera, places))


def from_lines(camera: Camera, lines: Sequence[Array], spacing_m: float) -> Solution:
    """Pose from parallel lines on the ground, each (p, 2) pixels, neighbours ``spacing_m`` apart.

    Raises:
        InputError: fewer than two lines or two pixels a line, no spacing, lines that do not meet, marks above where they
            do, or marks that fit no pose or leave it open.
    """
    if len(lines) < 2 or min(map(len, lines)) < 2:
        raise InputError(
            f"{len(lines)} lines of {', '.join(str(len(line)) for line in lines)} pixels were marked; two lines of two "
            "pixels each are the least"
        )
    if not NEAREST_M <= spacing_m <= FARTHEST_M:
        raise InputError(
            f"--spacing {spacing_m:g} must be the metres between neighbouring lines, {NEAREST_M:g} to {FARTHEST_M:g}"
        )
    marks = [camera.marks(line) for line in lines]
    for line in lines:
        if np.linalg.norm(line - line[0], axis=1).max() < 2 * camera.mark_px:
            u, v = line[0]
            raise InputError(f"all pixels of a line are at ({u:g}, {v:g}); mark it at two places that are far apart")
    meet = _vanishing_point(camera, marks)
    if meet is None:
        raise InputError(
            "the lines are parallel or the same in the image, so they show no horizon; mark other lines, or points with --points"
        )
    for each in marks:
        if (each.straight[:, 1] <= meet[1]).any():
            u, v = each.stored[each.straight[:, 1].argmin()]
            raise InputError(
                f"mark ({u:g}, {v:g}) lies above the horizon, row {meet[1]:.0f}, where the lines meet; mark the ground only, and "
                "lines that are parallel on it"
            )
    marks.sort(key=lambda line: math.atan2(*(line.straight.mean(0) - meet)))  # from left to right
    names = [f"({u:g}, {v:g})" for line in marks for u, v in line.stored]
    note = f"{len(lines)} lines {spacing_m:g} m apart" + ("" if len(lines) > 2 else ", roll assumed to be 0")
    return _checked(camera, [_fit_lines(camera, marks, spacing_m, meet)], names, note, 1, lambda: None)


def _fit_points(camera: Camera, places: Array, most: int = 12) -> list[Fit]:
    """Every pose of a least sum of squares from which all points lie in front of the camera, the best first, of so many starts.

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
        depth = np.maximum(mapped[:, 2:], 1e-3 * unit)  # behind the camera the error is large, and falls as it turns
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
        raise InputError("the marks lie in the sky for every pose that was tried; are they v, the row, second?")
    solved = _least_squares(errors, starts, most)
    before = [unknown for unknown in solved if (depths(unknown) > 0).all()]
    if not before:
        u, v, x, y = places[depths(solved[0]).argmin()]
        raise InputError(
            f"point ({u:g}, {v:g}) would lie above the horizon for ({x:g}, {y:g}) m to be seen there with the others; are u "
            "and v, or x (ahead) and y (left), in the right order?"
        )
    return [Fit(unknown, posed, errors, 6) for unknown in before]


def _fit_lines(camera: Camera, marks: Sequence[Marks], spacing_m: float, meet: Array) -> Fit:
    """The pose of the least squared distances of marks from their lines, which are given from left to right."""
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


def _vanishing_point(camera: Camera, marks: Sequence[Marks]) -> Array | None:
    """Where the lines meet in the undistorted image; ``None`` where they are parallel or the same."""
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
    """A height above the ground that no step of the solver takes out of what can be computed."""
    return math.exp(min(20.0, max(-20.0, logarithm)))


def _least_squares(errors: Callable[[Array], Array], starts: Sequence[Array], most: int = 12) -> list[Array]:
    """Least sums of squares from the most promising starts, the best first."""
    promising = sorted(starts, key=lambda start: float(np.abs(errors(start)).sum()))[:most]
    solutions = [least_squares(errors, start, x_scale="jac", max_nfev=200) for start in promising]
    return [solution.x for solution in sorted(solutions, key=lambda solution: solution.cost)]


def _checked(
    camera: Camera,
    fits: Sequence[Fit],
    names: Sequence[str],
    note: str,
    rows_a_mark: int,
    hint: Callable[[], str | None],
) -> Solution:
    """The best fit as a solution.

    Args:
        camera: of the marks.
        fits: the best first.
        names: of the marks.
        note: what was assumed.
        rows_a_mark: residuals that each mark has.
        hint: says how the marks would fit.

    Raises:
        InputError: when it does not fit, another one fits as well, or it is open.
    """
    best = fits[0]
    residuals = np.linalg.norm(best.errors(best.unknown).reshape(-1, rows_a_mark), axis=1)
    if best.mark_px > UNFIT * camera.mark_px:
        worst = int(residuals.argmax())
        raise InputError(
            f"the marks fit no pose: {names[worst]} is {residuals[worst]:.1f} pixels off, all of them {np.sqrt(np.mean(residuals**2)):.1f} "
            f"(root mean square), which is {best.mark_px / camera.mark_px:.0f} times what marks of {camera.mark_px:g} pixels have; "
            + (hint() or "correct it, mark ground that is flat, or say with --mark-px how exactly pixels can be marked")
        )
    mark_px = max(camera.mark_px, best.mark_px)
    covariance = best.covariance(mark_px)
    if covariance is None:
        raise InputError("the marks leave the pose open; mark more, farther apart")
    rival = next((other for other in fits[1:] if _as_good(other, best, mark_px)), None)
    if rival is not None:
        described = " and ".join(_in_words(fit.pose(fit.unknown)) for fit in (best, rival))
        raise InputError(f"the marks fit two poses: {described}; mark another place, away from the others")
    ego_from_cam = best.pose(best.unknown)
    slopes = _slopes(_figures(camera, best), best.unknown)
    error = np.sqrt(np.diag(slopes @ covariance @ slopes.T))
    angles = angles_of(ego_from_cam)
    if error[:2].max() > math.radians(OPEN_DEG) or error[5] > OPEN_SHARE * ego_from_cam[2, 3]:
        yaw, pitch = (math.degrees(value) for value in error[:2])
        raise InputError(
            f"marks that are {mark_px:.2g} pixels off leave the pose open: yaw ± {yaw:.1f}°, pitch ± {pitch:.1f}°, height "
            f"{ego_from_cam[2, 3]:.2f} ± {error[5]:.2f} m; mark more, farther apart"
        )
    return Solution(
        ego_from_cam, _degrees(angles), _degrees(error[:3]), tuple(error[3:6]), tuple(error[6:]), residuals,
        best.redundancy, best.mark_px, note,
    )  # fmt: skip


def _figures(camera: Camera, fit: Fit) -> Callable[[Array], Array]:
    """Yaw, pitch, roll, x, y, z, and where a place ``AHEAD_M`` ahead is put along and across, relative to the solution's."""
    solved = fit.pose(fit.unknown)
    yaw = angles_of(solved)[0]
    ahead, left = np.array([math.cos(yaw), math.sin(yaw)]), np.array([-math.sin(yaw), math.cos(yaw)])
    place = solved[:2, 3] + AHEAD_M * ahead
    pixel = pixel_from_ground(camera.intrinsics, solved) @ [*place, 1.0]

    def figures(unknown: Array) -> Array:
        posed = fit.pose(unknown)
        turned = [math.remainder(a - b, math.tau) for a, b in zip(angles_of(posed), angles_of(solved), strict=True)]
        x, y, w = np.linalg.solve(pixel_from_ground(camera.intrinsics, posed), pixel)
        moved = np.array([x, y]) / w - place
        return np.array([*turned, *(posed[:3, 3] - solved[:3, 3]), moved @ ahead, moved @ left])

    return figures


def _slopes(values: Callable[[Array], Array], at: Array) -> Array:
    """Jacobian (values, unknowns) by central differences."""
    steps = 1e-6 * np.eye(len(at))
    return np.stack([(values(at + step) - values(at - step)) / 2e-6 for step in steps], axis=1)


def _as_good(other: Fit, best: Fit, mark_px: float) -> bool:
    """Whether another solution explains the marks as well, and is not the same one found again."""
    squares = [np.sum(fit.errors(fit.unknown) ** 2) for fit in (other, best)]
    if squares[0] - squares[1] > RIVAL * mark_px**2:
        return False
    poses = [fit.pose(fit.unknown) for fit in (other, best)]
    turned = math.acos(min(1.0, max(-1.0, (np.trace(poses[0][:3, :3].T @ poses[1][:3, :3]) - 1) / 2)))
    moved = np.linalg.norm(poses[0][:3, 3] - poses[1][:3, 3])
    return turned > math.radians(2 * OPEN_DEG) or moved > poses[1][2, 3]


def _other_readings(camera: Camera, places: Array) -> str | None:
    """What the marks would fit if they were written otherwise."""
    u, v, x, y = places.T
    readings = {
        "with u and v exchanged": np.stack([v, u, x, y], axis=1),
        "with rows counted from the top": np.stack([u, camera.image_size[0] - 1 - v, x, y], axis=1),
        "with y, to the left, negated": np.stack([u, v, x, -y], axis=1),
        "with x, ahead, and y, to the left, exchanged": np.stack([u, v, y, x], axis=1),
    }
    for first, second in combinations(range(len(places)) if len(places) <= 6 else (), 2):
        exchanged = places.copy()
        exchanged[[first, second], :2] = exchanged[[second, first], :2]
        pixels = " and ".join(f"({places[number, 0]:g}, {places[number, 1]:g})" for number in (first, second))
        readings[f"with the pixels {pixels} exchanged"] = exchanged
    turned = {}
    for reading, changed in readings.items():
        try:
            fit = _fit_points(camera, changed, most=3)[0]
        except InputError:
            continue
        angles, height = angles_of(fit.pose(fit.unknown)), fit.pose(fit.unknown)[2, 3]
        if fit.mark_px <= UNFIT * camera.mark_px and HEIGHTS_M[0] <= height <= HEIGHTS_M[1]:
            turned[reading] = abs(angles[0]) + abs(angles[2])
    return f"they would fit {min(turned, key=lambda reading: turned[reading])}" if turned else None


def angles_of(ego_from_cam: Array) -> tuple[float, float, float]:
    """Yaw to the left, pitch downwards, roll clockwise, in radians: the inverse of :func:`pose`."""
    right, _, forward = ego_from_cam[:3, :3].T
    yaw, pitch = math.atan2(forward[1], forward[0]), -math.asin(max(-1.0, min(1.0, forward[2])))
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    return yaw, pitch, math.atan2(right @ np.cross(forward, level), right @ level)


def _degrees(angles: Sequence[float] | Array) -> tuple[float, float, float]:
    yaw, pitch, roll = map(math.degrees, angles)
    return yaw, pitch, roll


def _in_words(ego_from_cam: Array) -> str:
    yaw, pitch, _ = _degrees(angles_of(ego_from_cam))
    return f"{ego_from_cam[2, 3]:.2f} m high, looking {_turned(yaw, 'to the left', 'to the right')}, {_turned(pitch, 'down', 'up')}"


def _turned(degrees: float, positive: str, negative: str, error: float | None = None) -> str:
    """An angle whose direction is said in a word, as a sign beside one would be read twice."""
    shown = f"{abs(degrees):.2f}°"
    uncertain = "" if error is None else f" ± {error:.2f}°"
    if float(f"{degrees:.2f}") == 0:
        return f"{shown}{uncertain} {positive}"
    return f"{shown}{uncertain} {positive if degrees > 0 else negative}"


def known_camera(content: Any, name: str | None, where: str, mark_px: float = MARK_PX) -> tuple[Camera, dict[str, Any]]:
    """A camera of a ``calibration.json`` that may lack its pose, and its entry.

    Raises:
        InputError: when it is not there, or lacks intrinsics or size.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{where}: this is {type(content).__name__}; it must be an object with 'cameras' (data/README.md)"
        )
    camera_entries(content.get("cameras"), where)
    entries = {entry["name"]: entry for entry in content["cameras"]}
    chosen = name or next(iter(entries))
    if chosen not in entries or (name is None and len(entries) > 1):
        raise InputError(f"{where}: say which camera with --camera; {suggest(str(name), entries)}")
    entry = entries[chosen]
    for key in ("intrinsics", "image_size"):
        if key not in entry:
            raise InputError(f"{where}: camera {chosen!r} has no {key}, which cannot be estimated here; add it")
    intrinsics, size, lens = optics(entry, f"{where}: camera {chosen!r}")
    return Camera(intrinsics.numpy(), size, lens, mark_px), entry


def calibrate(args: argparse.Namespace) -> tuple[Solution, list[str]]:
    """Solve, check, and write; returns the doubts as well."""
    if not 0 < args.mark_px <= 100:
        raise InputError(f"--mark-px {args.mark_px:g} must be pixels, more than 0 and at most 100")
    low, high = args.camera_height
    if not 0 < low < high <= FARTHEST_M:
        raise InputError(f"--camera-height {low:g} {high:g} must be two heights in metres, the lower first")
    given = [args.intrinsics is not None, args.size is not None]
    if args.calibration is not None and not any(given):
        content = read_json(args.calibration)
        camera, entry = known_camera(content, args.camera, str(args.calibration), args.mark_px)
    elif args.calibration is None and all(given):
        fx, fy, cx, cy = args.intrinsics
        entry = {"name": args.camera or "front", "image_size": args.size}
        entry["intrinsics"] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        content = {"version": VERSION, "cameras": [entry]}
        camera, _ = known_camera(content, None, "--intrinsics", args.mark_px)
    else:
        raise InputError(
            "give the intrinsics: --calibration FILE, or --intrinsics fx fy cx cy with --size height width"
        )
    if bool(args.points) == bool(args.line):
        raise InputError("mark the ground with either --points u,v,x,y … or --line u,v u,v … --line … --spacing METRES")
    if bool(args.line) != (args.spacing is not None):
        raise InputError("--line needs --spacing, the metres between neighbouring lines, and --points takes none")
    if args.points:
        solution = from_points(camera, np.array([_numbers(mark, 4) for mark in args.points]))
    else:
        lines = [np.array([_numbers(mark, 2) for mark in line]) for line in args.line]
        solution = from_lines(camera, lines, args.spacing)
    _check_plausible(solution, low, high)
    entry["ego_from_cam"] = rows(solution.ego_from_cam)
    optics(entry, f"camera {entry['name']!r}", torch.from_numpy(solution.ego_from_cam))
    content["note"] = _with_note(content.get("note"), entry["name"], solution)
    text = json.dumps(content, indent=1) + "\n"
    if all("ego_from_cam" in other for other in content["cameras"]):
        check_text(text, args.out)
    write_text(args.out, text)
    return solution, list(_doubts(solution, camera, content, entry["name"], args.camera_height is HEIGHTS_M))


def _check_plausible(solution: Solution, low: float, high: float) -> None:
    height, roll = solution.ego_from_cam[2, 3], solution.angles_deg[2]
    if not low <= height <= high:
        raise InputError(
            f"the camera would stand {height:.2f} m above the ground, not {low:g} to {high:g} m; are the places on the ground, or "
            "--spacing, in metres? If it does stand there, say so with --camera-height LOW HIGH"
        )
    if abs(roll) > 45:
        raise InputError(
            f"the camera would be rolled by {roll:.0f}°; are u, the column, and v, the row, in the right order, and is the image "
            "stored upright?"
        )


def _with_note(note: Any, camera: str, solution: Solution) -> str:
    """The calibration's note with what was measured now; of an earlier time it is taken out."""
    measured = (
        f"{camera}: ego_from_cam from {solution.note}; residual {solution.rms_px:.2f} pixels, height ± "
        f"{solution.position_error_m[2]:.3f} m, pitch ± {solution.angles_error_deg[1]:.3f}°."
    )
    kept = re.sub(rf" ?{re.escape(camera)}: ego_from_cam from [^;]*; residual [^°]*°\.", "", str(note or "")).strip()
    return f"{kept} {measured}" if kept else measured


def _doubts(solution: Solution, camera: Camera, content: dict[str, Any], name: str, any_height: bool) -> Iterator[str]:
    if solution.marks_px > DOUBTFUL * camera.mark_px:
        yield f"the residual is {solution.marks_px / camera.mark_px:.1f} times what marks of {camera.mark_px:g} pixels have; mark more exactly, on ground that is flat"
    if solution.redundancy == 0:
        yield "these marks fit some pose in any case, so nothing checks them; mark a third place on a line, or a third line"
    if solution.ahead_error_m[0] > AHEAD_M / 2:
        yield f"what is {AHEAD_M:g} m ahead cannot be placed; mark farther apart, and far ahead"
    height = solution.ego_from_cam[2, 3]
    if any_height and height > HIGH_M:
        yield f"{height:.2f} m is higher than cars carry cameras; are the places on the ground, or --spacing, in metres?"
    own = [frame for frame, rig in content.get("frames", {}).items() if "ego_from_cam" in rig.get(name, {})]
    if own:
        yield f"{len(own)} frames, {own[0]!r} first, have an ego_from_cam of their own, which this one does not replace"


def check_text(text: str, path: Path) -> None:
    """Refuse a whole calibration that nobody could read, before it takes the place of ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        trial.write_text(text, encoding="utf-8")
        try:
            read_calibration(trial)
        except InputError as error:
            raise InputError(str(error).replace(str(trial), str(path))) from None


def _numbers(mark: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in mark.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(
            f"mark {mark!r} must be {count} numbers with commas between: {'u,v,x,y' if count == 4 else 'u,v'}"
        )
    return values


def main() -> None:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--calibration", type=Path, help="calibration.json whose camera lacks ego_from_cam")
    parser.add_argument("--camera", help="its name, where there are several")
    parser.add_argument("--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="in pixels")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the image, in pixels")
    parser.add_argument("--points", nargs="+", metavar="U,V,X,Y", help="pixels, and metres ahead and left")
    parser.add_argument("--line", nargs="+", action="append", metavar="U,V", help="pixels of one line; give it again")
    parser.add_argument("--spacing", type=float, help="metres between neighbouring lines")
    parser.add_argument("--mark-px", type=float, default=MARK_PX, help="how exactly pixels are marked (1)")
    parser.add_argument(
        "--camera-height", type=float, nargs=2, default=HEIGHTS_M, metavar=("LOW", "HIGH"),
        help=f"metres above the ground between which the camera stands ({HEIGHTS_M[0]:g} {HEIGHTS_M[1]:g})",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="calibration.json to write")
    args = parser.parse_args()
    solution, doubts = calibrate(args)
    console = Console(highlight=False, soft_wrap=True)
    for line in described(solution):
        console.print(line, markup=False)
    console.print(f"wrote {args.out}", markup=False)
    for doubt in doubts:
        console.print(f"[yellow]doubt:[/] {escape(doubt)}")


def described(solution: Solution) -> Iterator[str]:
    """Sentences on a pose, each figure with one standard error."""
    (yaw, pitch, roll), (yaw_error, pitch_error, roll_error) = solution.angles_deg, solution.angles_error_deg
    yield (
        f"looks {_turned(yaw, 'to the left', 'to the right', yaw_error)}, {_turned(pitch, 'down', 'up', pitch_error)}, rolled "
        f"{_turned(roll, 'clockwise', 'counterclockwise', roll_error)} ({solution.note})"
    )
    x, y, z = (
        f"{value:.3f} ± {error:.3f} m"
        for value, error in zip(solution.ego_from_cam[:3, 3], solution.position_error_m, strict=True)
    )
    yield f"stands at x = {x}, y = {y}, {z} above the ground"
    along, across = solution.ahead_error_m
    yield f"so a place on the ground {AHEAD_M:g} m ahead is put ± {along:.2g} m along, ± {across:.2g} m across (one standard error)"
    yield f"residual {solution.rms_px:.2f} pixels (root mean square), {solution.residuals_px.max():.2f} at most"


if __name__ == "__main__":
    cli.speaking(main)
