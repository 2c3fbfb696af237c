"""Write the synthetic world as a nuScenes release, v1.0-mini with its map expansion, to test nuScenes' readers.

Tables, images, lidar points and maps have nuScenes' own schema, so its devkit reads them. The vehicle drives along the
first road, pitches and rolls a little, and takes its six images at slightly different times, as the real one does. All
content comes from the world's own description. Scenes only borrow the names of real ones, for the official splits.

    python tools/write_nuscenes.py --out data/nuscenes --train 4 --val 2 --keyframes 3
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from camera_folder import made_whole
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from PIL import Image

from bevreshape.config.arguments import Parser, integer
from bevreshape.console import run_script
from bevreshape.data.sources.nuscenes.maps import AREAS, LINES
from bevreshape.data.sources.nuscenes.tables import LIDAR, inverse
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.data.sources.synthetic.rig import RIGS, nominal
from bevreshape.data.sources.synthetic.source import World
from bevreshape.data.sources.synthetic.world import Scene, Vehicle
from bevreshape.errors import InputError
from bevreshape.reporting.progress import track

VERSION, LOCATION = "v1.0-mini", "boston-seaport"
TRAIN = (
    "scene-0061", "scene-0553", "scene-0655", "scene-0757", "scene-0796", "scene-1077", "scene-1094", "scene-1100",
)  # fmt: skip
VAL = ("scene-0103", "scene-0916")
"""Names of scenes of the official splits of v1.0-mini."""

CAMERAS = {name: f"CAM_{name.upper()}" for name in RIGS["surround"]}
APART_M = 400.0
"""Distance between scenes on the map, metres."""
REACH_M = 90.0
"""Reach of a scene's map around its beginning, metres."""
STEP_M = 0.2
"""Step of the raster on which outlines are found, metres; their distance to the edge is interpolated."""
DRIVE_M = 4.0
"""Between keyframes."""
WALKWAY_FROM_M = 0.2
LIDAR_FROM_EGO = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0.9], [0, 0, 1, -1.8], [0, 0, 0, 1]])

Matrix = NDArray[np.float64]


