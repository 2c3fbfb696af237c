"""IoU by what the sky is like, at the thresholds that papers use."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from bevreshape.data.batch import BEVBatch

CONDITIONS = ("day", "night", "rain")
"""By words of a scene's description; a scene may be both night and rain, what is not night is day, "after rain" is rain."""

THRESHOLDS = (0.4, 0.5)


def conditions_of(description: str) -> tuple[str, ...]:
    """Which of :data:`CONDITIONS` a scene's description says."""
    said = description.lower()
    found = "night" not in said, "night" in said, re.search(r"\brain", said) is not None
    return tuple(name for name, holds in zip(CONDITIONS, found, strict=True) if holds)


class ConditionIoU(Metric):
    """IoU over the whole data set and over the keyframes of each condition, at two thresholds.

    Args:
        classes: names of the k channels.
        title: what the data's settings are, to be printed above.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: Sequence[str], title: str) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.title = title
        shape = len(self.classes), 1 + len(CONDITIONS), len(THRESHOLDS), 2
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        probabilities: Float[Tensor, "b k rows cols"],
        target: Bool[Tensor, "b k rows cols"],
        valid: Bool[Tensor, "b k rows cols"],
        batch: BEVBatch,
    ) -> None:
        """Count a batch, under the conditions of its samples."""
        known = [[name in meta.conditions for name in CONDITIONS] for meta in batch.meta]
        shown = torch.tensor(known, device=target.device)  # b 3
        of = torch.cat([torch.ones_like(shown[:, :1]), shown], dim=1).long()  # b c
        there = target.bool() & valid
        for number, threshold in enumerate(THRESHOLDS):
            said = (probabilities >= threshold) & valid
            counted = torch.stack([(said & there).sum((2, 3)), (said | there).sum((2, 3))], dim=-1)  # b k 2
            self.counts[:, :, number] += (of[:, None, :, None] * counted[:, :, None]).sum(0)  # k c 2

    def compute(self) -> dict[str, Any]:
        """``iou_0.5/<class>/<condition>`` as scalars, NaN where the union is empty."""
        values: dict[str, Any] = {}
        for number, threshold in enumerate(THRESHOLDS):
            both, either = self.counts[:, :, number].double().unbind(-1)  # k c
            for name, row in zip(self.classes, (both / either).float(), strict=True):
                values |= {
                    f"iou_{threshold}/{name}/{word}": value
                    for word, value in zip(("all", *CONDITIONS), row, strict=True)
                }
        return values
