"""Read KITTI's road benchmark (Fritsch, Kuehnl and Geiger 2013): road and ego lane on the ground.

``training/`` holds ``image_2/um_000000.png``, ``calib/um_000000.txt``, and in ``gt_image_2`` the masks
``um_road_000000.png`` of every frame and ``um_lane_000000.png`` of those with a marked ego lane. Categories are urban
marked (``um``), urban multiple marked lanes (``umm``), and urban unmarked (``uu``). Masks are RGB: red where the
benchmark evaluates, blue on the road or the lane. Their inverse perspective mapping onto the road plane is the
benchmark's ground truth.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

import torch
from annotated_types import Len
from jaxtyping import Bool, UInt8
from torch import Tensor

from bevreshape.config.options import DataRoot, ImageSize, checked
from bevreshape.data.batch import SEGMENTATION, BEVBatch, Sample
from bevreshape.data.image_io import ImageMode, OnCorruptImage, read_image
from bevreshape.data.sources.kitti.benchmark import KITTIFrames, LabelledKITTI, ego_from_road_plane
from bevreshape.data.sources.kitti.source import Benchmark, KITTISource, RuleSplits
from bevreshape.data.targets import Annotation, BEVTarget, Window
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels, labels_to_bev
from bevreshape.geometry.cameras import mirror_intrinsics
from bevreshape.ops.tensors import index_of
from bevreshape.storage.store_path import DataPath

CATEGORIES = ("um", "umm", "uu")
"""Prefixes of frames' names: urban marked, urban multiple marked lanes, urban unmarked."""

Mask = Literal["road", "lane"]
MASKS: tuple[str, ...] = get_args(Mask)
KNOWN = 4
"""Bits of a label: 0 and 1 mark road and ego lane; 2 and 3 mark where each of their masks is known."""

TRAIN_BELOW, VAL_BELOW = 60, 80


def split_of(name: str) -> str:
    """Return the split of a frame by its number, alike in every category.

    Neighbours, which may show the same street, share a split.
    """
    number = int(name.rpartition("_")[2])
    return "train" if number < TRAIN_BELOW else "val" if number < VAL_BELOW else "test"


def read_masks(
    training: DataPath, name: str, size: tuple[int, int], image: DataPath, wanted: Collection[str] = MASKS
) -> UInt8[Tensor, "H W"]:
    """Read the labels of a frame, see ``KNOWN``.

    Args:
        training: the folder with ``gt_image_2``.
        name: of the frame.
        size: (H, W) of its image.
        image: of that size, named in the error when a mask differs.
        wanted: out of ``MASKS``; others are not read.

    Raises:
        InputError: when the road mask is wanted and missing, or a mask is no RGB image of that size with a red part.
    """
    labels = torch.zeros(size, dtype=torch.uint8)
    for what, path in mask_paths(training, name, wanted).items():
        bit = MASKS.index(what)
        mask = read_image(path)
        found = (mask.shape[1], mask.shape[2])
        if found != size:
            raise InputError(
                f"{path}: the mask is {found[0]}×{found[1]} (height×width) but its image {image.name} is "
                f"{size[0]}×{size[1]}; copy both from the benchmark again"
            )
        evaluated = mask[0] > 0
        if not evaluated.any():
            raise InputError(
                f"{path}: no pixel of the mask is red, so nothing is known; it must be red where it is known and blue "
                f"on the {what}"
            )
        labels |= ((evaluated & (mask[2] > 0)).byte() | evaluated.byte() * KNOWN) << bit
    return labels


def mask_paths(training: DataPath, name: str, wanted: Collection[str] = MASKS) -> dict[str, DataPath]:
    """Return the files of a frame's wanted masks that exist; the benchmark has a lane mask for some frames only.

    Raises:
        InputError: when the road mask is wanted and missing.
    """
    category, _, number = name.partition("_")
    paths = {what: training / "gt_image_2" / f"{category}_{what}_{number}.png" for what in MASKS}
    if "road" in wanted and not paths["road"].exists():
        alone = f", though its lane mask {paths['lane'].name} is there" if paths["lane"].exists() else ""
        raise InputError(
            f"{paths['road']}: frame {name!r} has no road mask{alone}; copy gt_image_2 again, or list other frames in "
            "data.splits"
        )
    return {what: path for what, path in paths.items() if what in wanted and path.exists()}


