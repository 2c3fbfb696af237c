"""Hold the content of the explorer: scenes, and the view of every reshaper of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import FeatureShape

ROUNDING = 1e-3
"""Tolerance of values in 0..1, which resizing may exceed."""


@dataclass(frozen=True)
class Cells:
    """Select cells of a reshaper whose weights are shown, where some of its rows and columns cross.

    Attributes:
        grid: the R×C cells that the reshaper fills.
        rows: ascending, in 0..R-1.
        cols: ascending, in 0..C-1.

    Raises:
        InputError: when rows or columns are empty, do not ascend or are outside the grid.
    """

    grid: BEVGrid
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    def __post_init__(self) -> None:
        for key, chosen, size in (("rows", self.rows, self.grid.rows), ("cols", self.cols, self.grid.cols)):
            if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= size:
                raise InputError(f"cells: {key}={chosen} must ascend within 0..{size - 1}; choose_cells(grid) does")

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    @property
    def queries(self) -> Int[Tensor, "q"]:
        """Return indices of the cells among the R·C, row by row; W of these is shown."""
        return (torch.tensor(self.rows)[:, None] * self.grid.cols + torch.tensor(self.cols)).flatten()

    @property
    def centers(self) -> Float[Tensor, "q 2"]:
        """Return ground positions (x forward, y left) of their centres, in metres."""
        return self.grid.centers(dtype=torch.float64).flatten(0, 1)[self.queries]


def choose_cells(grid: BEVGrid, most: int = 20) -> Cells:
    """Choose cells of a reshaper in equal steps, at most ``most`` along each side.

    Args:
        grid: the R×C cells that the reshaper fills.
        most: along a side.

    Raises:
        InputError: when ``most`` is below 1.
    """
    if most < 1:
        raise InputError(f"choose_cells: most={most} must be at least 1 cell along a side")

    def chosen(size: int) -> tuple[int, ...]:
        step = -(-size // most)
        return tuple(range((step - 1) // 2, size, step))

    return Cells(grid, chosen(grid.rows), chosen(grid.cols))


@dataclass(frozen=True)
class Scene:
    """Hold one input of all reshapers.

    Attributes:
        name: in the list of inputs.
        images: (n, 3, H, W) in 0..1.
        cameras: the true calibration of these images, b = 1; a reshaper may have been given another.
        target: (k, rows, cols), 0 or 1.
        valid: (k, rows, cols), where the target is known; by default everywhere.

    Raises:
        InputError: when images are not in 0..1 or not of the cameras' number and size, or ``valid`` is not of the
            target's.
    """

    name: str
    images: Tensor
    cameras: Cameras
    target: Tensor
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        b, n = self.cameras.batch_shape
        if b != 1 or tuple(self.images.shape) != (n, 3, *self.cameras.image_size):
            raise InputError(
                f"explorer: scene {self.name!r} has images {tuple(self.images.shape)} and cameras of {(b, n)} (batch, "
                f"cameras) for {self.cameras.image_size[0]}×{self.cameras.image_size[1]} pixels; give (n, 3, H, W) and "
                "the cameras of one sample"
            )
        low, high = (float(value) for value in self.images.aminmax())
        if not (-ROUNDING <= low <= high <= 1 + ROUNDING):
            raise InputError(
                f"explorer: images of scene {self.name!r} are in {low:g}..{high:g} but 0 is black and 1 is white; "
                "divide bytes by 255"
            )
        if self.target.ndim != 3 or (self.valid is not None and self.valid.shape != self.target.shape):
            raise InputError(
                f"explorer: scene {self.name!r} has target {tuple(self.target.shape)} and valid "
                f"{None if self.valid is None else tuple(self.valid.shape)}; both must be the same (k, rows, cols)"
            )


@dataclass(frozen=True)
class View:
    """Hold a reshaper's view of one scene.

    Attributes:
        prediction: (k, rows, cols), probabilities.
        weights: W of the chosen cells, (q, n, h, w) or per head (a, q, n, h, w), ≥ 0: the influence of each feature
            on each cell. Features are at their positions in the images; permuted tokens are moved back.

    Raises:
        InputError: when shapes differ, a prediction is not a probability, or weights are negative or not finite.
    """

    prediction: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if (
            self.prediction.ndim != 3
            or self.weights.ndim not in (4, 5)
            or 0 in (*self.prediction.shape, *self.weights.shape)
        ):
            raise InputError(
                f"explorer: prediction {tuple(self.prediction.shape)} and weights {tuple(self.weights.shape)} must be "
                "(k, rows, cols) and (q, n, h, w), or (heads, q, n, h, w)"
            )
        low, high = (float(value) for value in self.prediction.aminmax())
        if not (-ROUNDING <= low <= high <= 1 + ROUNDING):
            raise InputError(
                f"explorer: a prediction is in {low:g}..{high:g} but a probability in 0..1; give logits.sigmoid()"
            )
        low, high = (float(value) for value in self.weights.aminmax())
        if not (0 <= low <= high < float("inf")):
            raise InputError(
                f"explorer: weights are in {low:g}..{high:g}; the heat map shows magnitudes: give finite "
                "values ≥ 0, as W.abs()"
            )

    @property
    def heads(self) -> Tensor:
        """Return weights (a, q, n, h, w)."""
        return self.weights if self.weights.ndim == 5 else self.weights.unsqueeze(0)


@dataclass(frozen=True)
class ExplorerEntry:
    """Hold one reshaper and its views of every scene.

    Attributes:
        name: in the list of reshapers.
        source: shape of the features it reads; gives the pixel at each feature's centre.
        cells: those whose weights are shown.
        views: for every scene, its views by the order of tokens, such as ``{"in order": …, "permuted": …}``;
            the first is shown first.
        heads: names of the a heads.

    Raises:
        InputError: when scenes have no or different orders, or weights are not of these cells, features and heads.
    """

    name: str
    source: FeatureShape
    cells: Cells
    views: Sequence[Mapping[str, View]]
    heads: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        orders = [list(views) for views in self.views]
        if not orders or not orders[0] or any(one != orders[0] for one in orders):
            raise InputError(
                f"explorer: reshaper {self.name!r} has views by order {orders}; give every scene the same orders, at "
                "least one"
            )
        wanted = (len(self.heads), len(self.cells), self.source.cameras, self.source.height, self.source.width)
        for number, views in enumerate(self.views):
            for order, view in views.items():
                if tuple(view.heads.shape) != wanted:
                    raise InputError(
                        f"explorer: reshaper {self.name!r}, scene {number}, {order}: weights are "
                        f"{tuple(view.heads.shape)} (heads, cells, cameras, h, w) but its heads, cells and source give "
                        f"{wanted}; take the rows cells.queries of W, and name every head"
                    )

    @property
    def orders(self) -> list[str]:
        """Return the names of the orders."""
        return list(self.views[0])


@dataclass(frozen=True)
class Explorer:
    """Hold scenes and reshapers, side by side.

    Attributes:
        scenes: the inputs.
        entries: the reshapers.
        classes: names of the k channels of targets and predictions.
        grid: of targets and predictions.
        camera_names: of the n cameras.

    Raises:
        InputError: when there is nothing to show, or scenes and reshapers do not match these classes, grid and cameras,
            or each other.
    """

    scenes: Sequence[Scene]
    entries: Sequence[ExplorerEntry]
    classes: Sequence[str]
    grid: BEVGrid
    camera_names: Sequence[str]

    def __post_init__(self) -> None:
        if not self.scenes or not self.entries:
            raise InputError(
                f"explorer: {len(self.scenes)} scenes and {len(self.entries)} reshapers; it needs at least one of each"
            )
        bev, n = (len(self.classes), *self.grid.shape), len(self.camera_names)
        for scene in self.scenes:
            if tuple(scene.target.shape) != bev or len(scene.images) != n:
                raise InputError(
                    f"explorer: scene {scene.name!r} has target {tuple(scene.target.shape)} and {len(scene.images)} "
                    f"cameras but classes, grid and camera_names give {bev} and {n}; make them from one source"
                )
        for entry in self.entries:
            self._check(entry, bev)

    def _check(self, entry: ExplorerEntry, bev: tuple[int, ...]) -> None:
        who, source, cells = f"explorer: reshaper {entry.name!r}", entry.source, entry.cells.grid
        if len(entry.views) != len(self.scenes) or source.cameras != len(self.camera_names):
            raise InputError(
                f"{who} has views of {len(entry.views)} scenes and {source.cameras} cameras but there are "
                f"{len(self.scenes)} and {len(self.camera_names)}; show every scene to every reshaper"
            )
        if (cells.forward_m, cells.left_m) != (self.grid.forward_m, self.grid.left_m):
            raise InputError(
                f"{who} fills forward_m={cells.forward_m}, left_m={cells.left_m} but the target covers "
                f"{self.grid.forward_m}, {self.grid.left_m}; they must be the same ground: use grid.coarsen(…)"
            )
        for scene, views in zip(self.scenes, entry.views, strict=True):
            for order, view in views.items():
                if tuple(view.prediction.shape) != bev:
                    raise InputError(
                        f"{who}, scene {scene.name!r}, {order}: prediction is {tuple(view.prediction.shape)} but "
                        f"classes and grid give {bev}; upsample it as the head does"
                    )
            source.check_covers(scene.cameras.image_size, f"{who}, scene {scene.name!r}")
