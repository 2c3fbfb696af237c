"""Compute intersection over union of overlapping classes, over a whole data set."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, Le
from jaxtyping import Float, Int
from torch import Tensor

from bevreshape.config.options import checked
from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.data.names import check_classes
from bevreshape.errors import Divergence, InputError, suggest
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.base import ThresholdCounts, reaching
from bevreshape.model import Outputs
from bevreshape.objectives.base import compared


@checked
class BEVIoU(ThresholdCounts):
    """Compute IoU per class, at probability 0.5, at every threshold, and by distance from the ego origin.

    A cell is positive at threshold t where its probability is at least t, compared as ``logit ≥ log(t / (1 − t))``:
    then probability 0.5 is logit 0 exactly. The t are evenly spaced from 0 to 1. Counts of cells are summed over all
    valid cells of all images, in int64, before any division; a mean of per-image IoUs would differ. The counts
    of several processes thus add up exactly.

    A class with an empty union, neither predicted nor labelled, has IoU NaN and is left out of the mean. Of equally
    good thresholds the one nearest to 0.5 is best, so a class without a positive cell keeps 0.5.

    Args:
        classes: names of the k channels.
        grid: the cells; distance is that of a cell's centre.
        bands_m: ascending edges of the distance bands in metres, each band from its first edge up to, not including,
            its second; a band without cells has IoU NaN. By default at most six bands of 1, 2 or 5 · 10ⁿ m that
            hold every cell.
        thresholds: number of thresholds; odd, so that 0.5 is one.
        task: name of the head and the target.

    Set ``chosen`` (a threshold per class, such as the best ones of the validation set) to add
    ``iou_at_val_threshold/…``.

    Raises:
        InputError: when a name cannot be part of a key, the number of thresholds is even, or edges do not ascend.
    """

    higher_is_better = True
    band_of_cell: Tensor
    thresholds: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        grid: BEVGrid,
        bands_m: Sequence[Annotated[float, Ge(-10_000), Le(10_000)]] | None = None,
        thresholds: Annotated[int, Ge(1), Le(1001)] = 51,
        task: str = SEGMENTATION,
    ) -> None:
        if thresholds < 3 or thresholds % 2 == 0:
            raise InputError(f"metrics: thresholds={thresholds} must be odd and at least 3, so that 0.5 is one of them")
        values = torch.arange(thresholds, dtype=torch.float64) / (thresholds - 1)
        distance = grid.centers(dtype=torch.float64).norm(dim=-1).flatten()
        edges = (
            _bands(distance.min().item(), distance.max().item())
            if bands_m is None
            else [float(edge) for edge in bands_m]
        )
        ascend = all(low < high for low, high in pairwise(edges))
        if len(edges) < 2 or not ascend or edges[0] < 0:
            raise InputError(f"metrics: bands_m={edges} must be two or more ascending distances in metres")
        names = check_classes(classes, "metrics")
        outside = len(edges) - 1  # group of cells in no band
        super().__init__(len(names), outside + 1, values.logit().float())
        self.classes, self.grid, self.task = names, grid, task
        self.shape = (len(names), *grid.shape)
        self.bands = tuple(f"{low:g}-{high:g}m" for low, high in pairwise(edges))
        self.chosen: Mapping[str, float | int] | None = None
        band = torch.bucketize(distance, torch.tensor(edges, dtype=torch.float64), right=True) - 1
        band = torch.where((band < 0) | (band >= outside), outside, band)
        self.register_buffer("band_of_cell", band.view(1, *grid.shape), persistent=False)
        self.register_buffer("thresholds", values, persistent=False)

    def update(self, outputs: Outputs, batch: BEVBatch) -> None:
        """Count a batch: logits of the head against the target of the same name.

        Raises:
            InputError: when a shape is not that of the classes and the grid.
        """
        logits, target = compared(outputs, batch, self.task)
        for name, given in (("logits", logits), ("target", target.value), ("valid", target.valid)):
            if tuple(given.shape) != (len(logits), *self.shape):
                raise InputError(
                    f"metrics: {name} {tuple(given.shape)} must be (b, k, rows, cols) = ({len(logits)}, "
                    f"{', '.join(map(str, self.shape))}); build the metric with the classes and the grid of the data"
                )
        self.count(logits, self.band_of_cell, target.value, target.valid)

    def improves(self, name: str) -> bool | None:
        """Return whether a higher value is better: yes for an IoU, not for a threshold."""
        return None if name.startswith("best_threshold/") else True

    def compute(self) -> dict[str, Tensor]:
        """Return IoUs as scalars: ``iou/<class>``, ``iou/mean``, ``best_iou/<class>``, ``best_iou/mean``,
        ``best_threshold/<class>``, and ``iou/<class>/<from>-<to>m`` at threshold 0.5.

        Raises:
            InputError: when logits of valid cells were NaN.
        """
        whole = self._iou(self.counts.sum(1))  # k t
        half, best = whole.shape[1] // 2, self._best(whole)
        by_band = self._iou(self.counts[:, :-1])[..., half]  # k bands
        values = self._named("iou", whole[:, half]) | self._named("best_iou", whole.gather(1, best[:, None])[:, 0])
        for number, name in enumerate(self.classes):
            values[f"best_threshold/{name}"] = self.thresholds[best[number]].float()
            values |= {f"iou/{name}/{band}": by_band[number, j].float() for j, band in enumerate(self.bands)}
        if self.chosen is not None:
            at_chosen = self.iou_at(self.chosen)
            values |= {key.replace("iou/", "iou_at_val_threshold/"): value for key, value in at_chosen.items()}
        return values

    def iou_at(self, thresholds: Mapping[str, float | int]) -> dict[str, Tensor]:
        """Return ``iou/<class>`` and ``iou/mean`` at a threshold per class, such as the best ones of another data set.

        Raises:
            InputError: when a class has no threshold, or one that is not among those counted.
        """
        chosen = []
        for name in self.classes:
            if name not in thresholds:
                raise InputError(f"metrics: no threshold for class '{name}'; {suggest(name, thresholds)}")
            distance = (self.thresholds - thresholds[name]).abs()
            if not distance.min() < 1e-6:
                step = 1 / (len(self.thresholds) - 1)
                raise InputError(
                    f"metrics: threshold {thresholds[name]} of class '{name}' was not counted; choose a multiple of "
                    f"{step:g} in 0..1"
                )
            chosen.append(distance.argmin())
        with self.sync_context(should_sync=not self._is_synced, should_unsync=not self._is_synced):
            whole = self._iou(self.counts.sum(1))
        return self._named("iou", whole.gather(1, torch.stack(chosen)[:, None])[:, 0])

    def _iou(self, counts: Int[Tensor, "*m 2 bins"]) -> Float[Tensor, "*m t"]:
        """Return IoU in float64 at every threshold; NaN where the union is empty."""
        lost = int(counts[..., 0].sum())
        if lost:
            raise Divergence(
                f"metrics: the network's output is NaN in {lost} valid cells; it has diverged, lower optimizer.lr"
            )
        false, true = reaching(counts).unbind(-2)
        positive = counts[..., 1, :].sum(-1, keepdim=True)
        return true.double() / (positive + false).double()

    def _best(self, whole: Float[Tensor, "k t"]) -> Int[Tensor, " k"]:
        score = whole.nan_to_num(0.0)
        behind = score < score.amax(1, keepdim=True)
        return (self.thresholds - 0.5).abs().expand_as(score).masked_fill(behind, torch.inf).argmin(1)

    def _named(self, key: str, values: Float[Tensor, " k"]) -> dict[str, Tensor]:
        named = {f"{key}/{name}": value.float() for name, value in zip(self.classes, values, strict=True)}
        return named | {f"{key}/mean": values.nanmean().float()}


def _bands(nearest_m: float, farthest_m: float) -> list[float]:
    """Return multiples of the smallest round step whose six bands from 0 hold ``farthest_m``.

    Bands below ``nearest_m`` are left out.
    """
    power = 10.0 ** math.floor(math.log10(farthest_m / 6))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if farthest_m < 6 * step)
    return [number * step for number in range(int(nearest_m // step), int(farthest_m // step) + 2)]
