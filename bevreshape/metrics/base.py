"""Define the base of all metrics, and the histogram of cells that they share."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from bevreshape.data.batch import BEVBatch
from bevreshape.model import Outputs


class BEVMetric(Metric):
    """Measure outputs against batches; ``compute`` returns scalars by names with slashes between their parts."""

    full_state_update = False

    def update(self, outputs: Outputs, batch: BEVBatch) -> None:
        """Count a batch, without waiting for the device."""
        raise NotImplementedError

    def improves(self, name: str) -> bool | None:
        """Return whether a higher value of ``name`` is better; ``None`` if neither is."""
        return self.higher_is_better


class ThresholdCounts(BEVMetric):
    """Count valid cells by class, group, target, and number of thresholds reached; only NaN reaches none.

    Counts are int64 sums over all images before any division, so the counts of several processes add up exactly.

    Args:
        classes: k.
        groups: number of groups of cells or samples.
        thresholds: ascending.
    """

    counts: Tensor
    levels: Tensor

    def __init__(self, classes: int, groups: int, thresholds: Float[Tensor, " t"]) -> None:
        super().__init__()
        self.register_buffer("levels", thresholds, persistent=False)
        bins = torch.zeros(classes, groups, 2, len(thresholds) + 1, dtype=torch.int64)
        self.add_state("counts", bins, dist_reduce_fx="sum")

    def count(
        self,
        scores: Float[Tensor, "b k rows cols"],
        group: Int[Tensor, "#b #rows #cols"],
        target: Bool[Tensor, "b k rows cols"] | Float[Tensor, "b k rows cols"],
        valid: Bool[Tensor, "b k rows cols"],
    ) -> None:
        """Add cells, without waiting for the device.

        Args:
            scores: compared with the thresholds.
            group: of samples or cells.
            target: 0 or 1.
            valid: cells that count.
        """
        k, groups, _, bins = self.counts.shape
        scores = scores.detach().float().contiguous()
        reached = torch.bucketize(scores, self.levels, right=True, out_int32=True).masked_fill(scores.isnan(), 0)
        row = torch.arange(k, device=scores.device)[:, None, None] * groups + group[:, None]  # b k rows cols
        index = (row * 2 + target.bool()) * bins + reached
        # not bincount, which makes the host wait for the device
        self.counts.view(-1).scatter_add_(0, index.flatten(), valid.long().flatten())

    @property
    def lost(self) -> int:
        """Return the number of valid cells whose score is NaN."""
        return int(self.counts[..., 0].sum())


def reaching(counts: Int[Tensor, "*m bins"]) -> Int[Tensor, "*m t"]:
    """Return the number of cells that reach each threshold, or a higher one."""
    return counts[..., 1:].flip(-1).cumsum(-1).flip(-1)
