"""What the explorer shows: images, bird's-eye views, and how much every image feature feeds the cells; packed for a page.

Everything geometric is computed here, by :class:`~bevreshape.geometry.Cameras`; the page only looks it up and draws.
"""

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.geometry.cameras import NEAR, apply_homography
from bevreshape.reporting.drawing import GROUND, UNKNOWN, as_they_look, class_palette, draw_bev
from bevreshape.reshapers import FeatureShape

IMAGE_WIDTH_PX = 640
"""Wider images are shown at this width; pixels in words stay those of the full size."""
JPEG_QUALITY = 90
ROUNDING = 1e-3
"""How far what lies in 0..1 may be outside it, as resizing leaves it."""
COLOUR_MAP = "inferno"
"""Perceptually uniform and readable with any colour vision."""


@dataclass(frozen=True)
class Cells:
    """Cells of a reshaper whose weights are shown: those where some of its rows and columns cross.

    Attributes:
        grid: the R×C cells that the reshaper fills.
        rows: ascending, in 0..R-1.
        cols: ascending, in 0..C-1.

    Raises:
        InputError: when rows or columns are none, do not ascend or lie outside the grid.
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
        """Numbers of the cells among the R·C, row by row: W of these is shown."""
        return (torch.tensor(self.rows)[:, None] * self.grid.cols + torch.tensor(self.cols)).flatten()

    @property
    def centers(self) -> Float[Tensor, "q 2"]:
        """Ground position (x forward, y left) of their centres, in metres."""
        return self.grid.centers(dtype=torch.float64).flatten(0, 1)[self.queries]


def choose_cells(grid: BEVGrid, most: int = 20) -> Cells:
    """Cells of a reshaper in equal steps, at most so many along each side.

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
    """One input of all reshapers.

    Attributes:
        name: in the list of inputs.
        images: (n, 3, H, W) in 0..1.
        cameras: the true calibration of these images, b = 1; what a reshaper was told may be another.
        target: (k, rows, cols), 0 or 1.
        valid: (k, rows, cols), where the target is known; left out, everywhere.

    Raises:
        InputError: when images are not in 0..1 or not of the cameras' number and size, or ``valid`` is not of the target's.
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
                f"explorer: scene {self.name!r} has images {tuple(self.images.shape)} and cameras of {(b, n)} (batch, cameras) "
                f"for {self.cameras.image_size[0]}×{self.cameras.image_size[1]} pixels; give (n, 3, H, W) and the cameras of one sample"
            )
        low, high = (float(value) for value in self.images.aminmax())
        if not (-ROUNDING <= low <= high <= 1 + ROUNDING):
            raise InputError(
                f"explorer: images of scene {self.name!r} lie in {low:g}..{high:g} but 0 is black and 1 is white; divide bytes by 255"
            )
        if self.target.ndim != 3 or (self.valid is not None and self.valid.shape != self.target.shape):
            raise InputError(
                f"explorer: scene {self.name!r} has target {tuple(self.target.shape)} and valid "
                f"{None if self.valid is None else tuple(self.valid.shape)}; both must be the same (k, rows, cols)"
            )


@dataclass(frozen=True)
class View:
    """What a reshaper makes of one scene.

    Attributes:
        prediction: (k, rows, cols), probabilities.
        weights: W of the chosen cells, (q, n, h, w) or per head (a, q, n, h, w), ≥ 0: how much each feature feeds each
            cell. A feature stands where it lies in the images, also where tokens were permuted: moved back then.

    Raises:
        InputError: when these have other dimensions, a prediction is no probability, or weights are negative or not finite.
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
                f"explorer: a prediction lies in {low:g}..{high:g} but a probability in 0..1; give logits.sigmoid()"
            )
        low, high = (float(value) for value in self.weights.aminmax())
        if not (0 <= low <= high < float("inf")):
            raise InputError(
                f"explorer: weights lie in {low:g}..{high:g}; the heat map shows how much, from 0: give finite magnitudes, as W.abs()"
            )

    @property
    def heads(self) -> Tensor:
        """Weights (a, q, n, h, w)."""
        return self.weights if self.weights.ndim == 5 else self.weights.unsqueeze(0)


