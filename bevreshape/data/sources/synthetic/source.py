"""Provide the synthetic world as a data source: its parameters, its cache, and its dataset."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Annotated, Literal, cast

import numpy as np
import torch
from annotated_types import Gt, Le
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset
from typing_extensions import TypedDict

from bevreshape.config.options import Count, DataRoot, ImageSize, Seed, Steps, checked
from bevreshape.data import storage
from bevreshape.data.batch import SEGMENTATION, SPLITS, BEVBatch, Meta, Sample
from bevreshape.data.sources.synthetic.draw import draw_scene
from bevreshape.data.sources.synthetic.render import render
from bevreshape.data.sources.synthetic.rig import RIGS, Rig, Spread, nominal
from bevreshape.data.sources.synthetic.world import CLASSES, Scene, bev_labels
from bevreshape.data.targets import BEVTarget
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels
from bevreshape.storage.object_store import data_path
from bevreshape.storage.store_path import DataPath, StorePath, unchanging

WORLD_VERSION = 2
"""Version of the world, raised with every change of its content, so that old caches are not reused."""

JPEG_QUALITY = 95
POSE, SENSOR, NOISE, SCENE = 1, 2, 3, 4
"""Purpose of a generator, the last word of its key; not 0, which numpy's seeding ignores at the end."""


class Scenes(TypedDict):
    """Hold the number of scenes of every split."""

    train: Steps
    val: Steps
    test: Steps


