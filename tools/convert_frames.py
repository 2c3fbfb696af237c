"""Convert single frames of public driving data to camera folders, for overlays and prediction.

``nuscenes``: ``info.json`` with calibration and boxes, ``samples/``, and the drivable area of the map from above.
``dgp``: a scene of TRI's Dataset Governance Policy, such as DDAD. ``waymo``: ``calib_boxes.json``, and an image
and semantic labels of every camera, with distortion. ``kitti-object``, ``kitti-semantics``, ``kitti-road``: the left
color camera of KITTI's benchmarks. Boxes become upright in the ego frame; their tilt in the source is
dropped.

    python tools/convert_frames.py nuscenes --source SOURCE/nuscenes_frame1 --out data/nuscenes_frame
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from camera_folder import CameraFolder, create, ids, read_json, rows, run
from PIL import Image
from torch import Tensor

from bevreshape.data.image_io import read_image_size, read_label_image
from bevreshape.data.sources.kitti.benchmark import (
    Matrices,
    ego_from_road_plane,
    ego_from_velodyne_ground,
    left_camera,
    read_matrices,
)
from bevreshape.data.sources.kitti.object import UNLABELLED, Label, ego_box, read_labels
from bevreshape.data.sources.kitti.road import read_masks
from bevreshape.data.sources.nuscenes.tables import pose_of
from bevreshape.errors import InputError
from bevreshape.reporting.progress import track
from bevreshape.storage.files import visible

FORWARD_LEFT_UP = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]
)  # of x right, y down, z forward
NUSCENES_GRID = {"forward_m": [-30.0, 30.0], "left_m": [-30.0, 30.0], "cell_m": 0.1}
CITYSCAPES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk",
    "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup",
    "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus",
    "caravan",
    "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
WAYMO = (
    "undefined", "ego vehicle", "car", "truck", "bus", "other large vehicle", "bicycle", "motorcycle", "trailer",
    "pedestrian", "cyclist", "motorcyclist", "bird", "ground animal", "construction cone or pole", "pole",
    "pedestrian object", "sign", "traffic light", "building", "road", "lane marker", "road marker", "sidewalk",
    "vegetation", "sky", "ground", "dynamic", "static",
)  # fmt: skip


def nuscenes(folder: CameraFolder, source: Path) -> None:
    """Add keyframes with their six cameras.

    The ego frame is on the ground below the rear axle, at the lidar's time. Cameras have their poses at their times.
    """
    info = read_json(source / "info.json")
    keyframes, categories = info["data_list"], list(info["metainfo"]["categories"])
    cameras, names, size = list(keyframes[0]["images"]), [], (0, 0)
    for keyframe in track(keyframes, "converting"):
        names.append(keyframe["token"])
        for camera, entry in keyframe["images"].items():
            path = source / "samples" / camera / entry["img_path"]
            size = read_image_size(path)
            folder.add(path, f"images/{camera}/{names[-1]}{path.suffix}")
        drivable = read_label_image(source / "bev_drivable_from_map_0.1m_60x60m.png").numpy() > 0
        Image.fromarray(drivable.astype(np.uint8)).save(folder.make(f"bev/{names[-1]}.png"))
        ego_from_lidar = np.array(keyframe["lidar_points"]["lidar2ego"])
        boxes = []
        for instance in keyframe["instances"]:
            *center, length, width, height, yaw = instance["bbox_3d"]
            pose = ego_from_lidar @ _standing(center, yaw)
            boxes.append(_box(categories[instance["bbox_label_3d"]], pose, [length, width, height]))
        folder.boxes(names[-1], boxes)
    folder.split("test", names)
    folder.calibrate(
        [{"name": camera, "image_size": size} for camera in cameras],
        frames={
            keyframe["token"]: {
                camera: {
                    "intrinsics": rows(entry["cam2img"]),
                    "ego_from_cam": rows(
                        np.array(keyframe["lidar_points"]["lidar2ego"]) @ np.linalg.inv(entry["lidar2cam"])
                    ),
                }
                for camera, entry in keyframe["images"].items()
            }
            for keyframe in keyframes
        },
        bev={"grid": NUSCENES_GRID, "bits": ["drivable"]},
        boxes={"categories": categories},
    )


def dgp(folder: CameraFolder, source: Path) -> None:
    """Add a scene's keyframes.

    The ego frame is the vehicle's at the lidar's time, with the ground at z = 0; cameras have their poses at their own
    times.
    """
    scene = read_json(_only(source, "scene_*.json"))
    data = {item["key"]: item for item in scene["data"]}
    names = {item["id"]: item["name"] for item in read_json(_only(source / "ontology", "*.json"))["items"]}
    frames: dict[str, dict[str, Any]] = {}
    for number, keyframe in enumerate(track(scene["samples"], "converting")):
        calibration = read_json(source / "calibration" / f"{keyframe['calibration_key']}.json")
        rig = frames[f"{number:06d}"] = {}
        items = [data[key] for key in keyframe["datum_keys"]]
        lidar = next(item for item in items if "point_cloud" in item["datum"])
        cloud, sensor = lidar["datum"]["point_cloud"], calibration["names"].index(lidar["id"]["name"])
        ego_from_lidar = _pose(calibration["extrinsics"][sensor])
        ego_from_world = ego_from_lidar @ np.linalg.inv(_pose(cloud["pose"]))
        boxes = []
        for label in read_json(source / cloud["annotations"]["1"])["annotations"]:
            box = label["box"]
            pose = ego_from_lidar @ _pose(box["pose"])
            boxes.append(_box(names[label["class_id"]], pose, [box["length"], box["width"], box["height"]]))
        folder.boxes(f"{number:06d}", boxes)
        for item in items:
            if "image" not in item["datum"]:
                continue
            image, camera = item["datum"]["image"], item["id"]["name"]
            sensor = calibration["names"].index(camera)
            k = calibration["intrinsics"][sensor]
            rig[camera] = {
                "image_size": [image["height"], image["width"]],
                "intrinsics": rows([[k["fx"], k["skew"], k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]]),
                "ego_from_cam": rows(ego_from_world @ _pose(image["pose"])),
            }
            folder.add(source / image["filename"], f"images/{camera}/{number:06d}.jpg")
    folder.split("test", frames)
    folder.calibrate(
        [{"name": camera} for camera in frames["000000"]], frames=frames, boxes={"categories": sorted(names.values())}
    )


def kitti_object(folder: CameraFolder, source: Path) -> None:
    """Add frames with a calibration each; the ego frame is the velodyne's, lowered onto the ground."""
    frames: dict[str, Any] = {}
    categories: set[str] = set()
    for path in track(visible(source / "training" / "image_2", "*.png"), "converting"):
        matrices = read_matrices(source / "training" / "calib" / f"{path.stem}.txt")
        camera = _left_camera(matrices, ego_from_velodyne_ground(matrices))
        frames[path.stem] = {"left": {"image_size": read_image_size(path), **camera}}
        folder.add(path, f"images/{path.name}")
        labels = read_labels(source / "training" / "label_2" / f"{path.stem}.txt")
        boxes = [_kitti_box(label, ego_from_velodyne_ground(matrices)) for label in labels if label.kind != UNLABELLED]
        categories.update(box["category"] for box in boxes)
        folder.boxes(path.stem, boxes)
    folder.split("test", frames)
    folder.calibrate([{"name": "left"}], frames=frames, boxes={"categories": sorted(categories)})