@dataclass(frozen=True)
class Exhibit:
    """One reshaper and what it makes of every scene.

    Attributes:
        name: in the list of reshapers.
        source: the features it reads; says which pixel a feature is centred on.
        cells: those whose weights are shown.
        views: for every scene, its views by how the tokens were ordered, such as ``{"in order": …, "permuted": …}``; the
            first is shown first.
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
                f"explorer: reshaper {self.name!r} has views by order {orders}; give every scene the same orders, at least one"
            )
        wanted = (len(self.heads), len(self.cells), self.source.cameras, self.source.height, self.source.width)
        for number, views in enumerate(self.views):
            for order, view in views.items():
                if tuple(view.heads.shape) != wanted:
                    raise InputError(
                        f"explorer: reshaper {self.name!r}, scene {number}, {order}: weights are {tuple(view.heads.shape)} "
                        f"(heads, cells, cameras, h, w) but its heads, cells and source say {wanted}; take the rows "
                        "cells.queries of W, and name every head"
                    )

    @property
    def orders(self) -> list[str]:
        """Names of the orders."""
        return list(self.views[0])


@dataclass(frozen=True)
class Explorer:
    """Scenes and reshapers, side by side.

    Attributes:
        scenes: the inputs.
        exhibits: the reshapers.
        classes: names of the k channels of targets and predictions.
        grid: of targets and predictions.
        camera_names: of the n cameras.

    Raises:
        InputError: when there is nothing to show, or scenes and reshapers are not of these classes, grid and cameras, or
            of each other.
    """

    scenes: Sequence[Scene]
    exhibits: Sequence[Exhibit]
    classes: Sequence[str]
    grid: BEVGrid
    camera_names: Sequence[str]

    def __post_init__(self) -> None:
        if not self.scenes or not self.exhibits:
            raise InputError(
                f"explorer: {len(self.scenes)} scenes and {len(self.exhibits)} reshapers; it needs at least one of each"
            )
        bev, n = (len(self.classes), *self.grid.shape), len(self.camera_names)
        for scene in self.scenes:
            if tuple(scene.target.shape) != bev or len(scene.images) != n:
                raise InputError(
                    f"explorer: scene {scene.name!r} has target {tuple(scene.target.shape)} and {len(scene.images)} cameras but "
                    f"classes, grid and camera_names say {bev} and {n}; make them of one source"
                )
        for exhibit in self.exhibits:
            self._check(exhibit, bev)

    def _check(self, exhibit: Exhibit, bev: tuple[int, ...]) -> None:
        who, source, cells = f"explorer: reshaper {exhibit.name!r}", exhibit.source, exhibit.cells.grid
        if len(exhibit.views) != len(self.scenes) or source.cameras != len(self.camera_names):
            raise InputError(
                f"{who} has views of {len(exhibit.views)} scenes and {source.cameras} cameras but there are {len(self.scenes)} and "
                f"{len(self.camera_names)}; show every scene to every reshaper"
            )
        if (cells.forward_m, cells.left_m) != (self.grid.forward_m, self.grid.left_m):
            raise InputError(
                f"{who} fills forward_m={cells.forward_m}, left_m={cells.left_m} but the target covers {self.grid.forward_m}, "
                f"{self.grid.left_m}; they must be the same ground: use grid.coarsen(…)"
            )
        for scene, views in zip(self.scenes, exhibit.views, strict=True):
            for order, view in views.items():
                if tuple(view.prediction.shape) != bev:
                    raise InputError(
                        f"{who}, scene {scene.name!r}, {order}: prediction is {tuple(view.prediction.shape)} but classes and grid say "
                        f"{bev}; upsample it as the head does"
                    )
            source.check_covers(scene.cameras.image_size, f"{who}, scene {scene.name!r}")


def quantise(
    weights: Float[Tensor, "q n h w"],
) -> tuple[UInt8[np.ndarray, "q t"], Float32[np.ndarray, "q"], Float32[np.ndarray, "q"]]:
    """8 bits a weight: a cell's largest is 255.

    Returns:
        The bytes, of the tokens camera by camera and row by row; the value of one step, so that ``bytes · step`` is W to
        half a step; and the sum of each cell's weights before rounding.
    """
    values = weights.detach().double().cpu().flatten(1).numpy()
    largest = values.max(axis=1)
    levels = np.rint(values / np.where(largest > 0, largest, 1)[:, None] * 255).astype(np.uint8)
    return levels, (largest / 255).astype(np.float32), values.sum(axis=1).astype(np.float32)


def pack(weights: Float[Tensor, "q n h w"]) -> str:
    """W as text: base64 of zlib of the steps, the sums (both little-endian float32) and the bytes of :func:`quantise`."""
    levels, step, total = quantise(weights)
    content = step.astype("<f4").tobytes() + total.astype("<f4").tobytes() + levels.tobytes()
    return base64.b64encode(zlib.compress(content, 9)).decode()


def explorer_data(explorer: Explorer) -> dict[str, Any]:
    """All that the page needs, as plain values for JSON.

    Weights stand once under ``weights``, also where several scenes or orders share them, and views hold their numbers.
    """
    store: dict[str, int] = {}
    lattices = list(dict.fromkeys(exhibit.cells for exhibit in explorer.exhibits))
    sources = list(dict.fromkeys(exhibit.source for exhibit in explorer.exhibits))
    exhibits = [
        {
            "name": exhibit.name,
            "cells": lattices.index(exhibit.cells),
            "features": sources.index(exhibit.source),
            "heads": list(exhibit.heads),
            "orders": exhibit.orders,
            "views": [[_view(view, explorer.classes, store) for view in views.values()] for views in exhibit.views],
        }
        for exhibit in explorer.exhibits
    ]
    palette = class_palette(explorer.classes) | {"none of them": GROUND, "unknown": UNKNOWN}
    return {
        "legend": [{"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*rgb)} for name, rgb in palette.items()],
        "grid": _grid(explorer.grid),
        "cells": [
            {"rows": cells.rows, "cols": cells.cols, "grid": _grid(cells.grid), "centers": _rounded(cells.centers)}
            for cells in lattices
        ],
        "features": [
            {"height": s.height, "width": s.width, "stride": s.stride, "offset_px": s.offset_px} for s in sources
        ],
        "scenes": [_scene(scene, explorer, lattices, sources) for scene in explorer.scenes],
        "exhibits": exhibits,
        "weights": list(store),
        "colours": _colours(),
    }


def data_uri(kind: str, content: bytes) -> str:
    """Content that stands in the page itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_uri(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """An image as JPEG or PNG, whichever is smaller."""
    files = {}
    for kind, options in (("jpeg", {"quality": JPEG_QUALITY, "subsampling": 0}), ("png", {"optimize": True})):
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        files[kind] = file.getvalue()
    kind = min(files, key=lambda kind: len(files[kind]))
    return data_uri(f"image/{kind}", files[kind])


def _view(view: View, classes: Sequence[str], store: dict[str, int]) -> dict[str, Any]:
    return {
        "prediction": _bev_uri(view.prediction.detach().float(), classes, None),
        "weights": [store.setdefault(pack(head), len(store)) for head in view.heads],
    }


def _scene(
    scene: Scene, explorer: Explorer, lattices: Sequence[Cells], sources: Sequence[FeatureShape]
) -> dict[str, Any]:
    height, width = scene.cameras.image_size
    places = _places(scene.cameras.ego_from_cam[0])
    return {
        "name": scene.name,
        "height": height,
        "width": width,
        "cameras": [
            {"name": name, "image": _camera_uri(image), "place": place}
            for name, image, place in zip(explorer.camera_names, scene.images, places, strict=True)
        ],
        "target": _bev_uri(scene.target.bool(), explorer.classes, scene.valid),
        # where the calibration sees each chosen cell: [camera, u, v]
        "projections": [_projections(scene.cameras, cells) for cells in lattices],
        # what ground each feature's centre shows: [x, y], null where none of the grid's
        "grounds": [_grounds(scene.cameras, source, explorer.grid) for source in sources],
    }


def _projections(cameras: Cameras, cells: Cells) -> list[list[list[float | int]]]:
    """For every cell, [camera, u, v] of its centre on the ground in each camera that sees it."""
    ground = cells.centers.to(cameras.intrinsics)
    pixels, depth = cameras.project(torch.cat([ground, torch.zeros_like(ground[:, :1])], dim=1)[None])
    seen = cameras.sees(pixels, depth)[0].cpu()  # n q
    places = pixels[0].double().cpu()
    return [
        [[camera, *_rounded(places[camera, cell])] for camera in seen[:, cell].nonzero().flatten().tolist()]
        for cell in range(len(cells))
    ]


def _grounds(cameras: Cameras, source: FeatureShape, grid: BEVGrid) -> list[list[float | int] | None]:
    """For every feature, camera by camera, the ground (x, y) on which its centre looks; ``None`` where outside the grid."""
    pixels = source.pixels(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)
    ground, side = (part[0] for part in apply_homography(cameras.ground_from_pixel, pixels))  # n t 2, n t
    inside = (
        (side > NEAR)
        & cameras.full_mask[0, :, None]
        & (ground[..., 0] >= grid.forward_m[0])
        & (ground[..., 0] <= grid.forward_m[1])
        & (ground[..., 1] >= grid.left_m[0])
        & (ground[..., 1] <= grid.left_m[1])
    )
    found = zip(_rounded(ground.flatten(0, 1)), inside.flatten().tolist(), strict=True)
    return [place if shown else None for place, shown in found]


def _places(ego_from_cam: Float[Tensor, "n 4 4"]) -> list[list[int]]:
    """[row, column] of every camera's image: those that look ahead above those that look back, each from left to right."""
    rows = as_they_look(ego_from_cam)
    places = {camera: [row, column] for row, cameras in enumerate(rows) for column, camera in enumerate(cameras)}
    return [places[camera] for camera in range(len(ego_from_cam))]


def _grid(grid: BEVGrid) -> dict[str, Any]:
    return {
        "forward_m": grid.forward_m,
        "left_m": grid.left_m,
        "cell_m": grid.cell_m,
        "rows": grid.rows,
        "cols": grid.cols,
    }


def _rounded(values: Tensor) -> Any:
    """To hundredths, of a metre or a pixel."""
    return np.round(values.detach().double().cpu().numpy(), 2).tolist()


def _camera_uri(image: Float[Tensor, "3 H W"]) -> str:
    rgb = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    height, width = rgb.shape[:2]
    if width > IMAGE_WIDTH_PX:
        size = (IMAGE_WIDTH_PX, max(1, round(height * IMAGE_WIDTH_PX / width)))
        rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
    return image_uri(rgb)


def _bev_uri(bev: Tensor, classes: Sequence[str], valid: Tensor | None) -> str:
    file = io.BytesIO()
    image = draw_bev(bev, classes, None if valid is None else valid.bool(), scale=1)
    Image.fromarray(image).save(file, "png", optimize=True)
    return data_uri("image/png", file.getvalue())


@cache
def _colours() -> str:
    """256 colours as hexadecimal RGB."""
    table = matplotlib.colormaps[COLOUR_MAP](np.arange(256), bytes=True)[:, :3]
    return table.tobytes().hex()
