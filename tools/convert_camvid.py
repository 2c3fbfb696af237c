"""Convert CamVid, 701 images of 480×360 with 11 classes, to a camera folder, with an ASSUMED calibration.

CamVid has no calibration. Focal length and height are assumed, and the roll is zero. Yaw and pitch follow from the
vanishing point of straight stretches, onto which the ego's forward direction projects exactly. Only the two
sequences whose vanishing point is known are converted: ``0016E5`` is for training (every 8th frame for validation),
``Seq05VD`` for testing.

    python tools/convert_camvid.py --source SOURCE/camvid_701 --out data/camvid
"""

from pathlib import Path

import numpy as np
from camera_folder import CameraFolder, create, held_out, ids, rows, run

from bevreshape.errors import InputError
from bevreshape.reporting.progress import track
from bevreshape.storage.files import visible

SIZE = (360, 480)
INTRINSICS = np.array([[515.0, 0, 239.5], [0, 515.0, 179.5], [0, 0, 1]])
HEIGHT_M = 1.4
VANISHING_POINTS = {"0016E5": (227.0, 180.0), "Seq05VD": (236.0, 173.0)}
LABELS = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist",
)  # fmt: skip
VOID = 11
NOTE = (
    "Assumed calibration, not a measured one: fx = fy = 515 pixels, height 1.4 m, no roll; yaw and pitch of each "
    "sequence from its vanishing point. Distances are only as accurate as that."
)


def ego_from_cam(vanishing_point: tuple[float, float]) -> np.ndarray:
    """Return the pose (4, 4) of a camera without roll whose image shows the ego's forward direction at a pixel."""
    forward = np.linalg.solve(INTRINSICS, [*vanishing_point, 1.0])  # in the camera frame, as all three
    forward /= np.linalg.norm(forward)
    up = np.array([0.0, -forward[2], forward[1]])  # no roll: no component along the image's rows
    up /= np.linalg.norm(up)
    result = np.eye(4)
    result[:3, :3] = [forward, np.cross(up, forward), up]
    result[2, 3] = HEIGHT_M
    return result


def convert(source: Path, out: Path) -> None:
    """Write the camera folder."""
    create(out, lambda folder: fill(folder, source))


def fill(folder: CameraFolder, source: Path) -> None:
    """Add the calibrated sequences from all of the source's own splits."""
    frames: dict[str, list[str]] = {sequence: [] for sequence in VANISHING_POINTS}
    for part in ("train", "val", "test"):
        for path in track(visible(source / part, "*_*"), part):
            sequence = path.stem.split("_")[0]
            if sequence in frames:
                folder.add(path, f"images/{path.name}")
                folder.add(source / f"{part}annot" / f"{path.stem}.png", f"labels/{path.stem}.png")
                frames[sequence].append(path.stem)
    for sequence, names in frames.items():
        if not names:
            raise InputError(f"{source}: there is no frame {sequence}_* under train/, val/ or test/; is it CamVid?")
    train, val = held_out(frames["0016E5"], every=8)
    for split, names in (("train", train), ("val", val), ("test", sorted(frames["Seq05VD"]))):
        folder.split(split, names)
    poses = {sequence: {"ego_from_cam": rows(ego_from_cam(point))} for sequence, point in VANISHING_POINTS.items()}
    folder.calibrate(
        [{"name": "front", "image_size": SIZE, "intrinsics": rows(INTRINSICS)}],
        note=NOTE,
        frames={name: {"front": poses[sequence]} for sequence, names in frames.items() for name in sorted(names)},
        labels={"ids": ids(dict(enumerate(LABELS))), "void": [VOID]},
    )


if __name__ == "__main__":
    run(__doc__, convert, "folder with train, trainannot, val, valannot, test, testannot", "camera folder to write")
