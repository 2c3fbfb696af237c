"""Test projections of boxes and lidar points of real recordings against the sources' own matrices in numpy.

The samples are the network's input: images of their stored size, float32 cameras. The sources' matrices are multiplied
here in float64, in the sources' own frames, without the package or the converter.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bevreshape.data.sources.folder.boxes import Boxes, read_boxes
from bevreshape.data.sources.folder.dataset import CameraFolderDataset, open_frames
from bevreshape.geometry import Cameras
from bevreshape.geometry.distortion import source_pixels

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TOLERANCE_PX = 0.01


@pytest.fixture
def converted(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Convert a kind of source; return source and camera folder."""

    def convert(kind: str, place: str) -> tuple[Path, Path]:
        monkeypatch.syspath_prepend(TOOLS)
        __import__("convert_frames").convert(kind, shared_data / place, tmp_path / kind)
        return shared_data / place, tmp_path / kind

    return convert


def cameras(root: Path, size: tuple[int, int]) -> CameraFolderDataset:
    return open_frames(root, size)


def boxes_of(root: Path, frame: str) -> Boxes:
    categories = json.loads((root / "calibration.json").read_text())["boxes"]["categories"]
    return read_boxes(root / f"boxes/{frame}.json", categories)


def project(sample: dict, number: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels and depth of ego points (p, 3), by the float32 cameras of a sample."""
    height, width = sample.images.shape[-2:]
    camera = Cameras(sample.intrinsics[None, [number]], sample.ego_from_cam[None, [number]], (height, width))
    pixels, depth = camera.project(torch.from_numpy(points).float()[None])
    return pixels[0, 0].double().numpy(), depth[0, 0].double().numpy()


def moved(target_from_source: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ target_from_source[:3, :3].T + target_from_source[:3, 3]


def compare(found: tuple[np.ndarray, np.ndarray], in_camera: np.ndarray, k: np.ndarray, size: tuple[int, int]) -> int:
    """Compare pixels within the image and a metre or more ahead; return their number."""
    pixel = in_camera @ k.T
    depth = pixel[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = pixel[:, :2] / depth[:, None]
    chosen = (depth > 1) & (expected > -0.5).all(1) & (expected < np.array(size[::-1]) - 0.5).all(1)
    np.testing.assert_allclose(found[0][chosen], expected[chosen], atol=TOLERANCE_PX)
    assert (np.abs(found[1] - depth)[depth > 1] < 1e-3).all()
    return int(chosen.sum())


def upright_corners(path: Path) -> np.ndarray:
    """Return corners of the boxes of a JSON file, (k · 8, 3) ego points."""
    corners = []
    for box in json.loads(path.read_text()):
        yaw = np.radians(box["yaw_deg"])
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        for signs in np.ndindex(2, 2, 2):
            corners.append(box["center_m"] + turn @ ((np.array(signs[::-1]) - 0.5) * box["size_m"]))
    return np.array(corners)


def test_nuscenes(converted) -> None:
    source, root = converted("nuscenes", "nuscenes_frame1")
    (keyframe,) = json.loads((source / "info.json").read_text())["data_list"]
    frames = cameras(root, (900, 1600))
    sample, boxes = frames[0], boxes_of(root, keyframe["token"])
    cloud = np.fromfile(next((source / "samples/LIDAR_TOP").iterdir()), np.float32).reshape(-1, 5)[:, :3].astype(float)
    centers = np.array([instance["bbox_3d"][:3] for instance in keyframe["instances"]])
    ego_from_lidar = np.array(keyframe["lidar_points"]["lidar2ego"])
    corners = moved(np.linalg.inv(ego_from_lidar), upright_corners(root / f"boxes/{keyframe['token']}.json"))
    assert len(centers) == 69
    counts = np.zeros(3, int)
    for number, camera in enumerate(frames.calibration.cameras):
        entry = keyframe["images"][camera]
        k, cam_from_lidar = np.array(entry["cam2img"]), np.array(entry["lidar2cam"])
        given = (moved(ego_from_lidar, cloud), boxes.centers.numpy(), boxes.corners.flatten(0, 1).numpy())
        for which, (ours, theirs) in enumerate(zip(given, (cloud, centers, corners), strict=True)):
            counts[which] += compare(project(sample, number, ours), moved(cam_from_lidar, theirs), k, (900, 1600))
        static = np.array(entry["cam2ego"])  # where it is mounted: the vehicle moved a little between lidar and camera
        drift = sample.ego_from_cam[number].double().numpy()[:3, 3] - static[:3, 3]
        assert np.abs(drift).max() < 0.5
    assert counts[0] > 10_000
    assert counts[1] >= 60
    assert counts[2] > 400


def pose(given: dict) -> np.ndarray:
    """Return the (4, 4) pose of a quaternion and a translation, by Rodrigues' formula."""
    w, *axis = (given["rotation"][key] for key in ("qw", "qx", "qy", "qz"))
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    matrix[:3, 3] = [given["translation"][key] for key in ("x", "y", "z")]
    return matrix


def test_dgp(converted) -> None:
    source, root = converted("dgp", "dgp/scene_02")
    scene = json.loads(next(source.glob("scene_*.json")).read_text())
    data = {item["key"]: item for item in scene["data"]}
    (rig,) = (json.loads(path.read_text()) for path in (source / "calibration").iterdir())
    frames = cameras(root, (1216, 1936))
    counts = np.zeros(3, int)
    for index, keyframe in enumerate(scene["samples"]):
        sample, boxes = frames[index], boxes_of(root, frames.names[index])
        items = {data[key]["id"]["name"]: data[key]["datum"] for key in keyframe["datum_keys"]}
        lidar = items.pop("LIDAR")["point_cloud"]
        with np.load(source / lidar["filename"]) as arrays:
            cloud = arrays["data"][:, :3].astype(float)
        labels = json.loads((source / lidar["annotations"]["1"]).read_text())["annotations"]
        centers = np.array([pose(label["box"]["pose"])[:3, 3] for label in labels])
        corners = upright_corners(root / f"boxes/{frames.names[index]}.json")
        world_from_lidar = pose(lidar["pose"])
        assert np.allclose(pose(rig["extrinsics"][rig["names"].index("LIDAR")]), np.eye(4)), (
            "points are in the vehicle's frame"
        )
        for name, datum in items.items():
            number = frames.calibration.cameras.index(name)
            given = rig["intrinsics"][rig["names"].index(name)]
            k = np.array([[given["fx"], given["skew"], given["cx"]], [0, given["fy"], given["cy"]], [0, 0, 1]])
            cam_from_lidar = np.linalg.inv(pose(datum["image"]["pose"])) @ world_from_lidar
            ours = (cloud, boxes.centers.numpy(), boxes.corners.flatten(0, 1).numpy())
            for which, (mine, theirs) in enumerate(zip(ours, (cloud, centers, corners), strict=True)):
                counts[which] += compare(project(sample, number, mine), moved(cam_from_lidar, theirs), k, (1216, 1936))
    assert counts[0] > 50_000
    assert counts[1] > 30
    assert counts[2] > 200


def kitti(path: Path) -> np.ndarray:
    """Return P2 · R0_rect · Tr_velo_to_cam (3, 4), as in the development kit, and P2 alone."""
    lines = path.read_text().splitlines()
    raw = {line.split(":")[0]: np.array(line.split()[1:], float) for line in lines if line}
    rectify, velodyne = np.eye(4), np.eye(4)
    rectify[:3, :3], velodyne[:3] = raw["R0_rect"].reshape(3, 3), raw["Tr_velo_to_cam"].reshape(3, 4)
    p2 = raw["P2"].reshape(3, 4)
    return np.stack([p2 @ rectify @ velodyne, p2])


def kitti_labels(path: Path) -> list[tuple[str, np.ndarray]]:
    return [(line.split()[0], np.array(line.split()[1:], float)) for line in path.read_text().splitlines()]


def homogeneous(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])


