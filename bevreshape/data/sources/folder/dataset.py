"""Read calibrated images in a folder, frame by frame, at the network's size."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bevreshape.data.batch import Meta, Sample
from bevreshape.data.image_io import (
    SUFFIXES,
    read_image,
    read_image_size,
    read_or_mask,
    resize_and_crop,
    resize_and_crop_intrinsics,
)
from bevreshape.data.sources.folder.calibration import Calibration, read_calibration
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.errors import InputError, suggest
from bevreshape.storage.files import visible
from bevreshape.storage.store_path import DataPath


def camera_folders(images: DataPath, calibration: Calibration) -> list[DataPath]:
    """Return the folder of every camera's files: ``images`` for one camera, a folder named like each for several.

    Raises:
        InputError: when it does not exist.
    """
    if not images.exists():
        raise InputError(f"{images}: there is no such folder; data/README.md describes a camera folder")
    if not calibration.camera_subfolders:
        return [images]
    folders = [images / camera for camera in calibration.cameras]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: there is no such folder, but calibration.json lists camera {folder.name!r}; several "
                "cameras have one folder each, of the camera's name"
            )
    return folders


def files_by_frame(folder: DataPath) -> dict[str, DataPath]:
    """Return the images of a folder, without hidden files, or one image, by the name of their frame.

    Raises:
        InputError: when there is no such folder, or a frame has two images.
    """
    files: dict[str, DataPath] = {}
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder; data/README.md describes a camera folder")
    for path in visible(folder) if folder.is_dir() else [folder]:
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in files:
            raise InputError(f"{path}: frame {path.stem!r} has a second image, {files[path.stem].name}; remove one")
        files[path.stem] = path
    return files


def check_size(path: DataPath, found: tuple[int, int], size: tuple[int, int], calibration: DataPath) -> None:
    """Refuse an image of another size (H, W) than ``calibration`` states."""
    height, width = found
    if found != size:
        raise InputError(
            f"{path}: it is {height}×{width} (height×width) but {calibration} is for {size[0]}×{size[1]}; resize it, "
            "or state the intrinsics of its size"
        )


def _plain_name(frame: str) -> str:
    """Return a frame's name without its suffix, leading zeros and capitals."""
    path = Path(frame)
    bare = path.stem if path.suffix.lower() in SUFFIXES else frame
    return bare.lstrip("0").casefold()


def make_sample(images: Sequence[Tensor | None], rig: Rig, image_size: tuple[int, int], meta: Meta) -> Sample:
    """Return the sample of a rig's images (3, H, W), at the network's size; a missing image is black and masked.

    An image may have been decoded at less than its stored size, where it has no distortion.
    """
    resized, intrinsics = [], []
    for number, size in enumerate(rig.sizes):
        found = images[number]
        image = torch.zeros(3, *size, dtype=torch.uint8) if found is None else found
        image, _ = resize_and_crop(image, rig.intrinsics[number], image_size, rig.distortions[number])
        resized.append(image)  # the intrinsics below are of the stored size, whatever was decoded
        intrinsics.append(resize_and_crop_intrinsics(rig.intrinsics[number], size, image_size))
    mask = torch.tensor([image is not None for image in images])
    return Sample(
        torch.stack(resized), torch.stack(intrinsics).float(), rig.ego_from_cam.float(), meta, camera_mask=mask
    )