def token(*parts: object) -> str:
    """Return 32 hexadecimal digits, as in nuScenes, that depend on the parts alone."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


class Release:
    """Collect tables and map, scene by scene.

    Args:
        out: folder of the release.
        world: of the scenes; its grid is not used.
        keyframes: number for every scene.
    """

    def __init__(self, out: Path, world: World, keyframes: int) -> None:
        self.out = out
        self.world = world
        self.keyframes = keyframes
        self.tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.map: dict[str, Any] = {
            "version": "1.3", "canvas_edge": [4000.0, 4000.0], "polygon": [], "line": [], "node": [],
            **{layer: [] for layer in (*AREAS, *LINES, "road_block", "traffic_light", "lane_connector")},
            "arcline_path_3": {}, "connectivity": {},
        }  # fmt: skip
        for level, share in enumerate(("0-40", "40-60", "60-80", "80-100"), start=1):
            self._add(
                "visibility", str(level), level=f"v{share}", description=f"visibility of whole object is {share}%"
            )
        for name in ("vehicle.car", "vehicle.truck", "vehicle.bus.rigid"):
            self._add("category", token("category", name), name=name, description="")
        self.sensors = {name: token("sensor", name) for name in (*CAMERAS.values(), LIDAR)}
        for name, own in self.sensors.items():
            self._add("sensor", own, channel=name, modality="lidar" if name == LIDAR else "camera")
        self._add("attribute", token("attribute"), name="vehicle.parked", description="")

    def _add(self, table: str, own: str, **values: Any) -> str:
        self.tables[table].append({"token": own, **values})
        return own

    def add_scene(self, name: str, number: int) -> None:
        """Write the images of scene ``number`` of the world, and add it to tables and map under a borrowed name."""
        scene = self.world.scene(number)
        world_from_scene = pose(0.7 * number, (300.0 + APART_M * number, 500.0 + 37.0 * number, 0.0))
        log = self._add(
            "log", token("log", name), logfile=name, vehicle="n000", date_captured="2026-01-01", location=LOCATION
        )
        samples = [token("sample", name, keyframe) for keyframe in range(self.keyframes)]
        calibrated = self._calibrate(name)
        for keyframe, sample in enumerate(samples):
            self._add(
                "sample", sample, timestamp=self._time(keyframe), scene_token=token("scene", name),
                prev=samples[keyframe - 1] if keyframe else "",
                next=samples[keyframe + 1] if keyframe + 1 < self.keyframes else "",
            )  # fmt: skip
            self._sense(name, scene, number, keyframe, sample, calibrated, world_from_scene)
        self._annotate(name, scene.vehicles, samples, world_from_scene)
        self._add(
            "scene", token("scene", name), name=name, description=f"synthetic{', night' if number % 3 == 2 else ''}",
            log_token=log, nbr_samples=self.keyframes, first_sample_token=samples[0], last_sample_token=samples[-1],
        )  # fmt: skip
        self._draw_map(scene, world_from_scene)

    @staticmethod
    def _time(keyframe: int, late_s: float = 0.0) -> int:
        return round((1.7e9 + 0.5 * keyframe + late_s) * 1e6)

    def _calibrate(self, name: str) -> dict[str, str]:
        found = {}
        intrinsics, mounted = nominal("surround", self.world.image_size)
        rig = zip(CAMERAS.values(), mounted, intrinsics, strict=True)
        for channel, sensor_pose, k in (*rig, (LIDAR, inverse(LIDAR_FROM_EGO), np.empty((0, 0)))):
            found[channel] = self._add(
                "calibrated_sensor", token("calibrated", name, channel), sensor_token=self.sensors[channel],
                **posed(sensor_pose), camera_intrinsic=k.tolist(),
            )  # fmt: skip
        return found

    def _sense(
        self,
        name: str,
        scene: Scene,
        number: int,
        keyframe: int,
        sample: str,
        calibrated: dict[str, str],
        world_from_scene: Matrix,
    ) -> None:
        height, width = self.world.image_size
        _, mounted = nominal("surround", self.world.image_size)
        late = {channel: 0.008 * i - 0.02 for i, channel in enumerate(CAMERAS.values())} | {LIDAR: 0.0}
        at = {channel: drive(scene, DRIVE_M * (keyframe + late_s / 0.5)) for channel, late_s in late.items()}
        poses = np.stack([at[channel] @ own for channel, own in zip(CAMERAS.values(), mounted, strict=True)])
        images = dict(zip(CAMERAS.values(), self.world.images(number, scene, poses.astype(np.float32)), strict=True))
        for channel, scene_from_vehicle in at.items():
            own = token("data", name, keyframe, channel)
            suffix = "pcd.bin" if channel == LIDAR else "jpg"
            file = f"samples/{channel}/{name}__{channel}__{self._time(keyframe, late[channel])}.{suffix}"
            path = self.out / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if channel == LIDAR:
                ground_points(scene_from_vehicle).tofile(path)
            else:
                Image.fromarray(images[channel]).save(path, quality=95, subsampling=0)
            vehicle = self._add(
                "ego_pose",
                own,
                timestamp=self._time(keyframe, late[channel]),
                **posed(world_from_scene @ scene_from_vehicle),
            )
            self._add(
                "sample_data", own, sample_token=sample, ego_pose_token=vehicle,
                calibrated_sensor_token=calibrated[channel], filename=file, fileformat=suffix.removesuffix(".bin"),
                width=0 if channel == LIDAR else width, height=0 if channel == LIDAR else height,
                timestamp=self._time(keyframe, late[channel]), is_key_frame=True, prev="", next="",
            )  # fmt: skip

    def _annotate(
        self, name: str, vehicles: Sequence[Vehicle], samples: Sequence[str], world_from_scene: Matrix
    ) -> None:
        for i, vehicle in enumerate(vehicles):
            tokens = [token("annotation", name, i, sample) for sample in samples]
            instance, distance = token("instance", name, i), math.hypot(vehicle.x, vehicle.y)
            category = "truck" if vehicle.length_m > 6.2 else "car"
            category = "bus.rigid" if vehicle.length_m > 9.5 else category
            high = max(solid.top_m for solid in vehicle.solids)
            box = posed(world_from_scene @ pose(vehicle.yaw, (vehicle.x, vehicle.y, high / 2)))
            for j, (own, sample) in enumerate(zip(tokens, samples, strict=True)):
                self._add(
                    "sample_annotation", own, sample_token=sample, instance_token=instance, **box,
                    size=[vehicle.width_m, vehicle.length_m, high],
                    visibility_token=str(max(1, 4 - int(distance / 15))),
                    attribute_tokens=[token("attribute")], num_lidar_pts=5, num_radar_pts=0,
                    prev=tokens[j - 1] if j else "", next=tokens[j + 1] if j + 1 < len(tokens) else "",
                )  # fmt: skip
            self._add(
                "instance", instance, category_token=token("category", f"vehicle.{category}"),
                nbr_annotations=len(tokens),
                first_annotation_token=tokens[0], last_annotation_token=tokens[-1],
            )  # fmt: skip

    def _draw_map(self, scene: Scene, world_from_scene: Matrix) -> None:
        axis = np.arange(-REACH_M, REACH_M + STEP_M, STEP_M)
        x, y = np.meshgrid(axis, axis)
        ground = scene.ground(x, y)
        surface = ground.surface()

        def areas(distance: NDArray[np.floating], low: float = -1e6, high: float = 0.0) -> list[str]:
            """Return polygons where a distance is between two values."""
            outlines: Any = contour_generator(x, y, distance, fill_type=FillType.OuterOffset).filled(low, high)
            return [
                self._polygon([ring[a:b] for a, b in pairwise(offsets)], world_from_scene)
                for ring, offsets in zip(*outlines, strict=True)
            ]

        road = areas(surface)
        self.map["drivable_area"].append({"token": token("drivable", road[0]), "polygon_tokens": road})
        for own in road:
            self.map["road_segment"].append(
                {
                    "token": token("segment", own),
                    "polygon_token": own,
                    "is_intersection": False,
                    "drivable_area_token": "",
                }
            )
        if scene.look.pavement_m:
            for own in areas(surface, WALKWAY_FROM_M, scene.look.pavement_m):
                self.map["walkway"].append({"token": token("walkway", own), "polygon_token": own})
        for i, strip in enumerate(scene.roads):
            for zebra in strip.crossings:
                for own in areas(ground.crossing(i, zebra)):
                    self.map["ped_crossing"].append(
                        {"token": token("crossing", own), "polygon_token": own, "road_segment_token": ""}
                    )
            for kind, points in dashes(scene, i):
                own = self._line(points, world_from_scene)
                self.map[kind].append({"token": token(kind, own), "line_token": own, "road_segment_token": ""})

    def _nodes(self, points: NDArray[np.floating], world_from_scene: Matrix) -> list[str]:
        placed = points @ world_from_scene[:2, :2].T + world_from_scene[:2, 3]
        tokens = [token("node", len(self.map["node"]) + i) for i in range(len(placed))]
        self.map["node"] += [
            {"token": own, "x": x, "y": y} for own, (x, y) in zip(tokens, placed.tolist(), strict=True)
        ]
        return tokens

    def _polygon(self, rings: Sequence[NDArray[np.floating]], world_from_scene: Matrix) -> str:
        outer, *holes = (self._nodes(ring[:-1], world_from_scene) for ring in rings)
        own = token("polygon", len(self.map["polygon"]))
        self.map["polygon"].append(
            {"token": own, "exterior_node_tokens": outer, "holes": [{"node_tokens": hole} for hole in holes]}
        )
        return own

    def _line(self, points: NDArray[np.floating], world_from_scene: Matrix) -> str:
        own = token("line", len(self.map["line"]))
        self.map["line"].append({"token": own, "node_tokens": self._nodes(points, world_from_scene)})
        return own

    def write(self) -> None:
        """Write the tables and the map."""
        image = f"maps/{token('map')}.png"
        logs = [log["token"] for log in self.tables["log"]]
        self._add("map", token("map"), log_tokens=logs, category="semantic_prior", filename=image)
        for table, rows in self.tables.items():
            path = self.out / VERSION / f"{table}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows), encoding="utf-8")
        path = self.out / "maps" / "expansion" / f"{LOCATION}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.map), encoding="utf-8")
        Image.new("L", (8, 8)).save(self.out / image)


def drive(scene: Scene, along_m: float) -> Matrix:
    """Return the vehicle's pose after some metres of road, ``scene_from_vehicle``, with a little pitch and roll."""
    road = scene.roads[0]
    s, t = (float(value[0]) for value in road.along_across(np.zeros(1), np.zeros(1)))
    x, y, heading = (float(value[0]) for value in road.point(s + along_m, t))
    nod, sway = math.radians(0.8) * math.sin(along_m), math.radians(0.5) * math.cos(1.7 * along_m)
    pitch = np.array([[math.cos(nod), 0, math.sin(nod)], [0, 1, 0], [-math.sin(nod), 0, math.cos(nod)]])
    roll = np.array([[1, 0, 0], [0, math.cos(sway), -math.sin(sway)], [0, math.sin(sway), math.cos(sway)]])
    found = pose(heading, (x, y, 0.0))
    found[:3, :3] = found[:3, :3] @ pitch @ roll
    return found


