"""Use a camera folder as a data source: calibrated images with image labels, BEV labels, or 3D boxes.

``data/README.md`` describes the folder. Images come at the network's size; label images keep theirs, so that
a small network does not degrade the ground truth. They are projected onto the ground plane on the device, in batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NotRequired

import torch
from annotated_types import Len
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import TypedDict

from bevreshape.config.options import DataRoot, ImageSize, LocalPath, checked, read_value
from bevreshape.data.batch import SEGMENTATION, SPLITS, BEVBatch, Sample
from bevreshape.data.image_io import ImageMode, OnCorruptImage
from bevreshape.data.names import check_classes
from bevreshape.data.sources.folder.calibration import Calibration, read_calibration
from bevreshape.data.sources.folder.dataset import CameraFolderDataset
from bevreshape.data.sources.folder.labels import BEVLabels, BoxLabels, ImageLabels
from bevreshape.data.targets import Annotation, BEVTarget
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, ground_pixels
from bevreshape.storage.files import read_text
from bevreshape.storage.object_store import data_path
from bevreshape.storage.store_path import DataPath


class ClassSpec(TypedDict):
    """Describe the source of the target of one class; ``source`` selects among several described ones."""

    source: Literal["ipm", "bev", "boxes"]
    labels: NotRequired[Sequence[str]]
    """For ``ipm``: names of the image labels of this class."""
    bev: NotRequired[Sequence[str]]
    """For ``bev``: names of the BEV labels of this class."""
    boxes: NotRequired[Sequence[str]]
    """For ``boxes``: categories of the 3D boxes of this class."""


class Splits(TypedDict, total=False):
    """Name the frames of every split: a list, or a file with one name a line, relative to the folder."""

    train: str | Sequence[str]
    val: str | Sequence[str]
    test: str | Sequence[str]


def all_classes(calibration: Calibration) -> dict[str, ClassSpec]:
    """Return every name in ``calibration.json`` as a class.

    Raises:
        InputError: when it has no name.
    """
    above = tuple(calibration.bev.members) if calibration.bev else ()
    imaged = tuple(calibration.labels.members) if calibration.labels else ()
    classes: dict[str, ClassSpec] = {name: {"source": "bev", "bev": [name]} for name in above}
    classes |= {name: {"source": "boxes", "boxes": [name]} for name in calibration.boxes or () if name not in classes}
    classes |= {name: {"source": "ipm", "labels": [name]} for name in imaged if name not in classes}
    if not classes:
        raise InputError(
            f"{calibration.path}: it names no labels, no bev labels and no boxes, so there is nothing to train on; add "
            "a section"
        )
    return classes


def read_split(path: DataPath) -> list[str]:
    """Read frame names, one a line.

    Raises:
        InputError: when the file is missing or empty, or a frame is listed twice.
    """
    text = read_text(path, "there is no such split; write one frame name a line, or change data.splits")
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: the split is empty; write one frame name a line")
    return _each_once(names, str(path))


def split_names(root: DataPath, split: str, given: str | Sequence[str]) -> list[str]:
    """Return the frames of a split in ``data.splits``: a list of names, or a file of names, one a line, relative to
    ``root``.

    Raises:
        InputError: as :func:`read_split`.
    """
    where = f"data.splits.{split}"
    if isinstance(given, str):
        local = Path(read_value(where, LocalPath, given))
        return read_split(local if local.is_absolute() else root / str(local))
    if not given:
        raise InputError(f"{where}={given!r} is empty; list frames, or name a file of them")
    return _each_once(list(given), where)


def _each_once(names: list[str], where: str) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: frame {twice!r} is listed twice and would count twice; remove one")
    return names


def _by_source(classes: Mapping[str, ClassSpec], source: str) -> dict[str, Sequence[str]]:
    key = {"ipm": "labels", "bev": "bev", "boxes": "boxes"}[source]
    chosen: dict[str, Sequence[str]] = {}
    for name, spec in classes.items():
        if spec["source"] == source:
            if not spec.get(key):
                raise InputError(f"class {name!r}: its source is {source!r} but {key!r} is empty; list its names there")
            chosen[name] = spec[key]  # type: ignore[literal-required]
    return chosen


@dataclass(frozen=True, eq=False)
class FolderLabels(Annotation):
    """Hold the labels of a camera folder; ``None`` for a kind that no class uses.

    Attributes:
        images: (b, n, H, W) uint8, label images at their own size.
        intrinsics: (b, n, 3, 3), of these.
        bev: (b, q, R, C) uint8, of :class:`~bevreshape.data.sources.folder.labels.BEVLabels`.
        boxes: (b, k, R, C) bool, the classes from 3D boxes.
    """

    images: Tensor | None
    intrinsics: Tensor | None
    bev: Tensor | None
    boxes: Tensor | None


class LabelledFrames(Dataset[Sample]):
    """Read frames with :class:`FolderLabels`."""

    def __init__(
        self, frames: CameraFolderDataset, images: ImageLabels | None, bev: BEVLabels | None, boxes: BoxLabels | None
    ) -> None:
        self.frames = frames
        self._images = images
        self._bev = bev
        self._boxes = boxes

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        sample = self.frames[index]
        name = sample.meta.name
        images, bev, boxes = self._images, self._bev, self._boxes
        labels = FolderLabels(
            images=None if images is None else images.read(name, sample.full_mask),
            intrinsics=None if images is None else self.frames.calibration.of(name).intrinsics.float(),
            bev=None if bev is None else bev.read(name),
            boxes=None if boxes is None else boxes.read(name),
        )
        return replace(sample, labels=labels)


@checked
class FolderSource:
    """Provide a camera folder as a source of labelled rigs (a :class:`~bevreshape.data.batch.BEVSource`).

    Args:
        root: the folder, with ``images/``, ``calibration.json``, and ``labels/``, ``bev/`` or ``boxes/``.
        grid: the wanted cells.
        image_size: (H, W) of the network.
        classes: for every target class, its source; by default all names of the calibration, where BEV labels precede
            boxes of the same name, and boxes precede image labels.
        splits: for ``train``, ``val`` and ``test``, see :func:`split_names`.
        allow_missing: see :class:`CameraFolderDataset`.
        cameras: which of the calibration's, in order; by default all.
        image_mode: ``rgb``, or ``grey`` for one channel, repeated; colors become their luma.
        on_corrupt_image: likewise, one of :data:`~bevreshape.data.image_io.OnCorruptImage`; unreadable labels are
            always refused.

    Raises:
        InputError: when folder, calibration, classes and grid do not match.
    """

    def __init__(
        self,
        root: DataRoot,
        *,
        grid: BEVGrid,
        image_size: ImageSize,
        classes: Annotated[Mapping[str, ClassSpec], Len(1)] | None = None,
        splits: Splits,
        allow_missing: bool = False,
        on_corrupt_image: OnCorruptImage = "raise",
        cameras: Sequence[str] | None = None,
        image_mode: ImageMode = "rgb",
    ) -> None:
        self.root = data_path(root)
        if not self.root.is_dir():
            raise InputError(
                f"{self.root}: there is no such folder; convert your data first (data/README.md), or set root"
            )
        self.grid = grid
        self.image_size = (image_size[0], image_size[1])
        self.image_mode = image_mode
        self.calibration = read_calibration(self.root / "calibration.json")
        if cameras is not None:
            self.calibration = self.calibration.only(cameras)
        where = (
            "data.classes" if classes is not None else f"{self.calibration.path}, from which data.classes may choose"
        )
        classes = all_classes(self.calibration) if classes is None else classes
        self.classes = check_classes(classes, where)
        self.calibration.check_views(grid)
        self.camera_names = self.calibration.cameras
        ipm, bev, boxes = (_by_source(classes, source) for source in ("ipm", "bev", "boxes"))
        self._images = ImageLabels(self.root / "labels", self.calibration, ipm) if ipm else None
        self._bev = BEVLabels(self.root / "bev", self.calibration, bev, grid) if bev else None
        self._boxes = BoxLabels(self.root / "boxes", self.calibration, boxes, grid) if boxes else None
        self._splits: dict[str, str | Sequence[str]] = dict(splits)  # type: ignore[arg-type]
        self._allow_missing = allow_missing
        self._on_corrupt_image = on_corrupt_image

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Read a frame of every split, so that a general fault is reported before the training starts."""
        for name in splits:
            self.split(name)[0]

    def split(self, name: str) -> Dataset[Sample]:
        """Return the frames of ``train``, ``val`` or ``test``.

        Raises:
            InputError: when the split or a frame of it does not exist.
        """
        if name not in self._splits:
            raise InputError(f"{self.root}: there is no split {name!r}; {suggest(name, self._splits)}")
        frames = CameraFolderDataset(
            self.root / "images",
            self.calibration,
            self.image_size,
            names=split_names(self.root, name, self._splits[name]),
            allow_missing=self._allow_missing,
            on_corrupt_image=self._on_corrupt_image,
            image_mode=self.image_mode,
        )
        return LabelledFrames(frames, self._images, self._bev, self._boxes)

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        """Make the classes of all cells, valid where a camera observes them; the labels are dropped."""
        labels, cameras = batch.labels, batch.cameras
        assert isinstance(labels, FolderLabels)
        planes: dict[str, tuple[Bool[Tensor, "b R C"], Bool[Tensor, "b R C"]]] = {}
        if self._images is not None and labels.images is not None and labels.intrinsics is not None:
            size = (labels.images.shape[-2], labels.images.shape[-1])
            stored = replace(cameras, intrinsics=labels.intrinsics, image_size=size)
            planes |= self._images.to_bev(labels.images, stored, self.grid)
        if self._bev is not None and labels.bev is not None:
            planes |= self._bev.to_bev(labels.bev)
        if self._boxes is not None and labels.boxes is not None:
            planes |= self._boxes.to_bev(labels.boxes)
        observed = ground_pixels(cameras, self.grid)[1].any(1)  # b R C
        value, known = (torch.stack([planes[name][part] for name in self.classes], dim=1) for part in (0, 1))
        return replace(batch, targets={SEGMENTATION: BEVTarget(value, known & observed.unsqueeze(1))}, labels=None)
