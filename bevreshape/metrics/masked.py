"""Count missing images."""

import torch
from torch import Tensor

from bevreshape.data.batch import BEVBatch
from bevreshape.metrics.base import BEVMetric
from bevreshape.model import Outputs


class MaskedCameras(BEVMetric):
    """Count images that were missing or unreadable, as ``masked_cameras`` if there were any."""

    masked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("masked", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Outputs, batch: BEVBatch) -> None:
        """Count a batch."""
        self.masked += (~batch.cameras.full_mask).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return ``masked_cameras``, or nothing."""
        return {"masked_cameras": self.masked.float()} if self.masked > 0 else {}
