"""Compute losses on the logits of overlapping classes, where the label is known.

Every loss is an objective of the head and target ``segmentation``, (b, k, rows, cols) each. A class's loss is a mean
over its valid cells in the whole batch; the result is the weighted mean over the classes that have such cells, so
neither a rare label nor a narrow view changes a class's share. Without any valid cell it is zero, with a gradient of
zero. All of it is computed in float32 (float64 if given), also under autocast.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from bevreshape.config.options import Factor, OpenShare, Weight, checked
from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.errors import InputError, suggest
from bevreshape.model import Outputs
from bevreshape.objectives.base import compared

PerClass = Weight | Sequence[Weight] | Mapping[str, Weight]
"""One value for all classes, one for each class in their order, or some by name, where the others are 1."""

PositivePerClass = Factor | Sequence[Factor] | Mapping[str, Factor]
""":data:`PerClass` of positive values."""


def per_class(values: PerClass, classes: Sequence[str], what: str) -> Float[Tensor, " k"]:
    """Return one float32 value per class from any form of :data:`PerClass`.

    Raises:
        InputError: when a name is not a class, or the number of values is not that of classes.
    """
    if isinstance(values, Mapping):
        for name in values:
            if name not in classes:
                raise InputError(f"{what}: '{name}' is not a class of this data; {suggest(name, classes)}")
        numbers = [float(values.get(name, 1.0)) for name in classes]
    elif isinstance(values, Sequence):
        numbers = [float(value) for value in values]
    else:
        numbers = [float(values)] * len(classes)
    if len(numbers) != len(classes):
        raise InputError(
            f"{what}: {len(numbers)} values for {len(classes)} classes ({', '.join(classes)}); give one number for "
            "all, one per class, or a mapping from class to number"
        )
    return torch.tensor(numbers)


class ClassLoss(nn.Module):
    """Check shapes, mask, and average the :meth:`classwise` loss of a subclass.

    Args:
        class_weight: weight of each class in the mean over classes.
        classes: names of the k channels; may also follow by :meth:`bind`. Without them, :data:`PerClass` by name is
            refused.
    """

    class_weight: Tensor

    def __init__(self, class_weight: PerClass, classes: Sequence[str] | None, **settings: PerClass) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = ()
        self._settings = {"class_weight": class_weight, **settings}
        for setting in self._settings:
            self.register_buffer(setting, None, persistent=False)
        if classes:
            self.bind(classes)

    def bind(self, classes: Sequence[str], device: torch.device | None = None) -> None:
        """Set the names of the k channels."""
        for setting, values in self._settings.items():
            numbers = per_class(values, classes, f"{type(self).__name__}.{setting}")
            setattr(self, setting, numbers.to(device))
        if not self.class_weight.any():
            raise InputError(f"{type(self).__name__}.class_weight: all are zero; at least one class must count")
        self.classes = tuple(classes)

    def forward(self, outputs: Outputs, batch: BEVBatch) -> Float[Tensor, ""]:
        """Return the loss of the segmentation head on its target."""
        logits, target = compared(outputs, batch, SEGMENTATION)
        return self.masked(logits, target.value, target.valid)

    def masked(
        self,
        logits: Float[Tensor, "b k rows cols"],
        target: Bool[Tensor, "_ _ _ _"] | Float[Tensor, "_ _ _ _"],
        valid: Bool[Tensor, "_ _ _ _"],
    ) -> Float[Tensor, ""]:
        """Return the mean loss over valid cells, then over classes.

        Raises:
            InputError: when the three differ in shape, or the channels are not as many as the classes.
        """
        name = type(self).__name__
        if not logits.shape == target.shape == valid.shape:
            raise InputError(
                f"{name}: logits {tuple(logits.shape)}, target {tuple(target.shape)} and valid {tuple(valid.shape)} "
                "must have one shape (b, k, rows, cols); build the head for the grid and the classes of the data"
            )
        if not self.classes:
            self.bind([f"class {number}" for number in range(logits.shape[1])], logits.device)
        if logits.shape[1] != len(self.classes):
            raise InputError(
                f"{name}: logits have {logits.shape[1]} channels but it was built for {len(self.classes)} classes "
                f"({', '.join(self.classes)}); build it with the classes of the data"
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            # cells without a label may hold any value, NaN too, and must not reach the gradient
            target = torch.where(valid, target.to(logits.dtype), logits.new_zeros(()))
            cells = valid.sum(dim=(0, 2, 3))  # k
            share = self.class_weight.to(logits.dtype) * (cells > 0)
            share = share / share.sum().clamp(min=torch.finfo(logits.dtype).tiny)
            return (share * self.classwise(logits, target, valid)).sum()

    def classwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of every class over its valid cells, (k,); finite where it has none."""
        raise NotImplementedError


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of (b, k, rows, cols) over valid cells, (k,); zero where there is none."""
    total = torch.where(valid, values, values.new_zeros(())).sum(dim=(0, 2, 3))
    return total / valid.sum(dim=(0, 2, 3)).clamp(min=1)


@checked
class BCE(ClassLoss):
    """Compute binary cross-entropy, as in LSS (pos_weight 2.13 for vehicles).

    Args:
        pos_weight: factor on the loss of positive cells, which are rare.
    """

    pos_weight: Tensor

    def __init__(
        self, pos_weight: PositivePerClass = 1.0, *, class_weight: PerClass = 1.0, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__(class_weight, classes, pos_weight=pos_weight)

    def classwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean cross-entropy."""
        pos_weight = self.pos_weight.to(logits.dtype)[:, None, None]
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
        return masked_mean(loss, valid)