@dataclass(frozen=True, eq=False)
class RoadMasks(Annotation):
    """Hold the benchmark's masks of images as stored, from which classes are made on any cells.

    Attributes:
        masks: (b, 1, H, W) uint8, see ``KNOWN``; unknown beyond the image's edge.
        intrinsics: (b, 1, 3, 3), of these.
        mask_of: for every class, the mask it is made from.
    """

    masks: Tensor
    intrinsics: Tensor
    mask_of: Mapping[str, str]

    def on_ground(
        self, cameras: Cameras, grid: BEVGrid, classes: Sequence[str]
    ) -> tuple[Bool[Tensor, "b k R C"], Bool[Tensor, "b k R C"]]:
        """Return the cells of the classes, and the known cells; none is known for a missing image.

        Args:
            cameras: of the batch.
            grid: the cells.
            classes: some of ``mask_of``.
        """
        size = (self.masks.shape[-2], self.masks.shape[-1])
        stored = replace(cameras, intrinsics=self.intrinsics, image_size=size)
        bits = [[value for value in range(16) if value >> bit & 1] for bit in range(4)]
        planes, _ = labels_to_bev(self.masks, stored, grid, bits, unknown=())
        target, known = planes.split(2, dim=1)
        chosen = index_of([MASKS.index(self.mask_of[name]) for name in classes], target)
        return target[:, chosen], known[:, chosen]

    def flip(self, cameras: Sequence[int]) -> "RoadMasks":
        mirrored = mirror_intrinsics(self.intrinsics, self.masks.shape[-1])
        return replace(self, masks=self.masks.flip(-1), intrinsics=mirrored)

    def zoom(self, window: Window) -> "RoadMasks":
        return self  # masks of whole images, regardless of the network's crop

    def select_cameras(self, cameras: Sequence[int]) -> "RoadMasks":
        return self.map(lambda tensor: tensor[:, index_of(cameras, tensor)])

    def hide(self, cells: Tensor) -> "RoadMasks":
        return self  # the benchmark also counts cells outside the network's image


class LabelledRoads(LabelledKITTI):
    """Read frames with :class:`RoadMasks`.

    Args:
        frames: the images.
        mask_of: for every class, the its mask; others are not read.

    Raises:
        InputError: when the road mask is wanted and a frame lacks it, or another mask is wanted and every frame lacks
            it.
    """

    def __init__(self, frames: KITTIFrames, mask_of: Mapping[str, str]) -> None:
        super().__init__(frames)
        self._mask_of, self._wanted = dict(mask_of), tuple(mask_of.values())
        found = set().union(*(mask_paths(frames.training, name, self._wanted) for name in frames.names))
        for mask in MASKS:
            if mask in self._wanted and mask not in found:
                raise InputError(
                    f"{frames.training / 'gt_image_2'}: none of the {len(frames.names)} frames from {frames.names[0]} "
                    f"on has a {mask} mask; copy them from the benchmark, list other frames in data.splits, or leave "
                    f"the classes of {mask} out of data.classes"
                )
        sizes = [frames.size(name) for name in frames.names]
        self._canvas = max(height for height, _ in sizes), max(width for _, width in sizes)

    def __getitem__(self, index: int) -> Sample:
        sample = self.frames[index]
        name = sample.meta.name
        size = self.frames.size(name)
        labels = torch.zeros(1, *self._canvas, dtype=torch.uint8)
        labels[0, : size[0], : size[1]] = read_masks(
            self.frames.training, name, size, self.frames.image_path(name), self._wanted
        )
        intrinsics = self.frames.camera(name)[0][None].float()
        return replace(sample, labels=RoadMasks(labels, intrinsics, self._mask_of))


ROADS = Benchmark(
    pattern=rf"({'|'.join(CATEGORIES)})_\d{{6}}",
    example="um_000000",
    rule=split_of,
    rule_text=f"numbers below {TRAIN_BELOW} train, below {VAL_BELOW} validate, the others test",
    ego_from_rectified=ego_from_road_plane,
)
"""KITTI's road benchmark."""


@checked
class KITTIRoadSource(KITTISource):
    """Provide KITTI's road benchmark (a :class:`~bevreshape.data.batch.BEVSource`).

    The ego frame is the benchmark's road frame with its axes renamed: z = 0 is the plane fitted to the frame. A class
    is valid where its mask is evaluated and the network's image shows the cell; ``lane`` is invalid in frames without
    its mask. Batches keep their :class:`RoadMasks`, which the metric projects onto its own cells.

    Args:
        root: the folder with ``training/``.
        grid: the wanted cells; the benchmark's metric and labels always use its own.
        image_size: (H, W) of the network.
        classes: for every target class, its mask: ``road`` or ``lane``.
        splits: see :class:`~bevreshape.data.sources.kitti.source.KITTISplits`; by the rule, numbers below 60 train,
            below 80 validate, and the others test.
        on_corrupt_image, image_mode: see :class:`~bevreshape.data.sources.kitti.benchmark.KITTIFrames`.

    Raises:
        InputError: when the folder is not the benchmark's, or a class has an unknown mask.
    """

    def __init__(
        self,
        root: DataRoot,
        *,
        grid: BEVGrid,
        image_size: ImageSize,
        classes: Annotated[Mapping[str, Mask], Len(1)],
        splits: RuleSplits | None = None,
        on_corrupt_image: OnCorruptImage = "raise",
        image_mode: ImageMode = "rgb",
    ) -> None:
        self._masks = dict(classes)
        super().__init__(
            ROADS, root, splits, grid=grid, image_size=image_size, classes=classes,
            on_corrupt_image=on_corrupt_image, image_mode=image_mode,
        )  # fmt: skip

    def labelled(self, split: str) -> LabelledRoads:
        return LabelledRoads(self.frames(split), self._masks)

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        """Make the classes of all cells; the masks stay for the benchmark's metric, which has its own cells."""
        assert isinstance(batch.labels, RoadMasks)
        value, known = batch.labels.on_ground(batch.cameras, self.grid, self.classes)
        observed = ground_pixels(batch.cameras, self.grid)[1]  # b 1 R C
        return replace(batch, targets={SEGMENTATION: BEVTarget(value, known & observed)})