def kitti_semantics(folder: CameraFolder, source: Path) -> None:
    """Add labelled frames; the labels are cropped to the images, which are their upper left part."""
    matrices = read_matrices(_only(source, "calib_*.txt"))
    names, size = [], (0, 0)
    for path in track(visible(source / "training" / "image_2", "*.png"), "converting"):
        names.append(path.stem)
        size = read_image_size(path)
        folder.add(path, f"images/{path.name}")
        labels = read_label_image(source / "training" / "semantic" / path.name).numpy()
        Image.fromarray(labels[: size[0], : size[1]]).save(folder.make(f"labels/{path.name}"))
    folder.split("test", names)
    folder.calibrate(
        [{"name": "left", "image_size": size, **_left_camera(matrices, ego_from_velodyne_ground(matrices))}],
        labels={"ids": ids(dict(enumerate(CITYSCAPES[4:], start=4))), "void": [0, 1, 2, 3]},
    )


def kitti_road(folder: CameraFolder, source: Path) -> None:
    """Add frames with their own calibration and a fitted road plane; labels are road and ego lane."""
    frames = {}
    for path in track(visible(source / "training" / "calib", "*.txt"), "converting"):
        image = source / "training" / "image_2" / f"{path.stem}.png"
        matrices = read_matrices(path)
        camera = _left_camera(matrices, ego_from_road_plane(matrices))
        size = read_image_size(image)
        frames[path.stem] = {"left": {"image_size": size, **camera}}
        folder.add(image, f"images/{image.name}")
        masks = read_masks(source / "training", path.stem, size, image).numpy()
        if not (masks & 8).any():
            raise InputError(
                f"{path}: the frame has no lane mask; a camera folder cannot hold that, read it with data=kitti_road"
            )
        labels = masks & 1
        labels[masks & 2 > 0] = 2
        labels[masks & 4 == 0] = 255
        Image.fromarray(labels).save(folder.make(f"labels/{path.stem}.png"))
    folder.split("test", frames)
    folder.calibrate([{"name": "left"}], frames=frames, labels={"ids": ids({0: "other", 1: "road", 2: "ego lane"})})