@dataclass(frozen=True)
class World:
    """Hold the parameters of a split's content.

    Attributes:
        split: ``train``, ``val`` or ``test``; their scenes differ.
        seed: of the world.
        rig: a key of :data:`~bevreshape.data.sources.synthetic.rig.RIGS`.
        image_size: (H, W) in pixels.
        grid: cells of the target.
        jitter: spread of the cameras about their mountings, drawn for every scene and camera.
        lane_label_m: least width of a marking in the target.
    """

    split: str
    seed: int
    rig: str
    image_size: tuple[int, int]
    grid: BEVGrid
    jitter: Spread
    lane_label_m: float

    def meta(self) -> dict[str, object]:
        """Return the parameters as plain values."""
        return {"world_version": WORLD_VERSION, "jpeg_quality": JPEG_QUALITY, **asdict(self)}

    def folder_name(self) -> str:
        """Return the name of the split's cache folder, a different one for different parameters."""
        digest = hashlib.sha256(json.dumps(self.meta(), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.split}-{digest}"

    def generator(self, index: int, purpose: int) -> np.random.Generator:
        """Return the random generator of scene ``index`` for one purpose."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), index, purpose))

    def scene(self, index: int) -> Scene:
        """Return scene ``index``, the same for every rig, image size, grid and jitter."""
        return draw_scene(self.seed, SPLITS.index(self.split), index, SCENE)

    def poses(self, index: int) -> NDArray[np.float32]:
        """Return the true ``ego_from_cam`` (n, 4, 4) of scene ``index``, in the batch's precision."""
        _, mounted = nominal(self.rig, self.image_size)
        return self.jitter.draw(mounted, self.generator(index, POSE)).astype(np.float32)

    def images(self, index: int, scene: Scene, poses: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """Render the image of every camera, (H, W, 3)."""
        intrinsics, _ = nominal(self.rig, self.image_size)
        sensor = self.generator(index, SENSOR)
        cameras = zip(intrinsics, poses.astype(np.float64), strict=True)
        return [render(scene, k, pose, self.image_size, sensor) for k, pose in cameras]

    def seen(self, poses: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the cells (rows, cols) that a camera observes."""
        return _seen(self.rig, self.image_size, self.grid, poses.tobytes())


@lru_cache(maxsize=1)  # without jitter all scenes have the same cameras
def _seen(rig: str, image_size: tuple[int, int], grid: BEVGrid, poses: bytes) -> NDArray[np.bool_]:
    intrinsics = torch.tensor(nominal(rig, image_size)[0], dtype=torch.float32)[None]
    ego_from_cam = torch.frombuffer(bytearray(poses), dtype=torch.float32).view(1, -1, 4, 4)
    return ground_pixels(Cameras(intrinsics, ego_from_cam, image_size), grid)[1][0].any(0).numpy()


def make_records(world: World, first: int, stop: int) -> list[bytes]:
    """Return the records of scenes ``first`` to before ``stop``: lengths of the images, poses, label bits, images."""
    return [_encode(world, index) for index in range(first, stop)]


def _encode(world: World, index: int) -> bytes:
    scene, poses = world.scene(index), world.poses(index)
    images = []
    for image in world.images(index, scene, poses):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        images.append(file.getvalue())
    lengths = np.array([len(image) for image in images], "<u4")
    target, seen = bev_labels(scene, world.grid, world.lane_label_m), world.seen(poses)
    labels = np.packbits(np.concatenate([target, seen[None]]))
    return b"".join([lengths.tobytes(), poses.astype("<f4").tobytes(), labels.tobytes(), *images])


class SyntheticScenes(Dataset[Sample]):
    """Read one split from its cache, scene by scene; nothing stays in memory."""

    def __init__(self, world: World, folder: DataPath, count: int, calibration: str, noise: Spread) -> None:
        self.world = world
        self.folder = folder
        self.count = count
        self.calibration = calibration
        self.noise = noise
        intrinsics, self.mounted = nominal(world.rig, world.image_size)
        self.intrinsics = torch.tensor(intrinsics, dtype=torch.float32)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Return scene ``index``.

        Raises:
            IndexError: when the index is beyond the split.
            InputError: when its record is missing or damaged.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        record = storage.read_record(
            self.folder, index, "the next start of training or evaluation generates it again, prepare() in a program"
        )
        n, (rows, cols) = len(self.intrinsics), self.world.grid.shape
        bits = (len(CLASSES) + 1) * rows * cols
        poses_at, labels_at = 4 * n, 4 * n + 64 * n
        images_at = labels_at + (bits + 7) // 8
        lengths = np.frombuffer(record, "<u4", n).tolist()
        poses = np.frombuffer(record, "<f4", 16 * n, poses_at).reshape(n, 4, 4).astype(np.float32)
        packed = np.frombuffer(record, np.uint8, images_at - labels_at, labels_at)
        labels = torch.from_numpy(np.unpackbits(packed, count=bits).view(bool).reshape(-1, rows, cols))
        images = np.empty((n, 3, *self.world.image_size), np.uint8)
        for decoded, length in zip(images, lengths, strict=True):
            image = Image.open(io.BytesIO(record[images_at : images_at + length]))
            decoded[:] = np.asarray(image).transpose(2, 0, 1)
            images_at += length
        valid = labels[-1:].expand(len(CLASSES), -1, -1).clone()
        return Sample(
            torch.from_numpy(images),
            self.intrinsics.clone(),
            torch.from_numpy(self._given_poses(index, poses)),
            Meta(f"{self.world.split}-{index:06d}", index),
            {SEGMENTATION: BEVTarget(labels[:-1], valid)},
        )

    def _given_poses(self, index: int, true: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the poses of the provided calibration."""
        if self.calibration == "nominal":
            return self.mounted.astype(np.float32)
        if self.calibration == "noisy":
            noisy = self.noise.draw(true.astype(np.float64), self.world.generator(index, NOISE))
            return noisy.astype(np.float32)
        return true


@checked
class SyntheticSource:
    """Provide procedural streets: curved roads, junctions, markings, crossings, vehicles, and roadside objects.

    Scene i of a split and seed is always the same one. It is rendered once and cached under ``root``, in a folder named
    after its parameters. Images always show the true cameras; the provided calibration may differ from them.

    Args:
        grid: cells of the target.
        rig: ``front`` (one camera) or ``surround`` (six).
        image_size: (H, W) of the images, in pixels.
        scenes: number of scenes of every split; a larger number keeps the cached ones.
        seed: of the world, ≥ 0.
        jitter: standard deviations ``yaw_deg``, ``pitch_deg``, ``roll_deg``, ``height_m`` of the cameras' true poses
            about their mountings, drawn for every scene and camera; 0 by default.
        calibration: ``exact`` provides the true poses, ``nominal`` the mountings, ``noisy`` true poses with an error.
        noise: standard deviations of that error, as ``jitter``.
        lane_label_m: minimal width of a lane marking in the target, metres, so that cells can represent it.
        root: folder of the caches, on this machine or, copied, in an object store.
        generation_workers: processes that generate; by default one for each core.

    Raises:
        InputError: when a value is invalid; the message says which would be valid.
    """

    classes = CLASSES

    def __init__(
        self,
        grid: BEVGrid | None = None,
        *,
        rig: Rig = "front",
        image_size: ImageSize = (128, 256),
        scenes: Scenes | None = None,
        seed: Seed = 0,
        jitter: Spread | None = None,
        calibration: Literal["exact", "nominal", "noisy"] = "exact",
        noise: Spread | None = None,
        lane_label_m: Annotated[float, Gt(0), Le(10)] = 0.75,
        root: DataRoot = "data/synthetic",
        generation_workers: Count | None = None,
    ) -> None:
        self.scenes = cast(dict[str, int], scenes or {"train": 3000, "val": 200, "test": 400})
        self.grid = BEVGrid((0, 32), (-16, 16), 0.5) if grid is None else grid
        self.rig = rig
        self.image_size = (image_size[0], image_size[1])
        self.camera_names = tuple(RIGS[rig])
        self.seed = seed
        self.jitter = jitter or Spread()
        self.calibration = calibration
        self.noise = noise or Spread(1.0, 0.5, 0.5, 0.05)
        self.lane_label_m = lane_label_m
        self.root = data_path(root)
        self.generation_workers = generation_workers or os.cpu_count() or 1
        _, mounted = nominal(rig, self.image_size)
        if not self.world("train").seen(mounted.astype(np.float32)).any():
            raise InputError(
                f"data.grid: no camera of the rig {rig!r} observes the ground of forward_m={self.grid.forward_m}, "
                f"left_m={self.grid.left_m}; choose bounds in front of a camera, or data.rig=surround"
            )

    def world(self, split: str) -> World:
        """Return the parameters of a split's content.

        Raises:
            InputError: when the split is unknown.
        """
        if split not in SPLITS:
            raise InputError(f"data: unknown split {split!r}; {suggest(split, SPLITS)}")
        return World(split, self.seed, self.rig, self.image_size, self.grid, self.jitter, self.lane_label_m)

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Generate the scenes of these splits that are not cached.

        Scenes in an object store must all be there; the first and the last one are looked for.

        Raises:
            InputError: when the cache cannot be written, the disk is full, or a scene is not in the object store.
        """
        for split in splits:
            world = self.world(split)
            folder = self.root / world.folder_name()
            if isinstance(folder, StorePath):
                self._check_uploaded(folder, self.scenes[split])
                continue
            storage.prepare(
                folder,
                world.meta(),
                self.scenes[split],
                partial(make_records, world),
                self.generation_workers,
            )

    def _check_uploaded(self, folder: StorePath, count: int) -> None:
        for path in (folder / storage.record_name(index) for index in (0, count - 1)):
            if not path.exists():
                raise InputError(
                    f"{path}: there is no such scene, and scenes are generated on a disk only; train with "
                    f"data.root=FOLDER, then copy the content of FOLDER to {self.root}"
                )

    def split(self, name: str) -> Dataset[Sample]:
        """Return the scenes of ``train``, ``val`` or ``test``.

        Raises:
            InputError: when the split is unknown.
        """
        world = self.world(name)
        folder = unchanging(self.root / world.folder_name())
        return SyntheticScenes(world, folder, self.scenes[name], self.calibration, self.noise)

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        """Return the batch, which has its targets."""
        return batch