def dashes(scene: Scene, number: int) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """Yield the painted pieces of a road's markings: the layer and the points (p, 2) of each."""
    road = scene.roads[number]
    begin, _ = road.along_across(np.zeros(1), np.zeros(1))
    s = np.arange(max(begin[0] - REACH_M, road.start_m), min(begin[0] + REACH_M, road.end_m), 0.02)
    for marking in road.markings:
        x, y, _ = road.point(s, np.full_like(s, marking.offset_m))
        ground = scene.ground(x, y)
        painted = marking.is_painted(s) & (ground.paintable(number) > 0) & (ground.distances[number] <= 0)
        painted &= np.maximum(np.abs(x), np.abs(y)) < REACH_M
        for piece in np.split(np.arange(len(s)), np.flatnonzero(np.diff(painted)) + 1):
            if painted[piece[0]] and len(piece) > 1:
                chosen = np.unique(np.append(piece[::50], piece[-1]))  # one metre apart
                yield ("road_divider" if marking.offset_m == 0 else "lane_divider"), np.stack([x, y], 1)[chosen]


def ground_points(scene_from_vehicle: Matrix) -> NDArray[np.float32]:
    """Return lidar points (p, 5) of the ground: x, y, z in its frame, intensity, ring."""
    angle, distance = np.meshgrid(np.linspace(-math.pi, math.pi, 60, endpoint=False), np.arange(4.0, 40.0, 2.0))
    centre = scene_from_vehicle[:2, 3, None]
    ground = centre + np.stack([(distance * np.cos(angle)).ravel(), (distance * np.sin(angle)).ravel()])
    points = np.vstack([ground, np.zeros(ground.shape[1]), np.ones(ground.shape[1])])
    seen = LIDAR_FROM_EGO @ inverse(scene_from_vehicle) @ points
    return np.vstack([seen[:3], np.zeros((2, seen.shape[1]))]).T.astype(np.float32)


