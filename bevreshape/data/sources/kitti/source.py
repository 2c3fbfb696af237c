"""Provide KITTI's benchmarks as data sources: their splits, and what both sources share."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import TypedDict

from bevreshape.data.batch import SPLITS, Sample
from bevreshape.data.names import check_classes
from bevreshape.data.sources.folder.source import split_names
from bevreshape.data.sources.kitti.benchmark import KITTIFrames, LabelledKITTI, Matrices
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid
from bevreshape.storage.files import visible
from bevreshape.storage.object_store import data_path
from bevreshape.storage.store_path import DataPath


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

    def __init__(self, root: DataPath, benchmark: Benchmark, splits: RuleSplits | None = None) -> None:
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
        self.root = data_path(root)
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
