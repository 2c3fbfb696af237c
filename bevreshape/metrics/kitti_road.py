"""The metric of KITTI's road benchmark: how well a confidence separates road from what is none, on cells of 5 cm."""

import sys
from collections.abc import Callable, Mapping

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.geometry.ipm import sample

CATEGORIES = ("um", "umm", "uu")
"""Urban marked, urban multiple marked lanes, urban unmarked: how a frame's name begins."""

BENCHMARK_GRID = BEVGrid((6.0, 46.0), (-10.0, 10.0), 0.05)
"""The benchmark's cells, 800×400."""

LEVELS = 256
"""Confidence is compared with 0/255, 1/255, … 255/255, as the benchmark's 8-bit maps are."""


def covers_benchmark(grid: BEVGrid) -> bool:
    """Whether predictions on ``grid`` can be judged on the benchmark's cells; where not, it is printed why."""
    wanted = BENCHMARK_GRID
    inside = all(
        a[0] <= b[0] and b[1] <= a[1] for a, b in ((grid.forward_m, wanted.forward_m), (grid.left_m, wanted.left_m))
    )
    if not inside:
        print(
            f"data: the benchmark's metric is left out, its cells lie forward {wanted.forward_m}, left {wanted.left_m} m and the "
            f"grid has forward {grid.forward_m}, left {grid.left_m}; train on a grid that holds them",
            file=sys.stderr,
        )
    return inside


def road_scores(counts: Int[Tensor, "2 levels"]) -> dict[str, Tensor]:
    """The benchmark's figures, in 0..1, NaN where there is nothing to count.

    ``max_f`` is the highest F1 = 2PR/(P + R) over all thresholds, ``precision``, ``recall``, ``fpr`` = FP/(FP + TN),
    ``fnr`` = FN/(TP + FN) and ``threshold`` are those at the lowest threshold that reaches it, and ``ap`` is the mean of the
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


class RoadMetric(Metric):
    """MaxF, AP and what goes with them, per category and over all, counted over all cells of a split before anything is divided.

    Predictions are upsampled bilinearly onto the benchmark's cells. What the network's image does not show counts too.

    Args:
        masks: for every class, ``road``, or ``lane``, which the category ``um`` alone has.
        grid: of the predictions; it holds the benchmark's.
        truth: target and where it is known, both (b, k, R, C), of a batch on given cells.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor
    cells: Tensor
    levels: Tensor

    def __init__(
        self, masks: Mapping[str, str], grid: BEVGrid, truth: Callable[[BEVBatch, BEVGrid], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.masks = dict(masks)
        self.grid = grid
        self._truth = truth
        self.register_buffer("cells", grid.metric_to_cell(BENCHMARK_GRID.centers()), persistent=False)
        self.register_buffer("levels", torch.arange(LEVELS).double().div(LEVELS - 1).float(), persistent=False)
        # Cells by class, category, target, and number of levels that they reach; only NaN reaches none.
        bins = torch.zeros(len(self.masks), len(CATEGORIES), 2, LEVELS + 1, dtype=torch.int64)
        self.add_state("counts", bins, dist_reduce_fx="sum")

    def update(
        self,
        probabilities: Float[Tensor, "b k rows cols"],
        target: Bool[Tensor, "b k rows cols"],
        valid: Bool[Tensor, "b k rows cols"],
        batch: BEVBatch,
    ) -> None:
        """Count a batch: its own ``labels`` on the benchmark's cells, in place of ``target`` and ``valid``."""
        truth, known = self._truth(batch, BENCHMARK_GRID)  # b k R C
        categories = torch.tensor([CATEGORIES.index(name.partition("_")[0]) for name in batch.names])
        confidence = self.upsampled(probabilities)
        reached = torch.bucketize(confidence, self.levels, right=True, out_int32=True).masked_fill(
            confidence.isnan(), 0
        )
        row = torch.arange(len(self.masks))[:, None] * len(CATEGORIES) + categories  # k b
        row = row.T[..., None, None].to(reached.device)
        index = (row * 2 + truth) * (LEVELS + 1) + reached
        self.counts.view(-1).scatter_add_(0, index.flatten(), known.long().flatten())

    def upsampled(self, probabilities: Float[Tensor, "b k rows cols"]) -> Float[Tensor, "b k R C"]:
        """Predictions on the benchmark's cells."""
        cells = repeat(self.cells, "R C xy -> b 1 R C xy", b=len(probabilities))
        return sample(probabilities[:, None].float(), cells)[:, 0]

    def compute(self) -> dict[str, Tensor]:
        """``kitti/<class>/<category or urban>/<figure>`` as scalars, see :func:`road_scores`; a lane has ``um`` alone.

        Raises:
            InputError: when probabilities were NaN.
        """
        lost = int(self.counts[..., 0].sum())
        if lost:
            raise InputError(
                f"metrics: the network's output is NaN in {lost} cells; it has diverged, lower optimizer.lr"
            )
        values: dict[str, Tensor] = {}
        for (name, mask), counts in zip(self.masks.items(), self.counts[..., 1:], strict=True):
            parts = dict(zip(CATEGORIES, counts, strict=True))
            shown = {"um": parts["um"]} if mask == "lane" else parts | {"urban": counts.sum(0)}
            for part, counted in shown.items():
                values |= {f"kitti/{name}/{part}/{key}": v.float() for key, v in road_scores(counted).items()}
        return values
