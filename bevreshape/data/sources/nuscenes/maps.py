"""Rasterize layers of a nuScenes map expansion on cells around the vehicle.

``exact`` takes the cells whose centres are inside; lines have the given width, and polygons that are not simple are
repaired. ``published`` draws as CVT and its successors: corners, measured in cells from the grid's edge, are rounded
to cell indices, and polygons are filled with their border. Areas are thus a cell longer and wider on average, and
they move half a cell backwards and to the right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevreshape.geometry import BEVGrid
from bevreshape.geometry.rasterize import Floats, Ring, rasterize_polygons

AREAS = ("drivable_area", "road_segment", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area")
LINES = ("road_divider", "lane_divider")
LAYERS = (*AREAS, *LINES)
"""Layers that are stored of a map, in the order of the bits."""

Pose = NDArray[np.float64]
"""``world_from_ego`` (4, 4), a rotation about the vertical and a translation."""


@dataclass(frozen=True)
class Layer:
    """Hold the shapes of a layer, in metres of the map.

    Attributes:
        shapes: the rings of every shape; for lines those of strips of the given width.
        raw: every shape as stored in the map: outer ring and holes of an area, points (p, 2) of a line.
        bounds: least x, least y, greatest x, greatest y of every shape.
    """

    shapes: Sequence[Sequence[Ring]]
    raw: Sequence[Sequence[Ring]]
    bounds: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        bounds = [(*points.min(0), *points.max(0)) for points in (np.concatenate(list(rings)) for rings in self.shapes)]
        object.__setattr__(self, "bounds", np.array(bounds).reshape(-1, 4))

    def near(self, world_from_ego: Pose, radius_m: float) -> list[int]:
        """Return indices of the shapes that may be within a distance of the vehicle."""
        x, y = world_from_ego[:2, 3]
        low_x, low_y, high_x, high_y = self.bounds.T
        met = (low_x <= x + radius_m) & (high_x >= x - radius_m) & (low_y <= y + radius_m) & (high_y >= y - radius_m)
        return [int(number) for number in np.flatnonzero(met)]


def read_layers(table: Any, line_width_m: float) -> tuple[dict[str, Layer], list[str]]:
    """Return the layers of the devkit's ``NuScenesMap``.

    Args:
        table: the map.
        line_width_m: width of lines, in metres.

    Returns:
        The layers, and the shapes left out because they are empty.
    """
    from shapely import make_valid
    from shapely.geometry.polygon import orient

    lost: list[str] = []

    def outlines(polygon: Any) -> list[Ring]:
        return [np.asarray(ring.coords)[:, :2] for ring in (polygon.exterior, *polygon.interiors)]

    def rings(shape: Any) -> list[Ring]:
        """Return the rings of all parts with an area."""
        if hasattr(shape, "geoms"):  # a repaired shape may be a nested collection
            return [ring for part in shape.geoms for ring in rings(part)]
        return outlines(orient(shape)) if shape.area > 0 else []

    def layer(name: str, shapes: Mapping[str, Any], raw: Mapping[str, Sequence[Ring]]) -> Layer:
        found = {token: rings(shape) for token, shape in shapes.items()}
        lost.extend(f"{name} {token}: nothing is inside" for token, own in found.items() if not own)
        kept = [token for token, own in found.items() if own]
        return Layer([found[token] for token in kept], [raw[token] for token in kept])

    layers = {}
    for name in AREAS:
        tokens = [
            token
            for record in getattr(table, name)
            for token in record.get("polygon_tokens", [record.get("polygon_token")])
        ]
        polygons = {token: table.extract_polygon(token) for token in tokens}
        raw = {token: outlines(polygon) for token, polygon in polygons.items()}
        mended = {token: one if one.is_valid else make_valid(one) for token, one in polygons.items()}
        layers[name] = layer(name, mended, raw)
    for name in LINES:
        lines = {record["line_token"]: table.extract_line(record["line_token"]) for record in getattr(table, name)}
        strips = {token: line.buffer(line_width_m / 2, cap_style="flat") for token, line in lines.items()}
        layers[name] = layer(name, strips, {token: [np.asarray(line.coords)[:, :2]] for token, line in lines.items()})
    return layers, lost


def draw_exact(layers: Mapping[str, Layer], world_from_ego: Pose, grid: BEVGrid) -> NDArray[np.uint16]:
    """Return one bit for each layer, in the order of :data:`LAYERS`, (rows, cols)."""
    drawn = np.zeros(grid.shape, np.uint16)
    for bit, name in enumerate(LAYERS):
        layer = layers[name]
        near = layer.near(world_from_ego, reach(grid))
        inside = rasterize_polygons(
            [to_ego(ring, world_from_ego) for number in near for ring in layer.shapes[number]], grid
        )
        drawn |= inside.astype(np.uint16) << bit
    return drawn


def draw_published(layers: Mapping[str, Layer], world_from_ego: Pose, grid: BEVGrid) -> NDArray[np.uint16]:
    """Return :func:`draw_exact`'s bits drawn as in the published code, where a hole clears earlier shapes."""
    import cv2

    drawn = np.zeros(grid.shape, np.uint16)
    for bit, name in enumerate(LAYERS):
        layer, plane = layers[name], np.zeros(grid.shape, np.uint8)
        for number in layer.near(world_from_ego, reach(grid)):
            outer, *holes = (rounded_cells(to_ego(ring, world_from_ego), grid) for ring in layer.raw[number])
            if name in LINES:
                cv2.polylines(plane, [outer], isClosed=False, color=1, thickness=1)
                continue
            cv2.fillPoly(plane, [outer], 1)
            cv2.fillPoly(plane, holes, 0)
        drawn |= plane.astype(np.uint16) << bit
    return drawn


def rounded_cells(points: Floats, grid: BEVGrid, *, from_near: bool = False) -> NDArray[np.int32]:
    """Return the integer (col, row) at which published code draws ground points (p, 2).

    Cells are numbered by their edges but drawn at their centres, which shifts shapes by half a cell: backwards and to
    the right if counted from the far left corner, as in CVT; ahead and to the left if counted from the near right
    corner (``from_near``), as in LSS.
    """
    near = np.array([grid.left_m[0], grid.forward_m[0]])
    far = np.array([grid.left_m[1], grid.forward_m[1]])
    ground = points[:, [1, 0]]
    if not from_near:
        return ((far - ground) / grid.cell_m).round().astype(np.int32)
    last = np.array([grid.cols, grid.rows]) - 1
    return last.astype(np.int32) - ((ground - near) / grid.cell_m).round().astype(np.int32)


def to_ego(points: Floats, world_from_ego: Pose) -> Floats:
    """Transform points (p, 2) of the map into the vehicle's frame."""
    return (points - world_from_ego[:2, 3]) @ world_from_ego[:2, :2]


def reach(grid: BEVGrid) -> float:
    """Return metres from the ego origin to the farthest corner."""
    return float(np.hypot(max(map(abs, grid.forward_m)), max(map(abs, grid.left_m))))