def pose(yaw: float, translation: tuple[float, float, float]) -> Matrix:
    """Return the (4, 4) pose of a rotation about the vertical."""
    found = np.eye(4)
    found[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    found[:3, 3] = translation
    return found


def posed(pose: Matrix) -> dict[str, list[float]]:
    """Return quaternion w, x, y, z and translation of a (4, 4) pose."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
    return {"rotation": [w, x, y, z], "translation": pose[:3, 3].tolist()}


def write(out: Path, train: int, val: int, keyframes: int, image_size: tuple[int, int], seed: int) -> None:
    """Write the whole release.

    Raises:
        InputError: when there are more scenes than names, or the folder is not empty.
    """
    if not (1 <= train <= len(TRAIN) and 1 <= val <= len(VAL) and keyframes >= 1):
        raise InputError(
            f"--train {train} --val {val} --keyframes {keyframes}: v1.0-mini has 1 to {len(TRAIN)} and 1 to {len(VAL)} "
            "scenes, and each a keyframe at least"
        )
    world = SyntheticSource(rig="surround", image_size=image_size, seed=seed, root=out / "unused").world("train")
    with made_whole(out) as folder:
        release = Release(folder, world, keyframes)
        for number, name in enumerate(track((*TRAIN[:train], *VAL[:val]), "drawing scenes")):
            release.add_scene(name, number)
        release.write()
    print(f"{out}: {train} + {val} scenes of {keyframes} keyframes, six images of {image_size[0]}×{image_size[1]} each")


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the release, new or empty")
    parser.add_argument("--train", type=integer(1, len(TRAIN)), default=4, help="scenes to train on, up to 8 (4)")
    parser.add_argument("--val", type=integer(1, len(VAL)), default=2, help="scenes to validate on, up to 2 (2)")
    parser.add_argument("--keyframes", type=integer(1, 10_000), default=3, help="of every scene (3)")
    parser.add_argument(
        "--image-size", type=integer(1, 10_000), nargs=2, default=(225, 400), metavar=("HEIGHT", "WIDTH"),
        help="of its images (225 400)",
    )  # fmt: skip
    parser.add_argument("--seed", type=integer(0, 2**31 - 1), default=0, help="of the world (0)")
    given = parser.parse_args()
    write(given.out, given.train, given.val, given.keyframes, tuple(given.image_size), given.seed)


if __name__ == "__main__":
    run_script(main)