class CameraFolderDataset(Dataset[Sample]):
    """Read calibrated images without labels, one sample a frame.

    Args:
        images: folder of ``<frame>.jpg|png`` for one camera, of ``<camera>/<frame>.jpg|png`` for several; or one
            image of one camera.
        calibration: of these images.
        image_size: (H, W) of the network.
        names: the frames and their order; by default all of them, sorted.
        allow_missing: whether a frame may lack images of some cameras; they are then black and masked.
        on_corrupt_image: whether an image that cannot be read is refused (``raise``), or is named, black, and masked
            (``mask``), see :func:`~bevreshape.data.image_io.read_or_mask`.
        image_mode: see :func:`~bevreshape.data.image_io.read_image`.

    Raises:
        InputError: when there is no image, a frame is unknown, or a camera's image is missing.
    """

    def __init__(
        self,
        images: DataPath,
        calibration: Calibration,
        image_size: tuple[int, int],
        *,
        names: Sequence[str] | None = None,
        allow_missing: bool = False,
        on_corrupt_image: str | None = None,
        image_mode: str = "rgb",
    ) -> None:
        self.calibration = calibration
        self.image_size = (image_size[0], image_size[1])
        self.image_mode = image_mode
        self._on_corrupt_image = on_corrupt_image
        self._files = [files_by_frame(folder) for folder in camera_folders(images, calibration)]
        known = set().union(*self._files)
        self.names = tuple(sorted(known) if names is None else names)
        if not self.names:
            raise InputError(f"{images}: there is no image here; put {' or '.join(SUFFIXES)} files into it")
        self._check_calibrated(known)
        for name in self.names:
            if name not in known:
                raise InputError(f"{images}: there is no image of frame {name!r}; {suggest(name, known)}")
            for camera, files in zip(calibration.cameras, self._files, strict=True):
                if name not in files and not allow_missing:
                    raise InputError(
                        f"{images}: frame {name!r} has no image of camera {camera!r}; add it, or set "
                        "allow_missing=true to mask that camera"
                    )

    def _check_calibrated(self, known: Collection[str]) -> None:
        """Refuse a calibration of single frames whose images have slightly different names."""
        own = self.calibration.frames
        meant = {_plain_name(name): name for name in known if name not in own}
        for name in own:
            other = meant.get(_plain_name(name)) if name not in known else None
            if other is not None:
                raise InputError(
                    f"{self.calibration.path}: frames has {name!r}, which has no image, but {other!r} has one; "
                    "a frame has the name of its images, without the suffix"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        rig = self.calibration.of(name)
        images = [
            self._read(index, number, size, distorted=rig.distortions[number] is not None)
            for number, size in enumerate(rig.sizes)
        ]
        return make_sample(images, rig, self.image_size, Meta(name, index))

    def _read(self, index: int, camera: int, size: tuple[int, int], *, distorted: bool) -> Tensor | None:
        """Return an image, at full size if it is to be undistorted; ``None`` where it is missing, or masked since it is
        unreadable."""
        path = self.image_path(index, camera)
        if path is None:
            return None

        def read() -> Tensor:
            check_size(path, read_image_size(path), size, self.calibration.path)
            return read_image(path, None if distorted else self.image_size, self.image_mode)

        return read_or_mask(read, self._on_corrupt_image)

    def stored(self, index: int, camera: int) -> Tensor | None:
        """Return an image as it is stored, (3, H, W); ``None`` where it is missing or masked."""
        return self._read(index, camera, self.calibration.of(self.names[index]).sizes[camera], distorted=True)

    def image_path(self, index: int, camera: int) -> DataPath | None:
        """Return the file of a frame's camera, ``None`` where it is missing."""
        return self._files[camera].get(self.names[index])


def read_folder_calibration(path: DataPath, calibration: DataPath | None, cameras: Sequence[str]) -> Calibration:
    """Read the calibration of images or videos.

    Args:
        path: of a folder, an image or a video.
        calibration: a ``calibration.json``; a camera folder contains its own.
        cameras: of a model; further cameras of the calibration are left out.

    Raises:
        InputError: when there is no calibration.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such folder, image or video")
    if calibration is None and not (path / "calibration.json").is_file():
        raise InputError(f"{path}: these images have no calibration.json; pass one with calibration=FILE")
    found = read_calibration(calibration or path / "calibration.json")
    return found.only(cameras) if cameras and set(cameras) < set(found.cameras) else found


def images_folder(path: DataPath) -> DataPath:
    """Return where the images of a camera folder are; any other folder, and an image, is returned as it is."""
    return path / "images" if (path / "images").is_dir() else path


def open_frames(
    path: DataPath,
    image_size: tuple[int, int],
    *,
    calibration: DataPath | None = None,
    image_mode: str = "rgb",
    cameras: Sequence[str] = (),
) -> CameraFolderDataset:
    """Open the images of a camera folder, of a plain folder of images, or one image.

    Args:
        path: any of them.
        image_size: (H, W) of the network.
        calibration: a ``calibration.json``; a camera folder contains its own.
        image_mode: see :class:`CameraFolderDataset`.
        cameras: of a model; further cameras of the calibration are not read.

    Raises:
        InputError: when there is no image, or no calibration for it.
    """
    found = read_folder_calibration(path, calibration, cameras)
    return CameraFolderDataset(images_folder(path), found, image_size, allow_missing=True, image_mode=image_mode)
