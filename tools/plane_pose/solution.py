"""Hold a pose with its standard errors; refuse marks that fit no pose, or several."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bevreshape.errors import InputError
from plane_pose.camera import Array, Camera, angles_of, pixel_from_ground
from plane_pose.fit import Fit, jacobian

UNFIT = 3.0
"""Residual, relative to the marks' own error, above which marks are refused."""
OPEN_DEG, OPEN_SHARE = 5.0, 1 / 3
"""Standard errors of an angle, and of the height relative to it, above which a pose is undetermined."""
AHEAD_M = 30.0
"""Distance ahead at which the uncertainty on the ground is shown, metres."""
RIVAL = 9.0
"""A second pose is as good if its sum of squares is larger by less than this many times that of one mark."""


@dataclass(frozen=True)
class Solution:
    """Hold a camera's pose relative to the ground, and one standard error of each figure.

    Attributes:
        ego_from_cam: (4, 4), metres.
        angles_deg: yaw to the left, pitch downwards, roll clockwise.
        angles_error_deg: of these angles.
        position_error_m: of x, y, z.
        ahead_error_m: of a ground point ``AHEAD_M`` in front of the camera: along its line of sight, and across.
        residuals_px: of every mark.
        redundancy: residuals beyond the unknowns; with 0 nothing checks the marks.
        marks_px: error of the marks by their residuals.
        note: assumptions.
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
        """Return the root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals_px**2)))


def solution_of(
    camera: Camera,
    fits: Sequence[Fit],
    names: Sequence[str],
    note: str,
    rows_a_mark: int,
    hint: Callable[[], str | None],
) -> Solution:
    """Return the best fit as a solution.

    Args:
        camera: of the marks.
        fits: the best first.
        names: of the marks.
        note: assumptions.
        rows_a_mark: residuals that each mark has.
        hint: returns a notation in which the marks would fit.

    Raises:
        InputError: when it does not fit, another one fits as well, or it is undetermined.
    """
    best = fits[0]
    residuals = np.linalg.norm(best.errors(best.unknown).reshape(-1, rows_a_mark), axis=1)
    if best.mark_px > UNFIT * camera.mark_px:
        worst = int(residuals.argmax())
        raise InputError(
            f"the marks fit no pose: {names[worst]} is {residuals[worst]:.1f} pixels off, all of them "
            f"{np.sqrt(np.mean(residuals**2)):.1f} (root mean square), which is {best.mark_px / camera.mark_px:.0f} "
            f"times the error of marks of {camera.mark_px:g} pixels; "
            + (hint() or "correct it, mark ground that is flat, or set --mark-px to the real error of marks")
        )
    mark_px = max(camera.mark_px, best.mark_px)
    covariance = best.covariance(mark_px)
    if covariance is None:
        raise InputError("the marks leave the pose undetermined; mark more, farther apart")
    rival = next((other for other in fits[1:] if _as_good(other, best, mark_px)), None)
    if rival is not None:
        described = " and ".join(_in_words(fit.pose(fit.unknown)) for fit in (best, rival))
        raise InputError(f"the marks fit two poses: {described}; mark another point, away from the others")
    ego_from_cam = best.pose(best.unknown)
    slopes = jacobian(_figures(camera, best), best.unknown)
    error = np.sqrt(np.diag(slopes @ covariance @ slopes.T))
    angles = angles_of(ego_from_cam)
    if error[:2].max() > math.radians(OPEN_DEG) or error[5] > OPEN_SHARE * ego_from_cam[2, 3]:
        yaw, pitch = (math.degrees(value) for value in error[:2])
        raise InputError(
            f"marks {mark_px:.2g} pixels off leave the pose undetermined: yaw ± {yaw:.1f}°, pitch ± {pitch:.1f}°, "
            f"height {ego_from_cam[2, 3]:.2f} ± {error[5]:.2f} m; mark more, farther apart"
        )
    return Solution(
        ego_from_cam, _degrees(angles), _degrees(error[:3]), tuple(error[3:6]), tuple(error[6:]), residuals,
        best.redundancy, best.mark_px, note,
    )  # fmt: skip


def _figures(camera: Camera, fit: Fit) -> Callable[[Array], Array]:
    """Return a function from unknowns to yaw, pitch, roll, x, y, z, and the point ``AHEAD_M`` ahead.

    The point is given along and across, relative to the solution's.
    """
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


def _as_good(other: Fit, best: Fit, mark_px: float) -> bool:
    """Return whether another solution explains the marks as well, and is not the same one found again."""
    squares = [np.sum(fit.errors(fit.unknown) ** 2) for fit in (other, best)]
    if squares[0] - squares[1] > RIVAL * mark_px**2:
        return False
    poses = [fit.pose(fit.unknown) for fit in (other, best)]
    turned = math.acos(min(1.0, max(-1.0, (np.trace(poses[0][:3, :3].T @ poses[1][:3, :3]) - 1) / 2)))
    moved = np.linalg.norm(poses[0][:3, 3] - poses[1][:3, 3])
    return turned > math.radians(2 * OPEN_DEG) or moved > poses[1][2, 3]


def _degrees(angles: Sequence[float] | Array) -> tuple[float, float, float]:
    yaw, pitch, roll = map(math.degrees, angles)
    return yaw, pitch, roll


def _in_words(ego_from_cam: Array) -> str:
    yaw, pitch, _ = _degrees(angles_of(ego_from_cam))
    return (
        f"{ego_from_cam[2, 3]:.2f} m high, facing {direction(yaw, 'to the left', 'to the right')}, "
        f"{direction(pitch, 'down', 'up')}"
    )


def direction(degrees: float, positive: str, negative: str, error: float | None = None) -> str:
    """Format an angle with its direction as a word, instead of a sign."""
    shown = f"{abs(degrees):.2f}°"
    uncertain = "" if error is None else f" ± {error:.2f}°"
    if float(f"{degrees:.2f}") == 0:
        return f"{shown}{uncertain} {positive}"
    return f"{shown}{uncertain} {positive if degrees > 0 else negative}"