def waymo(folder: CameraFolder, source: Path) -> None:
    """Add one frame of five cameras; the source's camera frame is x forward, y left, z up."""
    content = read_json(source / "calib_boxes.json")
    name, cameras = "000000", []
    for camera, entry in content["calibration"].items():
        path = source / f"{camera}.jpg"
        fx, fy, cx, cy, *distortion = entry["intrinsic_fx_fy_cx_cy_k1_k2_p1_p2_k3"]
        cameras.append(
            {
                "name": camera,
                "image_size": read_image_size(path),
                "intrinsics": rows([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
                "distortion": {"model": "opencv", "coefficients": distortion},
                "ego_from_cam": rows(np.array(entry["T_vehicle_from_cam_xfwd_yleft_zup"]) @ FORWARD_LEFT_UP),
            }
        )
        folder.add(path, f"images/{camera}/{name}.jpg")
        folder.add(source / f"{camera}_semantic.png", f"labels/{camera}/{name}.png")
    boxes = [
        _box(box["type"], _standing(box["center"], box["heading"]), [box["length"], box["width"], box["height"]])
        for box in content["boxes_vehicle_frame"]
    ]
    folder.boxes(name, boxes)
    folder.split("test", [name])
    folder.calibrate(
        cameras,
        labels={"ids": ids(dict(enumerate(WAYMO[1:], start=1))), "void": [0]},
        boxes={"categories": sorted({box["category"] for box in boxes})},
    )


def _kitti_box(label: Label, ego_from_rectified: Tensor) -> dict[str, Any]:
    """Return an entry of a frame's boxes; labels give the middle of the lower face, with y down."""
    *_, yaw, length, width = ego_box(label, ego_from_rectified).tolist()
    x, y, z = label.bottom_m
    middle = ego_from_rectified @ torch.tensor([x, y - label.height_m / 2, z, 1.0], dtype=torch.float64)
    size_m = [length, width, label.height_m]
    return {"category": label.kind, "center_m": middle[:3].tolist(), "size_m": size_m, "yaw_deg": math.degrees(yaw)}


def _left_camera(matrices: Matrices, ego_from_rectified: Tensor) -> dict[str, Any]:
    intrinsics, ego_from_cam = left_camera(matrices, ego_from_rectified)
    return {"intrinsics": rows(intrinsics), "ego_from_cam": rows(ego_from_cam)}


def _box(category: str, ego_from_box: np.ndarray, size_m: list[float]) -> dict[str, Any]:
    """Return an entry of a frame's boxes; a box frame is x along its length, y left, z up, its origin in the middle."""
    yaw = math.degrees(math.atan2(ego_from_box[1, 0], ego_from_box[0, 0]))
    return {"category": category, "center_m": ego_from_box[:3, 3].tolist(), "size_m": size_m, "yaw_deg": yaw}


def _standing(center: Any, yaw: float) -> np.ndarray:
    """Return the pose (4, 4) of an upright box; yaw in radians."""
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    pose[:3, 3] = center
    return pose


def _pose(given: dict[str, dict[str, float]]) -> np.ndarray:
    """Return the (4, 4) pose of a unit quaternion and a translation."""
    quaternion = [given["rotation"][key] for key in ("qw", "qx", "qy", "qz")]
    return pose_of(quaternion, [given["translation"][key] for key in ("x", "y", "z")])


def _only(folder: Path, pattern: str) -> Path:
    found = visible(folder, pattern)
    if len(found) != 1:
        raise InputError(f"{folder}: there are {len(found)} files {pattern}, one was expected; check --source")
    return found[0]


KINDS = {
    "nuscenes": nuscenes,
    "dgp": dgp,
    "waymo": waymo,
    "kitti-object": kitti_object,
    "kitti-semantics": kitti_semantics,
    "kitti-road": kitti_road,
}


def convert(kind: str, source: Path, out: Path) -> None:
    """Write the camera folder."""
    create(out, partial(KINDS[kind], source=source))


if __name__ == "__main__":
    run(__doc__, convert, "folder of the data set", "camera folder to write", kinds=KINDS)
