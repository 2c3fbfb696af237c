"""Compute IoU by weather and time of day, at the thresholds of the papers."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.metrics.base import ThresholdCounts, reaching
from bevreshape.model import Outputs
from bevreshape.objectives.base import compared
from bevreshape.ops.tensors import constant

CONDITIONS = ("day", "night", "rain")
"""Conditions by words of a scene's description: a scene may be both night and rain, "after rain" is rain, and a scene
is day unless it is night."""

THRESHOLDS = (0.4, 0.5)


def conditions_of(description: str) -> tuple[str, ...]:
    """Return those of :data:`CONDITIONS` in a scene's description."""
    words = description.lower()
    found = "night" not in words, "night" in words, re.search(r"\brain", words) is not None
    return tuple(name for name, holds in zip(CONDITIONS, found, strict=True) if holds)


class ConditionIoU(ThresholdCounts):
    """Compute IoU over the whole data set and over the keyframes of each condition, at two thresholds.

    Args:
        classes: names of the k channels.
    """

    higher_is_better = True

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(len(classes), 1 + len(CONDITIONS), torch.tensor(THRESHOLDS))
        self.classes = tuple(classes)

    def update(self, outputs: Outputs, batch: BEVBatch) -> None:
        """Count a batch, under the conditions of its samples."""
        logits, target = compared(outputs, batch, SEGMENTATION)
        probabilities = logits.float().sigmoid()
        for number, condition in enumerate((None, *CONDITIONS)):
            holds = [condition is None or condition in meta.conditions for meta in batch.meta]
            valid = target.valid & constant(holds, logits, torch.bool)[:, None, None, None]
            group = torch.full((1, 1, 1), number, device=logits.device)
            self.count(probabilities, group, target.value, valid)

    def compute(self) -> dict[str, Tensor]:
        """Return ``iou_0.5/<class>/<condition>`` as scalars, NaN where the union is empty."""
        values: dict[str, Tensor] = {}
        false, true = reaching(self.counts).unbind(2)  # k c t
        positive = self.counts[:, :, 1].sum(-1, keepdim=True)
        iou = (true.double() / (positive + false).double()).float()
        for number, threshold in enumerate(THRESHOLDS):
            for k, name in enumerate(self.classes):
                named = zip(("all", *CONDITIONS), iou[k, :, number], strict=True)
                values |= {f"iou_{threshold}/{name}/{word}": value for word, value in named}
        return values