def test_kitti_with_the_fourth_column_of_p2(converted) -> None:
    source, root = converted("kitti-object", "kitti_object")
    counts = np.zeros(3, int)
    for index, name in enumerate(open_frames(root, (64, 64)).names):
        size = tuple(json.loads((root / "calibration.json").read_text())["frames"][name]["left"]["image_size"])
        sample, boxes = cameras(root, size)[index], boxes_of(root, name)
        pixel_from_velodyne, p2 = kitti(source / f"training/calib/{name}.txt")
        lidar = source / f"training/velodyne/{name}.bin"
        if lidar.exists():
            cloud = np.fromfile(lidar, np.float32).reshape(-1, 4)[:, :3].astype(float)
            seen = homogeneous(cloud) @ pixel_from_velodyne.T
            counts[0] += compare(project(sample, 0, cloud + np.array([0, 0, 1.73])), seen, np.eye(3), size)
        labels = [
            values for kind, values in kitti_labels(source / f"training/label_2/{name}.txt") if kind != "DontCare"
        ]
        middles = np.array([values[10:13] - [0, values[7] / 2, 0] for values in labels])
        counts[1] += compare(project(sample, 0, boxes.centers.numpy()), homogeneous(middles) @ p2.T, np.eye(3), size)
        corners = upright_corners(root / f"boxes/{name}.json") - [0, 0, 1.73]
        seen = homogeneous(corners) @ pixel_from_velodyne.T
        counts[2] += compare(project(sample, 0, boxes.corners.flatten(0, 1).numpy()), seen, np.eye(3), size)
    assert counts[0] > 30_000
    assert counts[1] > 20
    assert counts[2] > 200


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def test_kittis_projected_boxes_agree_with_those_drawn_in_the_image(converted) -> None:
    """Compare fully visible objects; a person's outline is narrower than the box around the arms and legs."""
    source, root = converted("kitti-object", "kitti_object")
    found: dict[str, list[float]] = {}
    for index, name in enumerate(open_frames(root, (64, 64)).names):
        size = tuple(json.loads((root / "calibration.json").read_text())["frames"][name]["left"]["image_size"])
        sample, boxes = cameras(root, size)[index], boxes_of(root, name)
        labels = [label for label in kitti_labels(source / f"training/label_2/{name}.txt") if label[0] != "DontCare"]
        for (kind, values), corners in zip(labels, boxes.corners.numpy(), strict=True):
            if values[0] > 0:  # truncated
                continue
            pixels, _ = project(sample, 0, corners)
            hull = np.concatenate([pixels.min(0), pixels.max(0)]).clip(0, np.array([*size[::-1], *size[::-1]]) - 1)
            found.setdefault(kind, []).append(iou(hull, values[3:7]))
    persons = found.pop("Pedestrian")
    assert min(min(values) for values in found.values()) > 0.96
    assert min(persons) > 0.8
    assert sum(map(len, found.values())) > 20


