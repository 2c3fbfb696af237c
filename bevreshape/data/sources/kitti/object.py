"""Read KITTI's object benchmark (Geiger, Lenz and Urtasun 2012): cells of vehicles and people on the ground.

``training/`` holds ``image_2/000000.png``, ``calib/000000.txt`` and ``label_2/000000.txt``: one line for each 3D
box, in the frame of the rectified camera 0. Only objects that the left color camera observes are labelled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from annotated_types import Len
from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.config.options import DataRoot, ImageSize, checked
from bevreshape.data.batch import SEGMENTATION, BEVBatch, Sample
from bevreshape.data.image_io import ImageMode, OnCorruptImage
from bevreshape.data.sources.kitti.benchmark import KITTIFrames, LabelledKITTI, ego_from_velodyne_ground
from bevreshape.data.sources.kitti.source import Benchmark, KITTISource, RuleSplits
from bevreshape.data.targets import BEVTarget
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels
from bevreshape.geometry.rasterize import rasterize_boxes
from bevreshape.storage.files import read_text
from bevreshape.storage.store_path import DataPath

Kind = Literal["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]
TYPES = get_args(Kind)
UNLABELLED = "DontCare"

_NO_LABELS = "there is no such label file; copy label_2 from the benchmark, or list other frames in data.splits"


class Label(NamedTuple):
    """Hold one line of a label file."""

    kind: str
    window: tuple[float, float, float, float]
    """Left, top, right, bottom of the 2D box, in pixels of the image as stored."""
    height_m: float
    width_m: float
    length_m: float
    bottom_m: tuple[float, float, float]
    """Centre of the box's lower face in the rectified frame: x right, y down, z forward."""
    rotation_y: float
    """Radians about that frame's y axis; 0 with the length along x."""


def read_labels(path: DataPath) -> list[Label]:
    """Read a label file.

    Raises:
        InputError: when it is missing, or a line is not a type and 14 numbers.
    """
    lines = read_text(path, _NO_LABELS).splitlines()
    labels = []
    for number, line in enumerate(lines, start=1):
        kind, *words = line.split() or [""]
        if not kind:
            continue
        if kind not in (*TYPES, UNLABELLED):
            raise InputError(f"{path}: line {number} begins with {kind!r}, which is not a type; {suggest(kind, TYPES)}")
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != 14 or not all(math.isfinite(value) for value in values):
            raise InputError(
                f"{path}: line {number} has {len(words)} words after its type that are not the benchmark's 14 numbers; "
                "copy the file again"
            )
        _, _, _, left, top, right, bottom, height, width, length, x, y, z, rotation_y = values
        if kind != UNLABELLED and not min(height, width, length) > 0:
            raise InputError(
                f"{path}: line {number} is a {kind} of {height:g}×{width:g}×{length:g} m; its sides must be positive"
            )
        labels.append(Label(kind, (left, top, right, bottom), height, width, length, (x, y, z), rotation_y))
    return labels


def ego_box(label: Label, ego_from_rectified: Float[Tensor, "4 4"]) -> Float[Tensor, " 5"]:
    """Return (x, y, yaw, length, width) in metres and radians, for
    :func:`~bevreshape.geometry.rasterize.rasterize_boxes`.

    The box's heading, (cos rotation_y, 0, −sin rotation_y) in the rectified frame, is rotated into the ego frame and
    projected onto the ground plane. The camera's tilt of about a degree shortens it by less than 0.1 %, which is
    neglected.
    """
    x, y, _, _ = ego_from_rectified @ torch.tensor([*label.bottom_m, 1.0], dtype=torch.float64)
    heading = torch.tensor([math.cos(label.rotation_y), 0.0, -math.sin(label.rotation_y)], dtype=torch.float64)
    ahead, left, _ = ego_from_rectified[:3, :3] @ heading
    length, width = torch.tensor([label.length_m, label.width_m], dtype=torch.float64)
    return torch.stack([x, y, torch.atan2(left, ahead), length, width])


def ego_boxes(labels: Sequence[Label], ego_from_rectified: Float[Tensor, "4 4"]) -> Float[Tensor, "k 5"]:
    """Return :func:`ego_box` of every label; there may be none."""
    none = torch.zeros(0, 5, dtype=torch.float64)
    return torch.cat([none, *(ego_box(label, ego_from_rectified)[None] for label in labels)])


