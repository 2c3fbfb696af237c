"""Read frames of KITTI's benchmarks as unpacked: ``training/`` with ``image_2``, ``calib`` and labels.

The camera is the left color one. Its P2 = K · [I | t] gives the intrinsics K and, from the fourth column, its
position −t in the frame of the rectified camera 0. ``P2 · R0_rect · Tr_velo_to_cam`` projects the velodyne's points
and ``P2 · R0_rect · Tr_cam_to_road⁻¹`` the road's (the readme files of the development kits).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from bevreshape.data.batch import Meta, Sample
from bevreshape.data.image_io import read_image, read_image_size, read_or_mask, resize_and_crop
from bevreshape.errors import InputError
from bevreshape.geometry import check_calibration
from bevreshape.storage.files import read_text
from bevreshape.storage.store_path import DataPath

VELODYNE_HEIGHT_M = 1.73
"""Height of the velodyne above the ground, from KITTI's drawing of its sensors."""


_NO_CALIBRATION = "there is no such calibration; copy it from the benchmark, or leave the frame out"


class Matrices(dict[str, Tensor]):
    """Map names of a calibration file to matrices, each (4, 4) float64; a missing one raises ``InputError``."""

    def __init__(self, path: DataPath, matrices: Mapping[str, Tensor]) -> None:
        super().__init__(matrices)
        self.path = path

    def __missing__(self, name: str) -> Tensor:
        raise InputError(
            f"{self.path}: there is no {name}, only {', '.join(self) or 'nothing'}; copy the file from the benchmark "
            "again"
        )


def read_matrices(path: DataPath) -> Matrices:
    """Read a calibration file, lines of a name, a colon, and the 9 or 12 numbers of a (3, 3) or (3, 4) matrix.

    Raises:
        InputError: when it is missing or unreadable, or a line does not have 9 or 12 numbers.
    """
    matrices = {}
    for line in read_text(path, _NO_CALIBRATION).splitlines():
        name, _, rest = line.partition(":")
        if not rest.strip():
            continue
        try:
            numbers = [float(word) for word in rest.split()]
        except ValueError:
            numbers = []
        if len(numbers) not in (9, 12) or not all(map(math.isfinite, numbers)):
            raise InputError(
                f"{path}: {name} is {rest.strip()[:60]!r}, not the 9 or 12 finite numbers of a matrix; copy the file "
                "again"
            )
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, : len(numbers) // 3] = torch.tensor(numbers, dtype=torch.float64).view(3, -1)
        matrices[name] = matrix
    return Matrices(path, matrices)


def ego_from_velodyne_ground(matrices: Matrices) -> Float[Tensor, "4 4"]:
    """Return ``ego_from_rectified``, metres, of the ego frame below the velodyne, on the ground and parallel to it."""
    ego_from_velodyne = torch.eye(4, dtype=torch.float64)
    ego_from_velodyne[2, 3] = VELODYNE_HEIGHT_M
    return ego_from_velodyne @ _inverse(
        matrices["R0_rect"] @ matrices["Tr_velo_to_cam"], matrices.path, "Tr_velo_to_cam"
    )


def ego_from_road_plane(matrices: Matrices) -> Float[Tensor, "4 4"]:
    """Return ``ego_from_rectified``, metres, of the ego frame with z = 0 on the frame's fitted road plane.

    The benchmark's road frame is x right, y down, z forward, with y = 0 on the road.
    """
    ego_from_road = torch.tensor([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return ego_from_road @ matrices["Tr_cam_to_road"] @ _inverse(matrices["R0_rect"], matrices.path, "R0_rect")


def left_camera(
    matrices: Matrices, ego_from_rectified: Float[Tensor, "4 4"]
) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "4 4"]]:
    """Return intrinsics and ``ego_from_cam`` of the left color camera."""
    projection = matrices["P2"]
    intrinsics = projection[:3, :3]
    rectified_from_cam = torch.eye(4, dtype=torch.float64)
    rectified_from_cam[:3, 3] = -_inverse(intrinsics, matrices.path, "P2") @ projection[:3, 3]
    return intrinsics, ego_from_rectified @ rectified_from_cam


def _inverse(matrix: Tensor, path: DataPath, name: str) -> Tensor:
    inverse, failed = torch.linalg.inv_ex(matrix)
    if failed:
        raise InputError(f"{path}: {name} is singular; copy the file from the benchmark again")
    return inverse


class KITTIFrames(Dataset[Sample]):
    """Read calibrated images without labels, one sample a frame; images may differ in size.

    Args:
        training: the folder with ``image_2`` and ``calib``.
        names: of the frames.
        image_size: (H, W) of the network.
        ego_from_rectified: returns the ego frame from a frame's matrices.
        image_mode: see :class:`~bevreshape.data.sources.folder.dataset.CameraFolderDataset`.
        on_corrupt_image: likewise; the header of a masked image must still hold its size.
    """

    def __init__(
        self,
        training: DataPath,
        names: Sequence[str],
        image_size: tuple[int, int],
        ego_from_rectified: Callable[[Matrices], Tensor],
        *,
        on_corrupt_image: str | None = None,
        image_mode: str = "rgb",
    ) -> None:
        self.training = training
        self.names = tuple(names)
        self.image_size = image_size
        self._ego_from_rectified = ego_from_rectified
        self._on_corrupt_image = on_corrupt_image
        self._image_mode = image_mode

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        intrinsics, ego_from_cam = self.camera(name)
        found = read_or_mask(
            lambda: read_image(self.image_path(name), image_mode=self._image_mode), self._on_corrupt_image
        )
        image = torch.zeros(3, *self.size(name), dtype=torch.uint8) if found is None else found
        image, fitted = resize_and_crop(image, intrinsics, self.image_size)
        return Sample(
            image[None],
            fitted[None].float(),
            ego_from_cam[None].float(),
            Meta(name, index),
            camera_mask=torch.tensor([found is not None]),
        )

    def image_path(self, name: str) -> DataPath:
        """Return the image file of a frame."""
        return self.training / "image_2" / f"{name}.png"

    def size(self, name: str) -> tuple[int, int]:
        """Return (H, W) of a frame's image as stored."""
        return read_image_size(self.image_path(name))

    def matrices(self, name: str) -> Matrices:
        """Return the matrices of a frame's calibration file."""
        return read_matrices(self.training / "calib" / f"{name}.txt")

    def camera(self, name: str) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "4 4"]]:
        """Return intrinsics, for the image as stored, and ``ego_from_cam`` of a frame, in float64.

        Raises:
            InputError: when the calibration is missing, incomplete, or not of this image.
        """
        matrices = self.matrices(name)
        intrinsics, ego_from_cam = left_camera(matrices, self._ego_from_rectified(matrices))
        check_calibration(intrinsics, ego_from_cam, self.size(name), str(matrices.path))
        return intrinsics, ego_from_cam


class LabelledKITTI(Dataset[Sample]):
    """Read frames with their labels; each benchmark reads its own.

    Args:
        frames: the images.
    """

    def __init__(self, frames: KITTIFrames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def check(self, name: str) -> None:
        """Read the labels of a frame, without its images.

        Raises:
            InputError: when it is missing or damaged.
        """
        self.frames.camera(name)
