"""Where a camera stands and looks, from marks on flat ground: ``ego_from_cam`` where nobody has measured it.

From points: four or more pixels whose places on the ground are known, as ``u,v,x,y``: pixels of the stored picture, and
metres ahead and to the left of the ego origin, which may be anywhere on the ground. Finds all of the pose.

From lanes: two or more straight, parallel lines on the ground, equally far apart, each by two or more pixels ``u,v``. The
ego frame then has its origin on the ground below the camera and its x along the lines. Two lines give yaw, pitch and height
of a camera that is assumed not to roll; three give the roll too.

The camera's intrinsics, and its distortion if it has one, stand in a ``calibration.json`` whose camera still lacks
``ego_from_cam``, or are given by ``--intrinsics fx fy cx cy --size height width``. The pose with the least squared distance
in pixels between marks and their places is written to ``--out``, a ``calibration.json`` for a camera folder.

    python tools/calibrate_plane.py --calibration data/mine/calibration.json --out data/mine/calibration.json \\
        --points 302,608,6,1.75 978,609,6,-1.75 527,443,18,1.75 753,443,18,-1.75
    python tools/calibrate_plane.py --intrinsics 1158 1158 640 360 --size 720 1280 --out data/mine/calibration.json \\
        --line 302,608 527,443 --line 978,609 753,443 --spacing 3.5
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from camera_folder import read_json, rows
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import least_squares

from bevreshape.data.calibration import VERSION, camera_entries, optics, read_calibration
from bevreshape.environment import make_console_safe
from bevreshape.errors import InputError, suggest
from bevreshape.files import write_text
from bevreshape.geometry import Lens

Array = NDArray[np.float64]

ADVICE = "mark more exactly, on ground that is flat"
DOUBTFUL_PX = 3.0
"""Root mean square residual from which a solution is called doubtful."""
COLLINEAR = 0.02
"""Points whose spread across their line is less than this share of that along it say nothing about one turn."""


@dataclass(frozen=True)
class Camera:
    """What is known of a camera.

    Attributes:
        intrinsics: (3, 3), of the stored picture.
        image_size: (H, W).
        lens: its distortion; ``None`` for a pinhole.
    """

    intrinsics: Array
    image_size: tuple[int, int]
    lens: Lens | None = None

    def straight(self, pixels: Array) -> Array:
        """Pixels (p, 2) as a camera with the same intrinsics and no distortion would have them."""
        height, width = self.image_size
        for u, v in pixels:
            if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
                raise InputError(f"mark ({u:g}, {v:g}) lies outside the picture of {width}×{height} pixels; correct it")
        if self.lens is None:
            return pixels
        points, found = self.lens.undistort(torch.from_numpy(pixels))
        if not found.all():
            u, v = pixels[~found.numpy()][0]
            raise InputError(
                f"mark ({u:g}, {v:g}): the distortion cannot be undone there; choose one nearer to the middle"
            )
        return points.numpy() @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]


@dataclass(frozen=True)
class Solution:
    """A camera's pose on the ground.

    Attributes:
        ego_from_cam: (4, 4), metres.
        angles_deg: yaw to the left, pitch downwards, roll clockwise.
        residuals_px: of every mark.
        note: what was assumed.
    """

    ego_from_cam: Array
    angles_deg: tuple[float, float, float]
    residuals_px: Array
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


def from_points(camera: Camera, marks: Array) -> Solution:
    """Pose from marks (p, 4): u, v in pixels, x, y in metres.

    Raises:
        InputError: fewer than four, (nearly) on one line, or no pose from which all of them lie in front of the camera.
    """
    if len(marks) < 4:
        raise InputError(f"{len(marks)} points were marked; yaw, pitch, roll and position need four or more")
    for what, places in (("on the ground", marks[:, 2:]), ("in the picture", marks[:, :2])):
        along, across = np.linalg.svd(places - places.mean(0), compute_uv=False)[:2]
        if across < COLLINEAR * along:
            raise InputError(f"the {len(marks)} points lie on one line {what}; mark some beside it")
    pixels, ground = camera.straight(marks[:, :2]), marks[:, 2:]
    homogeneous = np.column_stack([ground, np.ones(len(ground))])

    def errors(unknown: Array) -> Array:
        mapped = homogeneous @ pixel_from_ground(camera.intrinsics, _free(unknown)).T
        depth = np.maximum(mapped[:, 2:], 1e-3)  # behind the camera the error is large, and falls as it turns
        return (mapped[:, :2] / depth - pixels).ravel()

    solved = _best(errors, _starts(camera, pixels, ground))
    ego_from_cam = _free(solved)
    depths = homogeneous @ pixel_from_ground(camera.intrinsics, ego_from_cam)[2]
    if (depths <= 0).any():
        u, v, x, y = marks[depths.argmin()]
        raise InputError(
            f"point ({u:g}, {v:g}) would lie above the horizon for ({x:g}, {y:g}) m to be seen there with the others; are u "
            "and v, or x (ahead) and y (left), in the right order?"
        )
    residuals = np.linalg.norm(errors(solved).reshape(-1, 2), axis=1)
    return Solution(ego_from_cam, _degrees(solved[:3]), residuals, "ground points, all of the pose free")


def from_lines(camera: Camera, lines: Sequence[Array], spacing_m: float) -> Solution:
    """Pose from parallel lines on the ground, each (p, 2) pixels, neighbours ``spacing_m`` apart.

    Raises:
        InputError: fewer than two lines or two pixels a line, no spacing, lines that do not meet, or marks above where
            they do.
    """
    if len(lines) < 2 or min(map(len, lines)) < 2:
        raise InputError(
            f"{len(lines)} lines of {', '.join(str(len(line)) for line in lines)} pixels were marked; two lines of two "
            "pixels each are the least"
        )
    if not spacing_m > 0:
        raise InputError(f"--spacing {spacing_m:g} must be the metres between neighbouring lines, more than 0")
    straight = [camera.straight(line) for line in lines]
    fitted = np.stack([_fitted(line) for line in straight])
    vanishing = np.linalg.svd(fitted)[2][-1]
    if abs(vanishing[2]) < 1e-6 * np.abs(vanishing[:2]).max():
        raise InputError(
            "the lines are parallel in the picture, so they show no horizon; mark points with --points instead"
        )
    meet = vanishing[:2] / vanishing[2]
    for given, line in zip(lines, straight, strict=True):
        if (line[:, 1] <= meet[1]).any():
            u, v = given[line[:, 1].argmin()]
            raise InputError(
                f"mark ({u:g}, {v:g}) lies above the horizon, row {meet[1]:.0f}, where the lines meet; mark the ground only, and "
                "lines that are parallel on it"
            )
    order = np.argsort([-(line[1] * 1e6 + line[2]) / line[0] for line in fitted])  # from left to right far below
    straight = [straight[number] for number in order]
    free_roll = len(lines) > 2

    def unpack(unknown: Array) -> tuple[Array, Array]:
        yaw, pitch, log_height, leftmost_m = unknown[:4]
        roll = unknown[4] if free_roll else 0.0
        ego_from_cam = pose(yaw, pitch, roll, (0.0, 0.0, math.exp(log_height)))
        return ego_from_cam, leftmost_m - spacing_m * np.arange(len(straight))

    def errors(unknown: Array) -> Array:
        ego_from_cam, lefts_m = unpack(unknown)
        homography = pixel_from_ground(camera.intrinsics, ego_from_cam)
        distances = []
        for line, left_m in zip(straight, lefts_m, strict=True):
            a, b, c = np.cross(homography[:, 0], homography[:, 1] * left_m + homography[:, 2])
            distances.append((line @ [a, b] + c) / math.hypot(a, b))
        return np.concatenate(distances)

    across, down, ahead = np.linalg.solve(camera.intrinsics, [*meet, 1.0])
    yaw, pitch = math.atan2(across, ahead), -math.atan2(down, math.hypot(across, ahead))
    starts = [
        np.array([yaw, pitch, math.log(height), share * spacing_m * (len(lines) - 1), *([0.0] if free_roll else [])])
        for height in (0.2, 1.5, 4.0)
        for share in (0.0, 0.5, 1.0)
    ]
    solved = _best(errors, starts)
    ego_from_cam, _ = unpack(solved)
    roll = float(solved[4]) if free_roll else 0.0
    note = f"{len(lines)} lines {spacing_m:g} m apart" + ("" if free_roll else ", roll assumed to be 0")
    return Solution(ego_from_cam, _degrees([solved[0], solved[1], roll]), np.abs(errors(solved)), note)


def _free(unknown: Array) -> Array:
    """Pose from yaw, pitch, roll, x, y and the logarithm of the height, which keeps the camera above the ground."""
    yaw, pitch, roll, x, y, log_height = unknown
    return pose(yaw, pitch, roll, (x, y, math.exp(log_height)))


def _starts(camera: Camera, pixels: Array, ground: Array) -> list[Array]:
    """Cameras all round the points that see their middle where it was marked, near and far."""
    middle = np.linalg.solve(camera.intrinsics, [*pixels.mean(0), 1.0])
    extent = np.linalg.norm(ground - ground.mean(0), axis=1).max()
    starts = []
    for yaw in np.radians(np.arange(0, 360, 30)):
        for pitch in np.radians([5, 20, 50]):
            ray = pose(yaw, pitch, 0.0, (0, 0, 0))[:3, :3] @ middle
            if ray[2] >= -1e-3:
                continue
            for height in extent * np.array([0.05, 0.2, 0.8]):
                x, y = ground.mean(0) - ray[:2] * (height / -ray[2])
                starts.append(np.array([yaw, pitch, 0.0, x, y, math.log(height)]))
    if not starts:
        raise InputError("the marks lie in the sky for every pose that was tried; are they v, the row, second?")
    return starts


def _best(errors: Callable[[Array], Array], starts: Sequence[Array]) -> Array:
    """The least sum of squares from the most promising starts."""
    promising = sorted(starts, key=lambda start: float(np.abs(errors(start)).sum()))[:12]
    solutions = [least_squares(errors, start, x_scale="jac", max_nfev=400) for start in promising]
    return np.asarray(min(solutions, key=lambda solution: solution.cost).x)


def _fitted(line: Array) -> Array:
    """The homogeneous line (3,) with the least squared distances to pixels (p, 2)."""
    middle = line.mean(0)
    normal = np.linalg.svd(line - middle)[2][-1]
    return np.array([*normal, -normal @ middle])


def _degrees(angles: Sequence[float] | Array) -> tuple[float, float, float]:
    yaw, pitch, roll = (math.degrees(math.remainder(angle, math.tau)) for angle in angles)
    return yaw, pitch, roll


def known_camera(content: Any, name: str | None, where: str) -> tuple[Camera, dict[str, Any]]:
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
    return Camera(intrinsics.numpy(), size, lens), entry


def calibrate(args: argparse.Namespace) -> Solution:
    """Solve, check, and write."""
    if args.calibration is not None:
        content = read_json(args.calibration)
        camera, entry = known_camera(content, args.camera, str(args.calibration))
    elif args.intrinsics and args.size:
        fx, fy, cx, cy = args.intrinsics
        entry = {"name": args.camera or "front", "image_size": args.size}
        entry["intrinsics"] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        content = {"version": VERSION, "cameras": [entry]}
        camera, _ = known_camera(content, None, "--intrinsics")
    else:
        raise InputError(
            "give the intrinsics: --calibration FILE, or --intrinsics fx fy cx cy with --size height width"
        )
    if bool(args.points) == bool(args.line):
        raise InputError("mark the ground with either --points u,v,x,y … or --line u,v u,v … --line … --spacing METRES")
    if args.points:
        solution = from_points(camera, np.array([_numbers(mark, 4) for mark in args.points]))
    elif args.spacing is None:
        raise InputError("--line needs --spacing, the metres between neighbouring lines")
    else:
        solution = from_lines(
            camera, [np.array([_numbers(mark, 2) for mark in line]) for line in args.line], args.spacing
        )
    entry["ego_from_cam"] = rows(solution.ego_from_cam)
    measured = f"{entry['name']}: ego_from_cam from {solution.note}; residual {solution.rms_px:.2f} pixels"
    content["note"] = f"{content['note']} {measured}" if content.get("note") else measured
    text = json.dumps(content, indent=1) + "\n"
    if all("ego_from_cam" in other for other in content["cameras"]):
        check_text(text, args.out)
    write_text(args.out, text)
    return solution


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, help="calibration.json whose camera lacks ego_from_cam")
    parser.add_argument("--camera", help="its name, where there are several")
    parser.add_argument("--intrinsics", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"), help="in pixels")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the picture, in pixels")
    parser.add_argument("--points", nargs="+", metavar="U,V,X,Y", help="pixels, and metres ahead and left")
    parser.add_argument("--line", nargs="+", action="append", metavar="U,V", help="pixels of one line; give it again")
    parser.add_argument("--spacing", type=float, help="metres between neighbouring lines")
    parser.add_argument("--out", type=Path, required=True, help="calibration.json to write")
    console = Console(highlight=False, soft_wrap=True)
    try:
        args = parser.parse_args()
        solution = calibrate(args)
    except InputError as error:
        parser.exit(1, f"{error}\n")
    yaw, pitch, roll = solution.angles_deg
    x, y, z = solution.ego_from_cam[:3, 3]
    console.print(f"yaw {yaw:.2f}° to the left, pitch {pitch:.2f}° down, roll {roll:.2f}° clockwise ({solution.note})")
    console.print(f"stands at x={x:.3f} m, y={y:.3f} m, {z:.3f} m above the ground")
    worst = solution.residuals_px.max()
    console.print(f"residual {solution.rms_px:.2f} pixels (root mean square), {worst:.2f} at most; wrote {args.out}")
    if solution.rms_px > DOUBTFUL_PX:
        console.print(f"[yellow]doubt:[/] that is much; {ADVICE}")


if __name__ == "__main__":
    make_console_safe()
    main()
