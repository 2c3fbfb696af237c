"""What a data source yields and what the network receives."""

import re
import sys
from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels

SPLITS = ("train", "val", "test")


class Sample(TypedDict):
    """One moment of one rig, on the CPU, as a data source's dataset returns it."""

    image: Tensor
    """(n, 3, H, W) uint8, RGB; turned into floats in 0..1 on the device."""
    intrinsics: Tensor
    """(n, 3, 3) float32, ``pixel_from_cam``."""
    ego_from_cam: Tensor
    """(n, 4, 4) float32, metres."""
    camera_mask: Tensor
    """(n,) bool, false where the camera is missing."""
    index: int
    """Position in the split; order and augmentation are functions of it."""
    name: str
    """What a person calls it; images and predictions are filed under it."""
    target: NotRequired[Tensor]
    """(k, rows, cols) bool, one channel a class; classes overlap. Left out where :meth:`BEVSource.finish` makes it."""
    valid: NotRequired[Tensor]
    """(k, rows, cols) bool: where the label of that class is known and a camera looks."""


Batch = dict[str, Any]
"""Samples stacked along a first dimension b; ``image`` is float in 0..1 once it is on the device, ``name`` a list."""


@runtime_checkable
class BEVSource(Protocol):
    """A source of labelled rigs: what :class:`~bevreshape.data.datamodule.BEVDataModule` needs to know of it. See also :class:`SourceWithMetrics`."""

    grid: BEVGrid
    classes: tuple[str, ...]
    camera_names: tuple[str, ...]
    image_size: tuple[int, int]

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Generate, cache or check what is needed; called once per machine, before any of these splits is read."""

    def split(self, name: str) -> Dataset[Sample]:
        """The split ``train``, ``val`` or ``test``."""

    def finish(self, batch: Batch) -> Batch:
        """Complete a batch on its device, for instance with targets made from labelled images."""


@runtime_checkable
class SourceWithMetrics(BEVSource, Protocol):
    """A source with metrics of its own, which ``evaluate`` prints and writes beside IoU: a benchmark's, or by what a sample shows."""

    def metrics(self, classes: Sequence[str]) -> Sequence[Metric]:
        """New metrics of the channels ``classes``, some of the source's, on its grid.

        Each batch is counted by ``metric.update(probabilities, target, valid, batch)``: (b, k, rows, cols) each, and what
        :meth:`finish` made, with all that it left there and ``name``. ``compute()`` returns scalars by names, parts of which are
        parted by slashes, as in ``iou/vehicle/night``; the last part heads a column of the printed table.
        """


def cameras_of(batch: Batch) -> Cameras:
    """The cameras of a batch."""
    height, width = batch["image"].shape[-2:]
    return Cameras(batch["intrinsics"], batch["ego_from_cam"], (height, width), batch["camera_mask"])


def still_valid(before: Batch, after: Batch, grid: BEVGrid) -> Tensor:
    """``valid`` without the cells that a camera saw before and none sees after; those that none saw count as they did."""
    seen, still = (ground_pixels(cameras_of(batch), grid)[1].any(1) for batch in (before, after))  # b rows cols
    return before["valid"] & ~(seen & ~still)[:, None]


def match_cameras(wanted: Sequence[str], given: Sequence[str], where: str) -> list[int]:
    """For every camera that a model was trained with, the position of the data's camera that takes its place.

    Names match without regard to case and a leading ``cam``; where they do not match at all, order decides, and it is
    printed which camera stands for which.

    Raises:
        InputError: another number of cameras.
    """
    if len(wanted) != len(given):
        raise InputError(
            f"{where}: it has {len(given)} cameras ({', '.join(given)}) but the checkpoint was trained on {len(wanted)} "
            f"({', '.join(wanted)}); choose data of the same rig, or the cameras that take their places with data.cameras"
        )
    plain = [[re.sub(r"^cam(era)?_?", "", name.lower()) for name in names] for names in (wanted, given)]
    if sorted(plain[0]) == sorted(plain[1]):
        return [plain[1].index(name) for name in plain[0]]
    if len(wanted) > 1:
        pairs = ", ".join(f"{name} as {role}" for role, name in zip(wanted, given, strict=True))
        print(f"{where}: camera names differ from the checkpoint's, so their order counts: {pairs}", file=sys.stderr)
    return list(range(len(wanted)))


def with_cameras(batch: Batch, order: Sequence[int]) -> Batch:
    """The batch with its cameras in another order."""
    per_camera = ("image", "intrinsics", "ego_from_cam", "camera_mask")
    return batch | {key: batch[key][:, list(order)] for key in per_camera}


def seeded(*key: int) -> torch.Generator:
    """A CPU generator that depends on all of ``key`` and on nothing else, the same on every machine and process."""
    mixed = 0xCBF29CE484222325  # FNV-1a over the words of the key
    for word in key:
        for shift in range(0, 64, 8):
            mixed = ((mixed ^ ((word >> shift) & 0xFF)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator().manual_seed(mixed)
