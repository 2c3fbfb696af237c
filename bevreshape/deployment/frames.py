"""Open what ``predict`` reads: images or videos, in batches, with the images as stored."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import Subset

from bevreshape.bev_spec import BEVSpec
from bevreshape.data.batch import BEVBatch, collate
from bevreshape.data.image_io import SUFFIXES
from bevreshape.data.sources.folder.calibration import Calibration
from bevreshape.data.sources.folder.dataset import CameraFolderDataset, images_folder, read_folder_calibration
from bevreshape.data.sources.folder.videos import CameraVideos, find_videos
from bevreshape.data.video import VIDEO_SUFFIXES
from bevreshape.errors import InputError
from bevreshape.training.stopping import Loader

Stored = Callable[[int], Tensor | None]
"""Return a camera's image (3, H, W) as stored, ``None`` where it is missing."""

IMAGE_RATE = Fraction(10)
"""Images per second, in a video of a folder of them."""


@runtime_checkable
class Frames(Protocol):
    """Frames of a calibrated rig.

    Attributes:
        name: of the drive.
        calibration: of the images.
        of_images: whether each frame is a file of its own.
        folders: of these files.
    """

    name: str
    calibration: Calibration
    of_images: bool
    folders: frozenset[Path]

    @property
    def count(self) -> int | None:
        """Return their number, ``None`` if it is unknown."""

    @property
    def rate(self) -> Fraction:
        """Return the frames per second."""

    def batches(self, batch_size: int) -> Iterator[tuple[BEVBatch, list[Stored]]]:
        """Yield batches whose ``meta`` has timestamps, and the stored images of each of their samples."""


class ImageFrames:
    """Read every n-th frame of a folder of images.

    Args:
        name: of the folder.
        images: all of them.
        every: n.
        rate: of all images, per second.
        num_workers: processes that read.
    """

    of_images = True

    def __init__(
        self,
        name: str,
        images: CameraFolderDataset,
        *,
        every: int = 1,
        rate: Fraction = IMAGE_RATE,
        num_workers: int = 0,
    ) -> None:
        self.name, self.calibration = name, images.calibration
        first = [images.image_path(0, camera) for camera in range(len(images.calibration.cameras))]
        self.folders = frozenset(path.parent.resolve() for path in first if isinstance(path, Path))
        self._images, self._rate, self._every, self._num_workers = images, rate, every, num_workers

    @property
    def count(self) -> int:
        """Return the number of every n-th frames."""
        return len(range(0, len(self._images), self._every))

    @property
    def rate(self) -> Fraction:
        """Return the number of every n-th frames per second."""
        return self._rate / self._every

    def batches(self, batch_size: int) -> Iterator[tuple[BEVBatch, list[Stored]]]:
        """Yield batches, and functions that read the stored images."""
        chosen = Subset(self._images, range(0, len(self._images), self._every))
        for batch in Loader(chosen, batch_size, num_workers=self._num_workers, collate_fn=collate):
            yield _timed(batch, self._rate), [partial(self._images.stored, meta.index) for meta in batch.meta]


class VideoFrames:
    """Read the frames of videos; they are decoded in this process, one batch at a time.

    Args:
        name: of the drive.
        videos: of its cameras.
        rate: frames per second; by default the frames keep their times.
    """

    of_images = False
    folders: frozenset[Path] = frozenset()

    def __init__(self, name: str, videos: CameraVideos, rate: Fraction | None = None) -> None:
        self.name, self.calibration = name, videos.calibration
        self._videos, self._rate = videos, rate

    @property
    def count(self) -> int | None:
        """Return the number of frames, as far as the files tell."""
        return self._videos.count

    @property
    def rate(self) -> Fraction:
        """Return the mean number of frames per second."""
        return (self._rate or self._videos.rate) / self._videos.every

    def batches(self, batch_size: int) -> Iterator[tuple[BEVBatch, list[Stored]]]:
        """Yield batches, and functions that return the images as decoded."""
        read = iter(self._videos)
        while found := list(islice(read, batch_size)):
            batch = collate([sample for sample, _ in found])
            yield (
                batch if self._rate is None else _timed(batch, self._rate),
                [images.__getitem__ for _, images in found],
            )


def _timed(batch: BEVBatch, rate: Fraction) -> BEVBatch:
    """Return the batch with the times of frames that follow each other at a constant rate."""
    return replace(batch, meta=[replace(meta, timestamp=float(meta.index / rate)) for meta in batch.meta])


def open_input(
    path: Path,
    spec: BEVSpec,
    *,
    calibration: Path | None = None,
    every: int = 1,
    rate: Fraction | None = None,
    num_workers: int = 0,
) -> Frames:
    """Open a video, a folder of videos named like their cameras, a folder of images, or one image.

    Args:
        path: any of them.
        spec: of the model.
        calibration: a ``calibration.json``; a camera folder contains its own.
        every: read every n-th frame.
        rate: frames per second; by default those of a video, and ``IMAGE_RATE`` of images.
        num_workers: processes that read images.

    Raises:
        InputError: when it is none of these, or there is no calibration for it.
    """
    found = read_folder_calibration(path, calibration, spec.camera_names)
    if path.is_file() and path.suffix.lower() not in (*SUFFIXES, *VIDEO_SUFFIXES):
        raise InputError(
            f"{path}: this is no image ({', '.join(SUFFIXES)}) and no video ({', '.join(VIDEO_SUFFIXES)}); convert it"
        )
    name = path.stem if path.is_file() else path.resolve().name
    if files := find_videos(path, found):
        videos = CameraVideos(files, found, spec.image_size, name=name, image_mode=spec.image_mode, every=every)
        return VideoFrames(name, videos, rate)
    images = CameraFolderDataset(
        images_folder(path), found, spec.image_size, allow_missing=True, image_mode=spec.image_mode
    )
    return ImageFrames(name, images, every=every, rate=rate or IMAGE_RATE, num_workers=num_workers)
