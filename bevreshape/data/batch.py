"""Define the sample that a data source yields and the batch that the network receives."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import repeat
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from bevreshape.data.targets import Annotation, Target, Window, like
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels
from bevreshape.geometry.ipm import sample
from bevreshape.ops.tensors import index_of

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

SEGMENTATION = "segmentation"
"""Name of the target, and of the head, of overlapping classes, one channel each."""

REMEDIES = {"flip": "augment.flip_p=0", "zoom": "augment.zoom=[1,1]"}
"""Setting that turns off each transformation of a batch."""


@dataclass(frozen=True)
class Meta:
    """Describe a sample.

    Attributes:
        name: readable name; images and predictions are stored under it.
        index: position in the split; order and augmentation depend on it.
        scene: its drive or sequence.
        timestamp: in seconds.
        conditions: of the scene, such as ``night`` or ``rain``.
    """

    name: str
    index: int
    scene: str | None = None
    timestamp: float | None = None
    conditions: tuple[str, ...] = ()


def check_targets(targets: Mapping[str, Any]) -> None:
    """Refuse a target that does not know how it is transformed.

    Raises:
        InputError: when one is no :class:`~bevreshape.data.targets.Target`; names it.
    """
    for name, target in targets.items():
        if not isinstance(target, Target):
            raise InputError(
                f"target {name!r} is a {type(target).__name__}, which does not define how it is augmented; "
                "wrap it in a bevreshape.data.targets.BEVTarget, or a Target of your own"
            )


@dataclass(frozen=True, eq=False)
class Sample:
    """Hold one rig at one time, on the CPU, as a data source's dataset returns it; no tensor has a batch dimension.

    Attributes:
        images: (n, 3, H, W) uint8, RGB; turned into floats in 0..1 on the device.
        intrinsics: (n, 3, 3) float32, ``pixel_from_cam``.
        ego_from_cam: (n, 4, 4) float32, metres.
        meta: of the sample.
        targets: by task; empty where :meth:`BEVSource.make_targets` makes them.
        camera_mask: (n,) bool, false where the camera is missing; ``None``: all are there.
        labels: source of the targets that are made on the device.
    """

    images: Tensor
    intrinsics: Tensor
    ego_from_cam: Tensor
    meta: Meta
    targets: Mapping[str, Target] = field(default_factory=dict)
    camera_mask: Tensor | None = None
    labels: Annotation | None = None

    def __post_init__(self) -> None:
        check_targets(self.targets)
        if self.images.dtype != torch.uint8:
            raise InputError(
                f"sample {self.meta.name}: its images are {self.images.dtype}, not uint8 in 0..255; return them as "
                "stored, the datamodule turns them into floats in 0..1 on the device"
            )

    @property
    def cameras(self) -> Cameras:
        """Return its cameras, as a batch of one."""
        height, width = self.images.shape[-2:]
        return Cameras(self.intrinsics[None], self.ego_from_cam[None], (height, width), self.full_mask[None])

    @property
    def full_mask(self) -> Bool[Tensor, " n"]:
        """Return ``camera_mask``, all true where it is ``None``."""
        return torch.ones(len(self.images), dtype=torch.bool) if self.camera_mask is None else self.camera_mask


@dataclass(frozen=True, eq=False)
class BEVBatch:
    """Hold samples of rigs; a batch moves, flips, zooms, and selects cameras and samples of itself.

    Attributes:
        images: (b, n, 3, H, W); float in 0..1 once it is on the device.
        cameras: of b rigs of n, with the mask of those that are missing.
        targets: by task.
        meta: of every sample.
        labels: source of targets that are not made yet; some metrics read them too.

    Raises:
        InputError: when a target does not define its own transformations.
    """

    images: Tensor
    cameras: Cameras
    targets: Mapping[str, Target]
    meta: list[Meta]
    labels: Annotation | None = None

    def __post_init__(self) -> None:
        check_targets(self.targets)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """Return the samples' names."""
        return [meta.name for meta in self.meta]

    def __getitem__(self, samples: slice | Sequence[int]) -> "BEVBatch":
        """Return some samples, by a slice or by their indices."""
        numbers = list(range(len(self)))[samples] if isinstance(samples, slice) else list(samples)
        index = samples if isinstance(samples, slice) else index_of(numbers, self.images)
        chosen = self._map(lambda tensor: tensor[index])
        return replace(chosen, meta=[self.meta[number] for number in numbers])

    def to(self, device: torch.device | str) -> "BEVBatch":
        """Return the batch on another device."""
        ahead = torch.device(device).type == "cuda"
        return self._map(lambda tensor: tensor.to(device, non_blocking=ahead))

    def pin_memory(self) -> "BEVBatch":
        """Return the batch in pinned memory, from which a GPU copies asynchronously."""
        return self._map(lambda tensor: tensor.pin_memory())

    def select_cameras(self, cameras: Sequence[int]) -> "BEVBatch":
        """Return the batch with these cameras, in this order."""
        order = index_of(cameras, self.images)
        selected = replace(self, images=self.images[:, order], cameras=self.cameras.map(lambda x: x[:, order]))
        return selected._transformed("select_cameras", list(cameras))

    def flip(self, cameras: Sequence[int]) -> "BEVBatch":
        """Mirror the world at y = 0: the scene, the rig, and with it every image.

        Args:
            cameras: for every camera the index of the one whose mirrored image it gets.

        Raises:
            InputError: when a target does not define ``flip``.
        """
        partner = list(cameras)
        images = self.images[:, index_of(partner, self.images)].flip(-1)
        mirrored = replace(self, images=images, cameras=self.cameras.mirrored(partner))
        return mirrored._transformed("flip", partner)

    def zoom(self, window: Window, grid: BEVGrid) -> "BEVBatch":
        """Enlarge all images and cut a window of their old size out, in one resampling.

        Cells of ``grid`` that no camera observes any longer become invalid.

        Raises:
            InputError: when a target does not define ``zoom``.
        """
        n, (height, width) = self.images.shape[1], self.images.shape[-2:]
        device, (scale, left, top) = self.images.device, (part[:, None] for part in window)  # b 1
        u = (torch.arange(width, device=device) + 0.5 + left) / scale - 0.5  # b W
        v = (torch.arange(height, device=device) + 0.5 + top) / scale - 0.5  # b H
        places = [repeat(u, "b W -> b n H W", n=n, H=height), repeat(v, "b H -> b n H W", n=n, W=width)]
        moved = replace(self, images=sample(self.images, torch.stack(places, -1)), cameras=self.cameras.zoomed(*window))
        return moved._transformed("zoom", window).without_lost_cells(self, grid)

    def without_lost_cells(self, before: "BEVBatch", grid: BEVGrid) -> "BEVBatch":
        """Invalidate targets in cells that a camera observed ``before`` and none does now; other cells stay."""
        observed, still = (ground_pixels(batch.cameras, grid)[1].any(1) for batch in (before, self))  # b rows cols
        return self.hide(observed & ~still)

    def hide(self, cells: Bool[Tensor, "b rows cols"]) -> "BEVBatch":
        """Return the batch with all targets invalid in these cells."""
        return self._transformed("hide", cells)

    def where(self, chosen: Bool[Tensor, " b"], other: "BEVBatch") -> "BEVBatch":
        """Return the samples of this batch where ``chosen``, elsewhere those of another one."""
        return replace(
            self,
            images=torch.where(like(chosen, self.images), self.images, other.images),
            cameras=self.cameras.where(chosen, other.cameras),
            targets={name: own.where(chosen, other.targets[name]) for name, own in self.targets.items()},
            labels=None if self.labels is None or other.labels is None else self.labels.where(chosen, other.labels),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "BEVBatch":
        return replace(
            self,
            images=function(self.images),
            cameras=self.cameras.map(function),
            targets={name: target.map(function) for name, target in self.targets.items()},
            labels=None if self.labels is None else self.labels.map(function),
        )

    def _transformed(self, what: str, *arguments: Any) -> "BEVBatch":
        """Transform targets and labels by their own method of that name."""

        def ask(name: str, part: Any) -> Any:
            try:
                return getattr(part, what)(*arguments)
            except NotImplementedError:
                kind = type(part).__name__
                raise InputError(
                    f"{name} is a {kind}, which does not define {what}; define {kind}.{what}"
                    + (f", or set {REMEDIES[what]}" if what in REMEDIES else "")
                ) from None

        targets = {name: ask(f"target {name!r}", target) for name, target in self.targets.items()}
        return replace(self, targets=targets, labels=None if self.labels is None else ask("labels", self.labels))


def collate(samples: Sequence[Sample]) -> BEVBatch:
    """Stack samples into a batch."""
    images = default_collate([sample.images for sample in samples])
    cameras = Cameras(
        default_collate([sample.intrinsics for sample in samples]),
        default_collate([sample.ego_from_cam for sample in samples]),
        (images.shape[-2], images.shape[-1]),
        default_collate([sample.full_mask for sample in samples]),
    )
    targets = {
        name: type(target).stack([sample.targets[name] for sample in samples])
        for name, target in samples[0].targets.items()
    }
    labels = [sample.labels for sample in samples if sample.labels is not None]
    return BEVBatch(
        images, cameras, targets, [sample.meta for sample in samples], type(labels[0]).stack(labels) if labels else None
    )


@runtime_checkable
class BEVSource(Protocol):
    """Provide labelled rigs to :class:`~bevreshape.data.datamodule.BEVDataModule`."""

    grid: BEVGrid
    classes: tuple[str, ...]
    camera_names: tuple[str, ...]
    image_size: tuple[int, int]

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Generate, cache or check the data; called once per machine, before any of these splits is read."""

    def split(self, name: str) -> Dataset[Sample]:
        """Return the split ``train``, ``val`` or ``test``."""

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        """Complete a batch on its device, for instance with targets made from labelled images; augmentation follows."""


def match_cameras(wanted: Sequence[str], given: Sequence[str], where: str) -> list[int]:
    """Return, for every camera that a model was trained with, the index of the matching camera of the data.

    Names match regardless of case and of a leading ``cam``. Where they do not match at all, order decides, and the
    pairs are logged.

    Raises:
        InputError: when the numbers of cameras differ.
    """
    if len(wanted) != len(given):
        raise InputError(
            f"{where}: it has {len(given)} cameras ({', '.join(given)}) but the checkpoint was trained on "
            f"{len(wanted)} ({', '.join(wanted)}); choose data of the same rig, or the cameras that replace them "
            "with data.cameras"
        )
    plain = [[re.sub(r"^cam(era)?_?", "", name.lower()) for name in names] for names in (wanted, given)]
    if sorted(plain[0]) == sorted(plain[1]):
        return [plain[1].index(name) for name in plain[0]]
    if len(wanted) > 1:
        pairs = ", ".join(f"{name} as {role}" for role, name in zip(wanted, given, strict=True))
        log.warning("%s: camera names differ from the checkpoint's, so their order counts: %s", where, pairs)
    return list(range(len(wanted)))


def seeded(*key: int) -> torch.Generator:
    """Return a CPU generator that depends on ``key`` alone, the same on every machine and in every process.

    The numbers of ``key`` are at least 0. Keys of other lengths give other generators, also where only zeros are added.
    """
    words = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
