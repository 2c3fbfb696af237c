"""Estimate poses from marked points and lines."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from bevreshape.errors import InputError
from bevreshape.geometry.calibration_checks import HEIGHTS_M
from plane_pose.camera import Array, Camera, angles_of
from plane_pose.fit import fit_lines, fit_points, vanishing_point
from plane_pose.solution import UNFIT, Solution, solution_of

COLLINEAR = 0.02
"""Least spread of points across their line, relative to that along it; below it one rotation is undetermined."""
NEAREST_M, FARTHEST_M = 0.001, 1000.0
"""Least and largest distance between lines; the latter also of a mark from the ego origin."""


def from_points(camera: Camera, places: Array) -> Solution:
    """Estimate the pose from points (p, 4): u, v in pixels, x, y in metres.

    Raises:
        InputError: when points are fewer than four or (nearly) on one line, fit no pose or several, or leave it
            undetermined.
    """
    count = min(len(np.unique(places[:, columns], axis=0)) for columns in ([0, 1], [2, 3]))
    if count < 4:
        raise InputError(f"{count} different points were marked; yaw, pitch, roll and position need four or more")
    for x, y in places[:, 2:]:
        if math.hypot(x, y) > FARTHEST_M:
            raise InputError(
                f"({x:g}, {y:g}) m is farther than {FARTHEST_M:g} m from the ego origin; positions are in metres"
            )
    for what, columns in (("on the ground", places[:, 2:]), ("in the image", places[:, :2])):
        along, across = np.linalg.svd(columns - columns.mean(0), compute_uv=False)[:2]
        if across <= COLLINEAR * along:
            raise InputError(f"the {len(places)} points are on one line {what}; mark some off it")
    fits = fit_points(camera, places)
    names = [f"({u:g}, {v:g}) for ({x:g}, {y:g}) m" for u, v, x, y in places]
    note = "ground points, all of the pose free"
    return solution_of(camera, fits, names, note, 2, lambda: _other_readings(camera, places))


def from_lines(camera: Camera, lines: Sequence[Array], spacing_m: float) -> Solution:
    """Estimate the pose from parallel lines on the ground, each (p, 2) pixels, neighbours ``spacing_m`` apart.

    Raises:
        InputError: when there are fewer than two lines or two pixels each, no spacing, no point where lines meet, or
            marks above it, or when marks fit no pose or leave it undetermined.
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
            raise InputError(f"all pixels of a line are at ({u:g}, {v:g}); mark it at two distant pixels")
    meet = vanishing_point(camera, marks)
    if meet is None:
        raise InputError(
            "the lines are parallel or the same in the image, so they show no horizon; mark other lines, or points "
            "with --points"
        )
    for each in marks:
        if (each.straight[:, 1] <= meet[1]).any():
            u, v = each.stored[each.straight[:, 1].argmin()]
            raise InputError(
                f"mark ({u:g}, {v:g}) is above the horizon, row {meet[1]:.0f}, where the lines meet; mark the ground "
                "only, and lines that are parallel on it"
            )
    marks.sort(key=lambda line: math.atan2(*(line.straight.mean(0) - meet)))  # from left to right
    names = [f"({u:g}, {v:g})" for line in marks for u, v in line.stored]
    note = f"{len(lines)} lines {spacing_m:g} m apart" + ("" if len(lines) > 2 else ", roll assumed to be 0")
    return solution_of(camera, [fit_lines(camera, marks, spacing_m, meet)], names, note, 1, lambda: None)


def _other_readings(camera: Camera, places: Array) -> str | None:
    """Return a different notation in which the marks would fit, if any."""
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
            fit = fit_points(camera, changed, most=3)[0]
        except InputError:
            continue
        angles, height = angles_of(fit.pose(fit.unknown)), fit.pose(fit.unknown)[2, 3]
        if fit.mark_px <= UNFIT * camera.mark_px and HEIGHTS_M[0] <= height <= HEIGHTS_M[1]:
            turned[reading] = abs(angles[0]) + abs(angles[2])
    return f"they would fit {min(turned, key=lambda reading: turned[reading])}" if turned else None
