"""Targets and labels of samples: each says itself what flipping, zooming and other cameras make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import default_collate

from bevreshape.errors import InputError

Own = TypeVar("Own", bound="Annotation")
Cells = TypeVar("Cells", bound="BEVTarget")


class Window(NamedTuple):
    """A part of every sample's enlarged images, (b,) each: pixel u of the whole becomes ``scale·(u + ½) − ½ −
    left``."""

    scale: Tensor
    left: Tensor
    top: Tensor


@dataclass(frozen=True, eq=False)
class Annotation:
    """What belongs to samples beside images and cameras.

    Fields that are tensors have the samples along their first dimension in a batch; all other fields are the same for
    all samples. A transformation that a subclass does not define is refused by
    :class:`~bevreshape.data.batch.BEVBatch`, so that nothing is trained on in another frame than the images.
    """

    def flip(self: Own, cameras: Sequence[int]) -> Own:
        """Mirror the world at y = 0, in every sample.

        Args:
            cameras: for every camera the number of the one whose mirrored image it gets.
        """
        raise NotImplementedError

    def zoom(self: Own, window: Window) -> Own:
        """Follow images of which a part is cut out; the cells on the ground stay where they are."""
        raise NotImplementedError

    def select_cameras(self: Own, cameras: Sequence[int]) -> Own:
        """Keep these cameras, in this order."""
        raise NotImplementedError

    def hide(self: Own, cells: Bool[Tensor, "b rows cols"]) -> Own:
        """Make invalid what belongs to cells that no camera observes any more."""
        raise NotImplementedError

    def map(self: Own, function: Callable[[Tensor], Tensor]) -> Own:
        """The same with every tensor changed by a function."""
        return replace(self, **{name: function(value) for name, value in self._tensors().items()})

    def where(self: Own, chosen: Bool[Tensor, " b"], other: Own) -> Own:
        """The samples of this one where ``chosen``, elsewhere those of another one."""
        others = other._tensors()
        merged = {name: torch.where(like(chosen, own), own, others[name]) for name, own in self._tensors().items()}
        return replace(self, **merged)

    @classmethod
    def stack(cls: type[Own], samples: Sequence[Own]) -> Own:
        """Of single samples a batch."""
        parts = [sample._tensors() for sample in samples]
        stacked: dict[str, Any] = {name: default_collate([part[name] for part in parts]) for name in parts[0]}
        return replace(samples[0], **stacked)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, eq=False)
class Target(Annotation):
    """What a head is to predict.

    Attributes:
        value: (b, …).
        valid: (b, …), where the value is known and counts.
    """

    value: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class BEVTarget(Target):
    """Values of cells that have no direction, such as classes and heights: (b, k, rows, cols)."""

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
    """Where the objects of m classes have their centres.

    Attributes:
        value: (b, m, 3, rows, cols) float32. On an object: exp(−d²), d being the cells to its centre, and how many
            cells ahead and to the left the centre is; elsewhere 0.
        valid: (b, m, rows, cols).
        inside: (b, m, rows, cols), the cells of objects.
    """

    inside: Tensor

    def flip(self, cameras: Sequence[int]) -> "ObjectCenters":
        left = torch.tensor([1.0, 1.0, -1.0], device=self.value.device)[:, None, None]
        mirrored = super().flip(cameras)
        return replace(mirrored, value=mirrored.value * left)


def like(values: Tensor, other: Tensor) -> Tensor:
    """(b,) → (b, 1, …, 1), to be broadcast over another tensor."""
    return values.reshape(-1, *[1] * (other.ndim - 1))


def _size(cells: Tensor) -> str:
    return "×".join(map(str, cells.shape[-2:]))
