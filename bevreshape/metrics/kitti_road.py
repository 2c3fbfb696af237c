"""Compute the metric of KITTI's road benchmark: confidence of road against ground truth, on cells of 5 cm."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.data.sources.kitti.road import CATEGORIES, RoadMasks
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.geometry.ipm import sample
from bevreshape.metrics.base import ThresholdCounts
from bevreshape.model import Outputs
from bevreshape.objectives.base import compared
from bevreshape.ops.tensors import index_of

log = logging.getLogger(__name__)

BENCHMARK_GRID = BEVGrid((6.0, 46.0), (-10.0, 10.0), 0.05)
"""The benchmark's cells, 800×400."""

LEVELS = 256
"""Thresholds of confidence: 0/255, 1/255, … 255/255, as of the benchmark's 8-bit maps."""


@cache
def covers_benchmark(grid: BEVGrid) -> bool:
    """Return whether ``grid`` holds the benchmark's cells; log the reason if it does not."""
    wanted = BENCHMARK_GRID
    inside = all(
        a[0] <= b[0] and b[1] <= a[1] for a, b in ((grid.forward_m, wanted.forward_m), (grid.left_m, wanted.left_m))
    )
    if not inside:
        log.warning(
            "data: the benchmark's metric is left out, its cells are forward %s, left %s m and the grid has forward "
            "%s, left %s; train on a grid that holds them",
            wanted.forward_m, wanted.left_m, grid.forward_m, grid.left_m,
        )  # fmt: skip
    return inside


def road_scores(counts: Int[Tensor, "2 levels"]) -> dict[str, Tensor]:
    """Return the benchmark's figures, in 0..1, NaN where there is nothing to count.

    ``max_f`` is the highest F1 = 2PR/(P + R) over all thresholds. ``precision``, ``recall``, ``fpr`` = FP/(FP + TN),
    ``fnr`` = FN/(TP + FN) and ``threshold`` belong to the lowest threshold that reaches it. ``ap`` is the mean of the
    highest precision at recall 0, 0.1, … 1 or more (Everingham et al. 2010), as in the development kit.

    Args:
        counts: cells without and with the class, by the number of thresholds, 1 to 256, that their confidence reaches.
    """
    negative, positive = counts.sum(-1).double()
    false, true = counts.flip(-1).cumsum(-1).flip(-1).double()  # cells that reach each threshold
    precision = torch.where(true > 0, true / (true + false), 0.0)
    f1 = 2 * true / (true + false + positive)
    best = f1.nan_to_num(0.0).argmax()
    at_level = [precision[10 * true >= tenths * positive].amax() for tenths in range(11)]
    scores = {
        "max_f": f1[best],
        "ap": torch.stack(at_level).mean(),
        "precision": precision[best],
        "recall": true[best] / positive,
        "fpr": false[best] / negative,
        "fnr": 1 - true[best] / positive,
        "threshold": best.double() / (LEVELS - 1),
    }
    return scores if positive > 0 else dict.fromkeys(scores, torch.full_like(positive, torch.nan))


class RoadMetric(ThresholdCounts):
    """Compute MaxF, AP and related figures, per category and over all, from counts over all cells of a split.

    Predictions are upsampled bilinearly onto the benchmark's cells. Cells outside the network's image count too. The
    metric is left out, which is printed, where the grid does not hold the benchmark's cells.

    Args:
        classes: names of the k channels, made from the masks of :class:`~bevreshape.data.sources.kitti.road.RoadMasks`.
        grid: of the predictions.
    """

    higher_is_better = True
    cells: Tensor

    def __init__(self, classes: Sequence[str], grid: BEVGrid) -> None:
        super().__init__(len(classes), len(CATEGORIES), torch.arange(LEVELS).double().div(LEVELS - 1).float())
        self.classes = tuple(classes)
        self.grid = grid
        self.covers = covers_benchmark(grid)
        self.lanes: set[str] = set()
        self.register_buffer("cells", grid.metric_to_cell(BENCHMARK_GRID.centers()), persistent=False)

    def update(self, outputs: Outputs, batch: BEVBatch) -> None:
        """Count a batch: its masks on the benchmark's cells.

        Raises:
            InputError: when the batch has no masks.
        """
        if not self.covers:
            return
        masks = batch.labels
        if not isinstance(masks, RoadMasks):
            raise InputError(
                "metric.kitti_road: batches have no masks of KITTI's road benchmark; choose data=kitti_road, or "
                "metric=iou"
            )
        self.lanes = {name for name in self.classes if masks.mask_of[name] == "lane"}
        target, known = masks.on_ground(batch.cameras, BENCHMARK_GRID, self.classes)  # b k R C
        logits, _ = compared(outputs, batch, SEGMENTATION)
        categories = [CATEGORIES.index(name.partition("_")[0]) for name in batch.names]
        group = index_of(categories, logits)[:, None, None]
        self.count(self.upsampled(logits.float().sigmoid()), group, target, known)

    def improves(self, name: str) -> bool | None:
        """Return whether a higher figure is better."""
        figure = name.rpartition("/")[2]
        return None if figure == "threshold" else figure not in ("fpr", "fnr")

    def upsampled(self, probabilities: Float[Tensor, "b k rows cols"]) -> Float[Tensor, "b k R C"]:
        """Resample predictions onto the benchmark's cells."""
        cells = repeat(self.cells, "R C xy -> b 1 R C xy", b=len(probabilities))
        return sample(probabilities[:, None].float(), cells)[:, 0]

    def compute(self) -> dict[str, Tensor]:
        """Return ``kitti/<class>/<category or urban>/<figure>`` as scalars, see :func:`road_scores`; a lane has ``um``.

        Raises:
            InputError: when probabilities were NaN.
        """
        if self.lost:
            raise InputError(
                f"metrics: the network's output is NaN in {self.lost} cells; it has diverged, lower optimizer.lr"
            )
        values: dict[str, Tensor] = {}
        for name, counts in zip(self.classes, self.counts[..., 1:], strict=True) if self.covers else ():
            parts = dict(zip(CATEGORIES, counts, strict=True))
            shown = {"um": parts["um"]} if name in self.lanes else parts | {"urban": counts.sum(0)}
            for part, counted in shown.items():
                values |= {f"kitti/{name}/{part}/{key}": v.float() for key, v in road_scores(counted).items()}
        return values
