"""Pack the explorer for a page: images, bird's-eye views, and the influence of every image feature on the cells.

Everything geometric is computed here, by :class:`~bevreshape.geometry.Cameras`; the page only reads and draws it.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.geometry.cameras import NEAR, apply_homography
from bevreshape.reporting.class_colors import class_palette
from bevreshape.reporting.drawing import GROUND, UNKNOWN, arrange_by_heading, draw_bev
from bevreshape.reporting.explorer import Cells, Explorer, Scene, View
from bevreshape.reshapers import FeatureShape

IMAGE_WIDTH_PX = 640
"""Width at which wider images are shown; pixels in texts are those of the full size."""
JPEG_QUALITY = 90
COLOR_MAP = "inferno"
"""Perceptually uniform and readable with any color vision."""


def quantise(
    weights: Float[Tensor, "q n h w"],
) -> tuple[UInt8[np.ndarray, "q t"], Float32[np.ndarray, "q"], Float32[np.ndarray, "q"]]:
    """Quantise weights to 8 bits; a cell's largest is 255.

    Returns:
        The bytes, of the tokens camera by camera and row by row; the value of one step, so that ``bytes · step`` is W
        to half a step; and the sum of each cell's weights before rounding.
    """
    values = weights.detach().double().cpu().flatten(1).numpy()
    largest = values.max(axis=1)
    levels = np.rint(values / np.where(largest > 0, largest, 1)[:, None] * 255).astype(np.uint8)
    return levels, (largest / 255).astype(np.float32), values.sum(axis=1).astype(np.float32)


def pack(weights: Float[Tensor, "q n h w"]) -> str:
    """Return W as text: base64 of zlib of :func:`quantise`'s steps, sums (both little-endian float32) and bytes."""
    levels, step, total = quantise(weights)
    content = step.astype("<f4").tobytes() + total.astype("<f4").tobytes() + levels.tobytes()
    return base64.b64encode(zlib.compress(content, 9)).decode()


def explorer_data(explorer: Explorer) -> dict[str, Any]:
    """Return the data of the page, as plain values for JSON.

    Weights are stored once under ``weights``, also if several scenes or orders share them; views hold their indices.
    """
    store: dict[str, int] = {}
    lattices = list(dict.fromkeys(entry.cells for entry in explorer.entries))
    sources = list(dict.fromkeys(entry.source for entry in explorer.entries))
    entries = [
        {
            "name": entry.name,
            "cells": lattices.index(entry.cells),
            "features": sources.index(entry.source),
            "heads": list(entry.heads),
            "orders": entry.orders,
            "views": [[_view(view, explorer.classes, store) for view in views.values()] for views in entry.views],
        }
        for entry in explorer.entries
    ]
    palette = class_palette(explorer.classes) | {"none of them": GROUND, "unknown": UNKNOWN}
    return {
        "legend": [{"name": name, "color": "#{:02x}{:02x}{:02x}".format(*rgb)} for name, rgb in palette.items()],
        "grid": _grid(explorer.grid),
        "cells": [
            {"rows": cells.rows, "cols": cells.cols, "grid": _grid(cells.grid), "centers": _rounded(cells.centers)}
            for cells in lattices
        ],
        "features": [
            {"height": s.height, "width": s.width, "stride": s.stride, "offset_px": s.offset_px} for s in sources
        ],
        "scenes": [_scene(scene, explorer, lattices, sources) for scene in explorer.scenes],
        "entries": entries,
        "weights": list(store),
        "colors": _colors(),
    }


def data_uri(kind: str, content: bytes) -> str:
    """Return content as an address inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_uri(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """Return the address of an image as JPEG or PNG, whichever is smaller."""
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
        # projection of each chosen cell: [camera, u, v]
        "projections": [_projections(scene.cameras, cells) for cells in lattices],
        # ground of each feature's centre: [x, y], null outside the grid
        "grounds": [_grounds(scene.cameras, source, explorer.grid) for source in sources],
    }


def _projections(cameras: Cameras, cells: Cells) -> list[list[list[float | int]]]:
    """Project every cell's centre on the ground: [camera, u, v] in each camera that observes it."""
    ground = cells.centers.to(cameras.intrinsics)
    pixels, depth = cameras.project(torch.cat([ground, torch.zeros_like(ground[:, :1])], dim=1)[None])
    seen = cameras.sees(pixels, depth)[0].cpu()  # n q
    places = pixels[0].double().cpu()
    return [
        [[camera, *_rounded(places[camera, cell])] for camera in seen[:, cell].nonzero().flatten().tolist()]
        for cell in range(len(cells))
    ]


def _grounds(cameras: Cameras, source: FeatureShape, grid: BEVGrid) -> list[list[float | int] | None]:
    """Return the ground (x, y) at every feature's centre, camera by camera; ``None`` outside the grid."""
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
    """Return [row, column] of every camera's image; cameras facing ahead are above, each row from left to right."""
    rows = arrange_by_heading(ego_from_cam)
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
    """Round to hundredths, of a metre or a pixel."""
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
def _colors() -> str:
    """Return 256 colors as hexadecimal RGB."""
    table = matplotlib.colormaps[COLOR_MAP](np.arange(256), bytes=True)[:, :3]
    return table.tobytes().hex()
