"""Estimate a camera's pose ``ego_from_cam`` from marks on flat ground.

From points: four or more pixels with known ground positions, as ``u,v,x,y``: pixels of the stored image, and metres
ahead and to the left of the ego origin, which may be anywhere on the ground. This gives the full pose.

From lanes: two or more straight, parallel lines on the ground at equal distances, each by two or more pixels ``u,v``.
The ego frame then has its origin on the ground below the camera and its x along the lines. Two lines give yaw, pitch
and height, and the roll is assumed to be 0; three give the roll too.

The camera's intrinsics, and its distortion if it has one, are in a ``calibration.json`` whose camera still lacks
``ego_from_cam``, or are given by ``--intrinsics fx fy cx cy --size height width``. The pose with the least squared
reprojection error in pixels is written to ``--out``, a ``calibration.json`` for a camera folder.

Behind each ± is one standard error, for marks that are off by ``--mark-px`` pixels, or by more if residuals show it.
Errors of the intrinsics, and ground that is not flat, add to it. Marks that fit no pose or several, or leave the pose
undetermined, are refused. So is a camera height of no vehicle. Nothing is written then.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from camera_folder import read_json, rows
from plane_pose.camera import MARK_PX, Camera
from plane_pose.marks import FARTHEST_M, from_lines, from_points
from plane_pose.solution import AHEAD_M, Solution, direction

from bevreshape.config.arguments import Parser
from bevreshape.console import print_line, run_script
from bevreshape.data.sources.folder.calibration import VERSION, read_calibration
from bevreshape.data.sources.folder.rig import camera_entries, optics
from bevreshape.errors import InputError, suggest
from bevreshape.geometry.calibration_checks import HEIGHTS_M
from bevreshape.storage.files import write_text

DOUBTFUL = 1.5
"""Residual, relative to the marks' own error, above which a doubt is printed."""
HIGH_M = 3.0
"""Height above which cars have no cameras, metres."""


def known_camera(content: Any, name: str | None, where: str, mark_px: float = MARK_PX) -> tuple[Camera, dict[str, Any]]:
    """Return a camera of a ``calibration.json``, which may lack its pose, and its entry.

    Raises:
        InputError: when it is unknown, or lacks intrinsics or size.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{where}: this is {type(content).__name__}; it must be an object with 'cameras' (data/README.md)"
        )
    camera_entries(content.get("cameras"), where)
    entries = {entry["name"]: entry for entry in content["cameras"]}
    chosen = name or next(iter(entries))
    if chosen not in entries or (name is None and len(entries) > 1):
        raise InputError(f"{where}: choose the camera with --camera; {suggest(str(name), entries)}")
    entry = entries[chosen]
    for key in ("intrinsics", "image_size"):
        if key not in entry:
            raise InputError(f"{where}: camera {chosen!r} has no {key}, which cannot be estimated here; add it")
    intrinsics, size, distortion = optics(entry, f"{where}: camera {chosen!r}")
    return Camera(intrinsics.numpy(), size, distortion, mark_px), entry


def calibrate(args: argparse.Namespace) -> tuple[Solution, list[str]]:
    """Solve, check, and write; return the solution and the doubts."""
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
            f"the camera would be {height:.2f} m above the ground, not {low:g} to {high:g} m; are the positions on the "
            "ground, or --spacing, in metres? If the height is right, set --camera-height LOW HIGH"
        )
    if abs(roll) > 45:
        raise InputError(
            f"the camera would be rolled by {roll:.0f}°; are u, the column, and v, the row, in the right order, and is "
            "the image stored upright?"
        )


def _with_note(note: Any, camera: str, solution: Solution) -> str:
    """Return the calibration's note with this measurement; an earlier one of the camera is removed."""
    measured = (
        f"{camera}: ego_from_cam from {solution.note}; residual {solution.rms_px:.2f} pixels, height ± "
        f"{solution.position_error_m[2]:.3f} m, pitch ± {solution.angles_error_deg[1]:.3f}°."
    )
    kept = re.sub(rf" ?{re.escape(camera)}: ego_from_cam from [^;]*; residual [^°]*°\.", "", str(note or "")).strip()
    return f"{kept} {measured}" if kept else measured


def _doubts(solution: Solution, camera: Camera, content: dict[str, Any], name: str, any_height: bool) -> Iterator[str]:
    if solution.marks_px > DOUBTFUL * camera.mark_px:
        yield (
            f"the residual is {solution.marks_px / camera.mark_px:.1f} times that of marks of {camera.mark_px:g} "
            f"pixels "
            f"; mark more exactly, on ground that is flat"
        )
    if solution.redundancy == 0:
        yield (
            "these marks always fit some pose, so nothing checks them; mark a third position on a line, or a third line"
        )
    if solution.ahead_error_m[0] > AHEAD_M / 2:
        yield f"a point {AHEAD_M:g} m ahead cannot be located; mark farther apart, and far ahead"
    height = solution.ego_from_cam[2, 3]
    if any_height and height > HIGH_M:
        yield (
            f"{height:.2f} m is above the cameras of cars; are the positions on the ground, or --spacing, in metres?"
        )
    own = [frame for frame, rig in content.get("frames", {}).items() if "ego_from_cam" in rig.get(name, {})]
    if own:
        yield f"{len(own)} frames, {own[0]!r} first, have an ego_from_cam of their own, which this one does not replace"


def check_text(text: str, path: Path) -> None:
    """Refuse an invalid calibration before it replaces ``path``."""
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
    """Run the command line."""
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
        help=f"range of the camera's height above the ground, metres ({HEIGHTS_M[0]:g} {HEIGHTS_M[1]:g})",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="calibration.json to write")
    args = parser.parse_args()
    solution, doubts = calibrate(args)
    for line in (*describe(solution), f"wrote {args.out}"):
        print_line(line)
    for doubt in doubts:
        print_line(("doubt:", "yellow"), f" {doubt}")


def describe(solution: Solution) -> Iterator[str]:
    """Yield sentences on a pose, each figure with one standard error."""
    (yaw, pitch, roll), (yaw_error, pitch_error, roll_error) = solution.angles_deg, solution.angles_error_deg
    yield (
        f"faces {direction(yaw, 'to the left', 'to the right', yaw_error)}, "
        f"{direction(pitch, 'down', 'up', pitch_error)}, rolled "
        f"{direction(roll, 'clockwise', 'counterclockwise', roll_error)} ({solution.note})"
    )
    x, y, z = (
        f"{value:.3f} ± {error:.3f} m"
        for value, error in zip(solution.ego_from_cam[:3, 3], solution.position_error_m, strict=True)
    )
    yield f"is at x = {x}, y = {y}, {z} above the ground"
    along, across = solution.ahead_error_m
    yield (
        f"so a ground point {AHEAD_M:g} m ahead is located ± {along:.2g} m along, ± {across:.2g} m across (one "
        f"standard error)"
    )
    yield f"residual {solution.rms_px:.2f} pixels (root mean square), {solution.residuals_px.max():.2f} at most"


if __name__ == "__main__":
    run_script(main)