def behind_windows(labels: Sequence[Label], cameras: Cameras, grid: BEVGrid) -> Bool[Tensor, "R C"]:
    """Return the cells whose centre appears in the window of a ``DontCare`` label, where objects are not labelled.

    Args:
        labels: of one frame.
        cameras: the one camera, for the image as stored.
        grid: the cells.
    """
    pixels, seen = ground_pixels(cameras, grid)
    u, v = pixels[0, 0].unbind(-1)  # R C
    hidden = torch.zeros_like(seen[0, 0])
    for label in labels:
        if label.kind == UNLABELLED:
            left, top, right, bottom = label.window
            hidden |= (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
    return hidden & seen[0, 0]


def split_of(name: str) -> str:
    """Return the split of a frame: even numbers train, 1 modulo 4 validate, 3 modulo 4 test."""
    return ("train", "val", "train", "test")[int(name) % 4]


class LabelledObjects(LabelledKITTI):
    """Read frames with the classes of all cells.

    Args:
        frames: the images.
        grid: the cells.
        classes: for every class, its types.

    Raises:
        InputError: when a frame has no label file.
    """

    def __init__(self, frames: KITTIFrames, grid: BEVGrid, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__(frames)
        self._grid = grid
        self._classes = classes
        for name in frames.names:
            if not self._path(name).exists():
                raise InputError(f"{self._path(name)}: {_NO_LABELS}")

    def __getitem__(self, index: int) -> Sample:
        sample = self.frames[index]
        name = sample.meta.name
        labels = self.labels(name)
        ego_from_rectified = ego_from_velodyne_ground(self.frames.matrices(name))
        planes = [
            rasterize_boxes(
                ego_boxes([label for label in labels if label.kind in kinds], ego_from_rectified), self._grid
            )
            for kinds in self._classes.values()
        ]
        value = torch.stack([plane.any(0) for plane in planes])
        observed = ground_pixels(sample.cameras, self._grid)[1][0, 0]  # R C
        intrinsics, ego_from_cam = self.frames.camera(name)
        stored = Cameras(intrinsics[None, None], ego_from_cam[None, None], self.frames.size(name))
        valid = (observed & ~behind_windows(labels, stored, self._grid)).expand_as(value).clone()
        return replace(sample, targets={SEGMENTATION: BEVTarget(value, valid)})

    def check(self, name: str) -> None:
        super().check(name)
        self.labels(name)

    def labels(self, name: str) -> list[Label]:
        """Return the lines of a frame's label file."""
        return read_labels(self._path(name))

    def _path(self, name: str) -> DataPath:
        return self.frames.training / "label_2" / f"{name}.txt"


OBJECTS = Benchmark(
    pattern=r"\d{6}",
    example="000000",
    rule=split_of,
    rule_text="even numbers train, 1 modulo 4 validate, 3 modulo 4 test",
    ego_from_rectified=ego_from_velodyne_ground,
)
"""KITTI's object benchmark."""


@checked
class KITTIObjectSource(KITTISource):
    """Provide KITTI's object benchmark (a :class:`~bevreshape.data.batch.BEVSource`).

    The ego frame is the velodyne's, lowered onto the ground. A cell has a class if its centre is in a box of the class.
    It is valid if the network's image shows it and no ``DontCare`` window covers it. Types of no class are ground.

    Args:
        root: the folder with ``training/``.
        grid: the wanted cells.
        image_size: (H, W) of the network.
        classes: for every target class, its types of the benchmark.
        splits: see :class:`~bevreshape.data.sources.kitti.source.KITTISplits`; by the rule, even numbers train, 1
            modulo 4 validate, and 3 modulo 4 test. The benchmark shuffled its frames, so every split contains each
            drive. Lists that separate drives (such as the 3712 and 3769 frames of papers) are given as files.
        on_corrupt_image, image_mode: see :class:`~bevreshape.data.sources.kitti.benchmark.KITTIFrames`.

    Raises:
        InputError: when the folder is not the benchmark's, or a class names no type.
    """

    def __init__(
        self,
        root: DataRoot,
        *,
        grid: BEVGrid,
        image_size: ImageSize,
        classes: Annotated[Mapping[str, Annotated[Sequence[Kind], Len(1)]], Len(1)],
        splits: RuleSplits | None = None,
        on_corrupt_image: OnCorruptImage = "raise",
        image_mode: ImageMode = "rgb",
    ) -> None:
        self._kinds = dict(classes)
        super().__init__(
            OBJECTS, root, splits, grid=grid, image_size=image_size, classes=classes,
            on_corrupt_image=on_corrupt_image, image_mode=image_mode,
        )  # fmt: skip

    def labelled(self, split: str) -> LabelledObjects:
        return LabelledObjects(self.frames(split), self.grid, self._kinds)

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        """Return the batch, which has its targets."""
        return batch
