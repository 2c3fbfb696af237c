"""Read the common part of KITTI's benchmarks as unpacked: ``training/`` with ``image_2``, ``calib`` and labels.

The camera is the left color one. Its P2 = K · [I | t] gives the intrinsics K and, from the fourth column, its
position −t in the frame of the rectified camera 0. ``P2 · R0_rect · Tr_velo_to_cam`` projects the velodyne's points
and ``P2 · R0_rect · Tr_cam_to_road⁻¹`` the road's (the readme files of the development kits).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import TypedDict

from bevreshape.data.batch import SPLITS, Meta, Sample
from bevreshape.data.image_io import read_image, read_image_size, read_or_mask, resize_and_crop
from bevreshape.data.names import check_classes
from bevreshape.data.sources.folder.source import split_names
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, check_calibration
from bevreshape.storage.files import read_text, visible

VELODYNE_HEIGHT_M = 1.73
"""Height of the velodyne above the ground, from KITTI's drawing of its sensors."""


_NO_CALIBRATION = "there is no such calibration; copy it from the benchmark, or leave the frame out"


class Matrices(dict[str, Tensor]):
    """Map names of a calibration file to matrices, each (4, 4) float64; a missing one raises ``InputError``."""

    def __init__(self, path: Path, matrices: Mapping[str, Tensor]) -> None:
        super().__init__(matrices)
        self.path = path

    def __missing__(self, name: str) -> Tensor:
        raise InputError(
            f"{self.path}: there is no {name}, only {', '.join(self) or 'nothing'}; copy the file from the benchmark "
            "again"
        )


def read_matrices(path: Path) -> Matrices:
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


def _inverse(matrix: Tensor, path: Path, name: str) -> Tensor:
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
        training: Path,
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

    def image_path(self, name: str) -> Path:
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


class RuleSplits(TypedDict, total=False):
    """Name frames as :class:`~bevreshape.data.sources.folder.source.Splits`; ``None`` uses the benchmark's rule."""

    train: str | Sequence[str] | None
    val: str | Sequence[str] | None
    test: str | Sequence[str] | None


@dataclass(frozen=True)
class Benchmark:
    """Describe one of KITTI's benchmarks.

    Attributes:
        pattern: regular expression of the frames' names.
        example: of such a name.
        rule: from a frame's name to its split.
        rule_text: the rule in readable form.
        ego_from_rectified: the ego frame from a frame's matrices.
    """

    pattern: str
    example: str
    rule: Callable[[str], str]
    rule_text: str
    ego_from_rectified: Callable[[Matrices], Tensor]


class KITTISplits:
    """Split the frames of ``training/image_2`` into training, validation and test.

    The benchmarks publish no labels of their test images, so their training frames are divided.

    Args:
        root: the folder with ``training/``.
        benchmark: whose frames they are.
        splits: for each split ``None`` (the rule), or as :func:`~bevreshape.data.sources.folder.source.split_names`
            takes it.

    Raises:
        InputError: when there is no such folder, or an image's name is not of the benchmark.
    """

    def __init__(self, root: Path, benchmark: Benchmark, splits: RuleSplits | None = None) -> None:
        self.root = root
        self._benchmark = benchmark
        self._given: dict[str, str | Sequence[str] | None] = dict(splits or {})  # type: ignore[arg-type]
        images = root / "training" / "image_2"
        if not images.is_dir():
            raise InputError(
                f"{images}: there is no such folder; unpack the benchmark so that data.root holds training/image_2 "
                "(data/README.md)"
            )
        self.frames = tuple(path.stem for path in visible(images, "*.png"))
        if not self.frames:
            raise InputError(f"{images}: there is no .png here; unpack the benchmark's images into it")
        for name in self.frames:
            if not re.fullmatch(benchmark.pattern, name):
                raise InputError(
                    f"{images / name}.png: the name is not one of this benchmark, such as {benchmark.example}; move "
                    "the file away, or set data.root to the benchmark"
                )

    def of(self, split: str) -> tuple[str, ...]:
        """Return the names of a split's frames.

        Raises:
            InputError: when the split is unknown or empty, or a listed frame does not exist.
        """
        if split not in SPLITS:
            raise InputError(f"{self.root}: there is no split {split!r}; {suggest(split, SPLITS)}")
        given = self._given.get(split)
        if given is None:
            names = [name for name in self.frames if self._benchmark.rule(name) == split]
            if not names:
                raise InputError(
                    f"{self.root}: none of its {len(self.frames)} frames falls into {split!r} "
                    f"({self._benchmark.rule_text}); list frames with data.splits.{split}=[{self.frames[0]}]"
                )
            return tuple(names)
        names, known = split_names(self.root, split, given), set(self.frames)
        for name in names:
            if name not in known:
                raise InputError(f"{self.root}: there is no image of frame {name!r}; {suggest(name, known)}")
        return tuple(names)


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


class KITTISource:
    """Hold the common part of both benchmarks' sources; each defines how a split is labelled.

    Args:
        benchmark: which of them.
        root: the folder with ``training/``.
        splits: see :class:`KITTISplits`.
        grid: the wanted cells.
        image_size: (H, W) of the network.
        classes: names of the target classes.
        on_corrupt_image, image_mode: see :class:`KITTIFrames`.
    """

    camera_names = ("left",)

    def __init__(
        self,
        benchmark: Benchmark,
        root: str | Path,
        splits: RuleSplits | None,
        *,
        grid: BEVGrid,
        image_size: Sequence[int],
        classes: Iterable[str],
        on_corrupt_image: str,
        image_mode: str,
    ) -> None:
        self.root = Path(root)
        self._splits = KITTISplits(self.root, benchmark, splits)
        self._ego_from_rectified = benchmark.ego_from_rectified
        self.grid = grid
        self.image_size = (image_size[0], image_size[1])
        self.classes = check_classes(classes, "data.classes")
        self.image_mode = image_mode
        self._on_corrupt_image = on_corrupt_image

    def frames(self, split: str) -> KITTIFrames:
        """Return the images of ``train``, ``val`` or ``test``."""
        return KITTIFrames(
            self.root / "training",
            self._splits.of(split),
            self.image_size,
            self._ego_from_rectified,
            on_corrupt_image=self._on_corrupt_image,
            image_mode=self.image_mode,
        )

    def labelled(self, split: str) -> LabelledKITTI:
        """Return the frames of ``train``, ``val`` or ``test`` with the benchmark's labels."""
        raise NotImplementedError

    def split(self, name: str) -> Dataset[Sample]:
        """Return the frames of ``train``, ``val`` or ``test``."""
        return self.labelled(name)

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Read every calibration and one frame of every split, so that faults show before the training."""
        for split in splits:
            labelled = self.labelled(split)
            for name in labelled.frames.names:
                labelled.check(name)
            labelled[0]
