"""Single frames of public driving data → camera folders, for overlays and prediction.

``nuscenes``: ``info.json`` with ``cam2img`` and ``cam2ego``, ``samples/``, and the drivable area of the map from above.
``dgp``: a scene of TRI's Dataset Governance Policy, such as DDAD. ``kitti-object``, ``kitti-semantics``, ``kitti-road``:
the left colour camera of KITTI's benchmarks. Waymo frames are left out: their pictures are distorted, and a camera folder
holds pictures of pinhole cameras.

    python tools/convert_frames.py nuscenes --source SOURCE/nuscenes_frame1 --out data/nuscenes_frame
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from camera_folder import CameraFolder, create, ids, read_json, rows, run
from PIL import Image
from torch import Tensor

from bevreshape.data.kitti import Matrices, ego_from_road_plane, ego_from_velodyne_ground, left_camera, read_matrices
from bevreshape.data.kitti_road import read_masks
from bevreshape.data.pictures import picture_size
from bevreshape.errors import InputError

NUSCENES_GRID = {"forward_m": [-30.0, 30.0], "left_m": [-30.0, 30.0], "cell_m": 0.1}
CITYSCAPES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk",
    "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup",
    "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan",
    "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip


def nuscenes(folder: CameraFolder, source: Path) -> None:
    """Keyframes with their six cameras; the ego frame stands on the ground below the rear axle."""
    moments = read_json(source / "info.json")["data_list"]
    cameras, names, size = list(moments[0]["images"]), [], (0, 0)
    for moment in moments:
        names.append(moment["token"])
        for camera, entry in moment["images"].items():
            path = source / "samples" / camera / entry["img_path"]
            size = picture_size(path)
            folder.add(path, f"images/{camera}/{names[-1]}{path.suffix}")
        drivable = np.array(Image.open(source / "bev_drivable_from_map_0.1m_60x60m.png")) > 0
        Image.fromarray(drivable.astype(np.uint8)).save(folder.make(f"bev/{names[-1]}.png"))
    folder.split("test", names)
    folder.calibrate(
        [{"name": camera, "image_size": size} for camera in cameras],
        frames={
            moment["token"]: {
                camera: {"intrinsics": rows(entry["cam2img"]), "ego_from_cam": rows(entry["cam2ego"])}
                for camera, entry in moment["images"].items()
            }
            for moment in moments
        },
        bev={"grid": NUSCENES_GRID, "bits": ["drivable"]},
    )


def dgp(folder: CameraFolder, source: Path) -> None:
    """A scene's moments; extrinsics are the pose of each sensor in the vehicle, whose z = 0 is the ground."""
    scene = read_json(_only(source, "scene_*.json"))
    data = {item["key"]: item for item in scene["data"]}
    frames: dict[str, dict[str, Any]] = {}
    for number, moment in enumerate(scene["samples"]):
        calibration = read_json(source / "calibration" / f"{moment['calibration_key']}.json")
        rig = frames[f"{number:06d}"] = {}
        for item in (data[key] for key in moment["datum_keys"]):
            if "image" not in item["datum"]:
                continue
            image, camera = item["datum"]["image"], item["id"]["name"]
            sensor = calibration["names"].index(camera)
            k = calibration["intrinsics"][sensor]
            rig[camera] = {
                "image_size": [image["height"], image["width"]],
                "intrinsics": rows([[k["fx"], k["skew"], k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]]),
                "ego_from_cam": rows(_from_quaternion(calibration["extrinsics"][sensor])),
            }
            folder.add(source / image["filename"], f"images/{camera}/{number:06d}.jpg")
    folder.split("test", frames)
    folder.calibrate([{"name": camera} for camera in frames["000000"]], frames=frames)


