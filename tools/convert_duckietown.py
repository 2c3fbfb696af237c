"""Convert Duckietown images to the camera folders ``duckietown_fixed`` and ``duckietown_jitter``.

The former has one camera pose, the latter another in every frame.

``splits/test.txt`` lists the two maps of the source's test sets alone. ``val`` lists every 8th frame of its training
sets in alphabetical order, ``train`` the others.

    python tools/convert_duckietown.py --source SOURCE/duckietown --out data
"""

from pathlib import Path

from camera_folder import CameraFolder, create, held_out, ids, read_json, rows, run

from bevreshape.reporting.progress import track

SIZE = (240, 320)
LABELS = {0: "other", 1: "white line", 2: "yellow line", 3: "obstacle", 4: "stop line"}
GRID = {"forward_m": [0.12, 1.72], "left_m": [-0.8, 0.8], "cell_m": 0.02}


def convert(source: Path, out: Path) -> None:
    """Write both camera folders into ``out``."""
    for kind in ("fixed", "jitter"):
        create(out / f"duckietown_{kind}", lambda folder, kind=kind: fill(folder, source, kind))  # type: ignore[misc]


def fill(folder: CameraFolder, source: Path, kind: str) -> None:
    """Add both sets of a kind; their maps, and so their frames' names, differ."""
    sets = {part: read_json(source / f"{kind}_{part}" / "frames.json") for part in ("train", "test")}
    for part, frames in sets.items():
        for name in track(sorted(frames), f"{kind}_{part}"):
            for place, suffix in (("images", "jpg"), ("labels", "png"), ("bev", "png")):
                folder.add(source / f"{kind}_{part}" / place / f"{name}.{suffix}", f"{place}/{name}.{suffix}")
    train, val = held_out(sets["train"], every=8)
    for split, names in (("train", train), ("val", val), ("test", sorted(sets["test"]))):
        folder.split(split, names)
    poses = {
        name: {"intrinsics": rows(frame["pixel_from_cam"]), "ego_from_cam": rows(frame["ego_from_cam"])}
        for frames in sets.values()
        for name, frame in sorted(frames.items())
    }
    first = next(iter(poses.values()))
    shared = first if all(entry == first for entry in poses.values()) else {}
    folder.calibrate(
        [{"name": "front", "image_size": SIZE, **shared}],
        frames={} if shared else {name: {"front": entry} for name, entry in poses.items()},
        labels={"ids": ids(LABELS)},
        bev={"grid": GRID, "bits": ["drivable", "obstacle"]},
    )


if __name__ == "__main__":
    run(__doc__, convert, "folder with fixed_train, fixed_test, jitter_train, jitter_test", "folder for both results")
