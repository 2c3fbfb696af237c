"""Define targets and labels of samples; each defines its own flip, zoom and selection of cameras."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import default_collate

from bevreshape.errors import InputError
from bevreshape.ops.tensors import constant

Own = TypeVar("Own", bound="Annotation")
Cells = TypeVar("Cells", bound="BEVTarget")


class Window(NamedTuple):
    """Describe a crop of every sample's enlarged images, (b,) each: pixel u becomes ``scale·(u + ½) − ½ − left``."""

    scale: Tensor
    left: Tensor
    top: Tensor


@dataclass(frozen=True, eq=False)
class Annotation:
    """Hold data of samples in addition to images and cameras.

    In a batch, tensor fields have the samples along their first dimension; all other fields are the same for all
    samples. :class:`~bevreshape.data.batch.BEVBatch` refuses a transformation that a subclass does not define, so that
    targets always share the frame of the images.
    """

    def flip(self: Own, cameras: Sequence[int]) -> Own:
        """Mirror the world at y = 0, in every sample.

        Args:
            cameras: for every camera the index of the one whose mirrored image it gets.
        """
        raise NotImplementedError

    def zoom(self: Own, window: Window) -> Own:
        """Follow a crop of the images; the cells on the ground do not move."""
        raise NotImplementedError

    def select_cameras(self: Own, cameras: Sequence[int]) -> Own:
        """Keep these cameras, in this order."""
        raise NotImplementedError

    def hide(self: Own, cells: Bool[Tensor, "b rows cols"]) -> Own:
        """Invalidate values of cells that no camera observes any longer."""
        raise NotImplementedError

    def map(self: Own, function: Callable[[Tensor], Tensor]) -> Own:
        """Return a copy with every tensor changed by a function."""
        return replace(self, **{name: function(value) for name, value in self._tensors().items()})

    def where(self: Own, chosen: Bool[Tensor, " b"], other: Own) -> Own:
        """Return the samples of this one where ``chosen``, elsewhere those of another one."""
        others = other._tensors()
        merged = {name: torch.where(like(chosen, own), own, others[name]) for name, own in self._tensors().items()}
        return replace(self, **merged)

    @classmethod
    def stack(cls: type[Own], samples: Sequence[Own]) -> Own:
        """Stack single samples into a batch."""
        parts = [sample._tensors() for sample in samples]
        stacked: dict[str, Any] = {name: default_collate([part[name] for part in parts]) for name in parts[0]}
        return replace(samples[0], **stacked)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, eq=False)
class Target(Annotation):
    """Hold the values that a head is to predict.

    Attributes:
        value: (b, …).
        valid: (b, …), where the value is known and counts.
    """

    value: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class BEVTarget(Target):
    """Hold values of cells without a direction, such as classes and heights: (b, k, rows, cols)."""

    def flip(self: Cells, cameras: Sequence[int]) -> Cells:
        return self.map(lambda cells: cells.flip(-1))

    def zoom(self: Cells, window: Window) -> Cells:
        return self

    def select_cameras(self: Cells, cameras: Sequence[int]) -> Cells:
        return self

    def hide(self: Cells, cells: Tensor) -> Cells:
        if self.valid.shape[-2:] != cells.shape[-2:]:
            raise InputError(
                f"a {type(self).__name__} of {_size(self.valid)} cells cannot be compared with a grid of "
                f"{_size(cells)}; make the target on the grid of the data"
            )
        return replace(
            self, valid=self.valid & ~cells.reshape(len(cells), *[1] * (self.valid.ndim - 3), *cells.shape[1:])
        )


@dataclass(frozen=True, eq=False)
class ObjectCenters(BEVTarget):
    """Hold the centres of the objects of m classes.

    Attributes:
        value: (b, m, 3, rows, cols) float32. On an object: exp(−d²), where d is the distance to its centre in
            cells, and how many cells ahead and to the left the centre is; elsewhere 0.
        valid: (b, m, rows, cols).
        inside: (b, m, rows, cols), the cells of objects.
    """

    inside: Tensor

    def flip(self, cameras: Sequence[int]) -> "ObjectCenters":
        left = constant([1.0, 1.0, -1.0], self.value, torch.float32)[:, None, None]
        mirrored = super().flip(cameras)
        return replace(mirrored, value=mirrored.value * left)


def like(values: Tensor, other: Tensor) -> Tensor:
    """Reshape (b,) to (b, 1, …, 1), to broadcast over another tensor."""
    return values.reshape(-1, *[1] * (other.ndim - 1))


def _size(cells: Tensor) -> str:
    return "×".join(map(str, cells.shape[-2:]))
