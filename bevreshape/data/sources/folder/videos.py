"""Read calibrated videos, one of each camera, frame by frame, at the network's size."""

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bevreshape.data.batch import Meta, Sample
from bevreshape.data.image_io import SUFFIXES
from bevreshape.data.sources.folder.calibration import Calibration
from bevreshape.data.sources.folder.dataset import check_size, make_sample
from bevreshape.data.video import VIDEO_SUFFIXES, VideoFrame, VideoReader
from bevreshape.errors import InputError
from bevreshape.storage.files import visible

log = logging.getLogger(__name__)


def find_videos(path: Path, calibration: Calibration) -> list[Path]:
    """Return the video of every camera: a file of one camera, or of a folder the files named like each.

    The list is empty where ``path`` is an image or a folder of images.

    Raises:
        InputError: when a camera has no video or two, or no video is named like a camera.
    """
    cameras = calibration.cameras
    wanted = ", ".join(f"{camera}.mp4" for camera in cameras)
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            return []
        if len(cameras) > 1:
            raise InputError(
                f"{path}: a video shows one camera, but {calibration.path} has {len(cameras)}; pass a folder with "
                f"{wanted}"
            )
        return [path]
    files = [file for file in visible(path) if file.suffix.lower() in VIDEO_SUFFIXES]
    by_camera = {camera: [file for file in files if file.stem == camera] for camera in cameras}
    if not any(by_camera.values()):
        if files and not _holds_images(path, cameras):
            raise InputError(
                f"{path}: {files[0].name} is named like no camera of {calibration.path}; rename it, the videos of a "
                f"folder must be {wanted}, or pass the file itself"
            )
        return []
    for camera, found in by_camera.items():
        if not found:
            raise InputError(f"{path}: there is no video of camera {camera!r}; a folder of videos must hold {wanted}")
        if len(found) > 1:
            raise InputError(f"{path}: camera {camera!r} has two videos, {found[0].name} and {found[1].name}; move one")
    return [found[0] for found in by_camera.values()]


def _holds_images(path: Path, cameras: Sequence[str]) -> bool:
    return any((path / name).is_dir() for name in ("images", *cameras)) or any(
        file.suffix.lower() in SUFFIXES for file in visible(path)
    )


class CameraVideos:
    """Iterate over frames of calibrated videos, one sample a frame, named ``<name>_<number>``.

    Frames of the same number belong together. The iteration ends with the shortest video.

    Args:
        files: a video of every camera of the calibration.
        calibration: of their frames, upright.
        image_size: (H, W) of the network.
        name: of the drive.
        image_mode: see :func:`~bevreshape.data.image_io.read_image`.
        every: read every n-th frame.

    Raises:
        InputError: when a file is no video, or PyAV is not installed.
    """

    def __init__(
        self,
        files: Sequence[Path],
        calibration: Calibration,
        image_size: tuple[int, int],
        *,
        name: str,
        image_mode: str = "rgb",
        every: int = 1,
    ) -> None:
        self.calibration = calibration
        self._readers = [VideoReader(file) for file in files]
        self._image_size, self._image_mode = image_size, image_mode
        self.every, self._name = every, name

    @property
    def rate(self) -> Fraction:
        """Return the mean number of frames per second."""
        return self._readers[0].rate

    @property
    def count(self) -> int | None:
        """Return the number of every n-th frames, as far as the files tell."""
        counts = [reader.count for reader in self._readers if reader.count is not None]
        return -(-min(counts) // self.every) if counts else None

    def __iter__(self) -> Iterator[tuple[Sample, list[Tensor]]]:
        """Yield samples and their images (3, H, W) as stored, upright.

        Raises:
            InputError: when a video cannot be decoded, an image has another size than the calibration, or frames of the
                same number have different times.
        """
        streams = [reader.frames(self.every) for reader in self._readers]
        while True:
            frames = [next(stream, None) for stream in streams]
            found = [frame for frame in frames if frame is not None]
            if len(found) < len(frames):
                if found:
                    first = self._readers[frames.index(None)].path
                    log.warning(
                        "%s ends at frame %d, before the other cameras; theirs are left out", first, found[0].number
                    )
                return
            self._check_times(found)
            name = f"{self._name}_{found[0].number:06d}"
            rig = self.calibration.of(name)
            images = [self._image(number, frame, rig.sizes[number]) for number, frame in enumerate(found)]
            meta = Meta(name, found[0].number, timestamp=found[0].seconds)
            yield make_sample(images, rig, self._image_size, meta), images

    def _check_times(self, frames: Sequence[VideoFrame]) -> None:
        for reader, frame in zip(self._readers, frames, strict=True):
            if abs(frame.seconds - frames[0].seconds) * self._readers[0].rate > 0.5:
                raise InputError(
                    f"{reader.path}: its frame {frame.number} is {frame.seconds:.3f} s after the first one, in "
                    f"{self._readers[0].path} {frames[0].seconds:.3f} s; a rig's videos must have the same frames, "
                    "so export them at one frame rate"
                )

    def _image(self, camera: int, frame: VideoFrame, size: tuple[int, int]) -> Tensor:
        path = self._readers[camera].path
        check_size(path, (frame.image.shape[0], frame.image.shape[1]), size, self.calibration.path)
        if self._image_mode == "grey":
            luma = torch.from_numpy(np.array(Image.fromarray(frame.image).convert("L")))
            return luma.expand(3, -1, -1).contiguous()
        if frame.grey:
            raise InputError(f"{path}: the video is grey, not RGB; train with data.image_mode=grey, or convert it")
        return torch.from_numpy(frame.image).permute(2, 0, 1).contiguous()