def waymo_pixels(entry: dict, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return stored pixels and depth of vehicle points, by the data set's equations: x forward, y left, z up."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = entry["intrinsic_fx_fy_cx_cy_k1_k2_p1_p2_k3"]
    x, y, z = moved(np.linalg.inv(entry["T_vehicle_from_cam_xfwd_yleft_zup"]), points).T
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = -y / x, -z / x
    r2 = a * a + b * b
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a)
    v = b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b
    return np.stack([u * fx + cx, v * fy + cy], axis=1), x


def test_waymo_with_its_distortion(converted) -> None:
    """The undistortion map takes the pinhole camera's pixel to the stored pixel."""
    source, root = converted("waymo", "waymo_frame1")
    content = json.loads((source / "calib_boxes.json").read_text())
    calibration = open_frames(root, (64, 64)).calibration
    rig, boxes = calibration.of("000000"), boxes_of(root, "000000")
    assert len(boxes.categories) == 75
    corners, compared, largest = boxes.corners.flatten(0, 1), 0, 0.0
    np.testing.assert_allclose(upright_corners(root / "boxes/000000.json"), corners.numpy(), atol=1e-9)
    for number, name in enumerate(calibration.cameras):
        height, width = rig.sizes[number]
        distortion = rig.distortions[number]
        assert distortion is not None
        assert name in content["calibration"]
        expected, depth = waymo_pixels(content["calibration"][name], corners.numpy())
        pixels, ours = (value[0, 0].numpy() for value in rig.camera(number).project(corners[None]))
        np.testing.assert_allclose(ours, depth, atol=1e-9)
        inside = (depth > 1) & (pixels >= 0).all(1) & (pixels < [width - 1, height - 1]).all(1)
        sources = source_pixels(distortion, rig.intrinsics[number], distortion.image_size).numpy()
        for (u, v), there in zip(pixels[inside], expected[inside], strict=True):
            col, row = int(u), int(v)
            right, down = u - col, v - row
            found = (1 - down) * ((1 - right) * sources[row, col] + right * sources[row, col + 1])
            found += down * ((1 - right) * sources[row + 1, col] + right * sources[row + 1, col + 1])
            largest = max(largest, np.abs(found - there).max())
            compared += 1
    assert compared > 150
    assert largest < TOLERANCE_PX