@checked
class Focal(ClassLoss):
    """Compute the focal loss (Lin et al. 2017), by torchvision; CVT uses γ = 2 and no α.

    Args:
        alpha: weight of positive cells; negative ones have 1 − alpha. ``None`` weighs both by 1.
        gamma: exponent that reduces the loss of well predicted cells.

    Raises:
        InputError: when gamma is between 0 and 1, where the gradient of a certain, correct prediction is infinite.
    """

    def __init__(
        self,
        alpha: OpenShare | None = None,
        gamma: Annotated[float, Ge(0), Le(100)] = 2.0,
        *,
        class_weight: PerClass = 1.0,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(class_weight, classes)
        if 0 < gamma < 1:
            raise InputError(f"Focal: gamma={gamma} must be 0 or at least 1; its gradient is infinite in between")
        self.alpha = -1.0 if alpha is None else float(alpha)  # torchvision's value for none
        self.gamma = float(gamma)

    def classwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the mean focal loss of every class."""
        return masked_mean(sigmoid_focal_loss(logits, target, self.alpha, self.gamma), valid)


@checked
class Dice(ClassLoss):
    """Compute the soft Dice loss (Milletari et al. 2016) over a class's valid cells in the batch.

    It is 1 − (2·Σpt + smooth) / (Σp + Σt + smooth).

    Kornia's ``dice_loss`` is a softmax over exclusive classes; these overlap, so every class has its own sigmoid.

    Args:
        smooth: in cells; keeps a class without a positive cell finite and its gradient small.
    """

    def __init__(
        self, smooth: Factor = 1.0, *, class_weight: PerClass = 1.0, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__(class_weight, classes)
        self.smooth = smooth

    def classwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return one minus the Dice coefficient of every class."""
        p = torch.where(valid, logits.sigmoid(), logits.new_zeros(()))
        both = (p * target).sum(dim=(0, 2, 3))
        either = (p + target).sum(dim=(0, 2, 3))
        return 1 - (2 * both + self.smooth) / (either + self.smooth)


@checked
class WeightedSum(nn.Module):
    """Compute Σ weight · loss.

    Args:
        terms: objectives by name.
        weights: factor of each, under the same names.
        classes: names of the k channels, passed to the terms.

    Raises:
        InputError: when terms and weights differ in names, or no term counts.
    """

    def __init__(
        self,
        terms: Mapping[str, nn.Module],
        weights: Mapping[str, Weight],
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if not terms or set(terms) != set(weights):
            raise InputError(
                f"WeightedSum: terms are {sorted(terms)} but weights are {sorted(weights)}; give every term one weight"
            )
        if not any(weights.values()):
            raise InputError(f"WeightedSum: weights={dict(weights)} are all 0; at least one term must count")
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: float(weights[name]) for name in terms}
        for term in self.terms.values():
            if classes and isinstance(term, ClassLoss):
                term.bind(classes)

    def forward(self, outputs: Outputs, batch: BEVBatch) -> Float[Tensor, ""]:
        """Return the weighted sum of all terms."""
        return torch.stack([w * self.terms[name](outputs, batch) for name, w in self.weights.items()]).sum()