def kitti_object(folder: CameraFolder, source: Path) -> None:
    """Frames with a calibration each; the ego frame is the velodyne's, lowered onto the ground."""
    frames = {}
    for path in sorted((source / "training" / "image_2").glob("*.png")):
        matrices = read_matrices(source / "training" / "calib" / f"{path.stem}.txt")
        camera = _left_camera(matrices, ego_from_velodyne_ground(matrices))
        frames[path.stem] = {"left": {"image_size": picture_size(path), **camera}}
        folder.add(path, f"images/{path.name}")
    folder.split("test", frames)
    folder.calibrate([{"name": "left"}], frames=frames)


def kitti_semantics(folder: CameraFolder, source: Path) -> None:
    """Labelled frames; the labels are cut to the pictures, which are their upper left part."""
    matrices = read_matrices(_only(source, "calib_*.txt"))
    names, size = [], (0, 0)
    for path in sorted((source / "training" / "image_2").glob("*.png")):
        names.append(path.stem)
        size = picture_size(path)
        folder.add(path, f"images/{path.name}")
        labels = Image.open(source / "training" / "semantic" / path.name)
        labels.crop((0, 0, size[1], size[0])).save(folder.make(f"labels/{path.name}"))
    folder.split("test", names)
    folder.calibrate(
        [{"name": "left", "image_size": size, **_left_camera(matrices, ego_from_velodyne_ground(matrices))}],
        labels={"ids": ids(dict(enumerate(CITYSCAPES[4:], start=4))), "void": [0, 1, 2, 3]},
    )


def kitti_road(folder: CameraFolder, source: Path) -> None:
    """Frames that have a calibration of their own, with the road plane fitted to each; labels are road and ego lane."""
    frames = {}
    for path in sorted((source / "training" / "calib").glob("*.txt")):
        picture = source / "training" / "image_2" / f"{path.stem}.png"
        matrices = read_matrices(path)
        camera = _left_camera(matrices, ego_from_road_plane(matrices))
        size = picture_size(picture)
        frames[path.stem] = {"left": {"image_size": size, **camera}}
        folder.add(picture, f"images/{picture.name}")
        masks = read_masks(source / "training", path.stem, size, picture).numpy()
        if not (masks & 8).any():
            raise InputError(
                f"{path}: the frame has no lane mask; a camera folder cannot say so, read it with data=kitti_road"
            )
        labels = masks & 1
        labels[masks & 2 > 0] = 2
        labels[masks & 4 == 0] = 255
        Image.fromarray(labels).save(folder.make(f"labels/{path.stem}.png"))
    folder.split("test", frames)
    folder.calibrate([{"name": "left"}], frames=frames, labels={"ids": ids({0: "other", 1: "road", 2: "ego lane"})})


def _left_camera(matrices: Matrices, ego_from_rectified: Tensor) -> dict[str, Any]:
    intrinsics, ego_from_cam = left_camera(matrices, ego_from_rectified)
    return {"intrinsics": rows(intrinsics), "ego_from_cam": rows(ego_from_cam)}


def _from_quaternion(extrinsics: dict[str, dict[str, float]]) -> np.ndarray:
    """(4, 4) of a unit quaternion and a translation."""
    w, x, y, z = (extrinsics["rotation"][key] for key in ("qw", "qx", "qy", "qz"))
    t = [extrinsics["translation"][key] for key in ("x", "y", "z")]
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), t[0]],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), t[1]],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), t[2]],
            [0, 0, 0, 1],
        ]
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder}: there are {len(found)} files {pattern}, one was expected; check --source")
    return found[0]


KINDS = {
    "nuscenes": nuscenes,
    "dgp": dgp,
    "kitti-object": kitti_object,
    "kitti-semantics": kitti_semantics,
    "kitti-road": kitti_road,
}


def convert(kind: str, source: Path, out: Path) -> None:
    """Write the camera folder."""
    create(out, partial(KINDS[kind], source=source))


if __name__ == "__main__":
    run(__doc__, convert, "folder of the data set", "camera folder to write", kinds=KINDS)
