"""Places for the labels of points in a chart, without overlaps."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR = 5.0
"""Distance between a point and its label where there is room."""

STEP = 5.0
"""Distance between tried places."""

OVERLAP, CROSSED, LINE = 1e4, 30.0, 12.0
"""Costs of an overlap, of a leader that crosses something, and of a label on a line, in units of distance."""

PASSES = 3


class Box(NamedTuple):
    """A rectangle, x from left to right and y upwards."""

    left: float
    bottom: float
    right: float
    top: float


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    lines: Sequence[Box],
    within: Box,
) -> list[Box]:
    """Return the rectangle of the label of each point, as near to it as other labels and obstacles allow.

    Every label is placed where it costs least, the first ones first, and then all are placed again around the others.

    Args:
        points: that are labelled.
        sizes: width and height of the labels.
        obstacles: that no label may cover, such as markers.
        lines: that labels avoid where that is possible nearby, such as grid lines.
        within: rectangle of the labels.
    """
    blocked, crossed = (np.array(boxes, dtype=float).reshape(-1, 4) for boxes in (obstacles, lines))
    placed: list[Box | None] = [None] * len(points)
    for _ in range(PASSES):
        before = list(placed)
        for i, (point, size) in enumerate(zip(points, sizes, strict=True)):
            others = [box for j, box in enumerate(placed) if j != i and box is not None]
            taken = np.concatenate([blocked, np.array(others, dtype=float).reshape(-1, 4)])
            placed[i] = _place(point, size, taken, crossed, within)
        if placed == before:
            break
    return [box for box in placed if box is not None]


def leader(point: tuple[float, float], box: Box) -> tuple[float, float] | None:
    """Return the end of a line from a point to its label; ``None`` if the label is next to the point."""
    x, y = min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top)
    return None if math.hypot(x - point[0], y - point[1]) <= 2 * NEAR else (x, y)


def _place(
    point: tuple[float, float],
    size: tuple[float, float],
    taken: NDArray[np.float64],
    lines: NDArray[np.float64],
    within: Box,
) -> Box:
    """Return the best place next to the point, or anywhere if there is none without an overlap or a line."""
    best, least = np.zeros(2), math.inf
    for corners in (_next_to(point, size), _everywhere(size, within)):
        costs = _costs(corners, size, point, taken, lines, within)
        if costs.min() < least:
            best, least = corners[costs.argmin()], float(costs.min())
        if least < LINE:
            break
    left, bottom = best.tolist()
    return Box(left, bottom, left + size[0], bottom + size[1])


def _next_to(point: tuple[float, float], size: tuple[float, float]) -> NDArray[np.float64]:
    """Return lower left corners of labels around a point."""
    (x, y), (width, height) = point, size
    aside, up = 0.75 * NEAR, 0.75 * NEAR
    right, left, above, below = x + aside, x - aside - width, y + up, y - up - height
    return np.array([
        (x + NEAR, y - height / 2), (x - NEAR - width, y - height / 2), (right, above), (left, above), (right, below),
        (left, below), (x - width / 2, y + NEAR), (x - width / 2, y - NEAR - height),
    ])  # fmt: skip


def _everywhere(size: tuple[float, float], within: Box) -> NDArray[np.float64]:
    """Return lower left corners of labels all over a rectangle."""
    across = np.arange(within.left, max(within.right - size[0], within.left) + 1e-9, STEP)
    up = np.arange(within.bottom, max(within.top - size[1], within.bottom) + 1e-9, STEP)
    return np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)


def _costs(
    corners: NDArray[np.float64],
    size: tuple[float, float],
    point: tuple[float, float],
    taken: NDArray[np.float64],
    lines: NDArray[np.float64],
    within: Box,
) -> NDArray[np.float64]:
    """Return the costs of lower left corners: distance to the point, overlaps, and what the leader crosses."""
    low, high = corners, corners + size
    end = np.clip(point, low, high)
    distance = np.hypot(*(end - point).T)
    outside = (low < within[:2]).any(axis=1) | (high > np.array(within[2:]) + 1e-9).any(axis=1)
    costs = distance + OVERLAP * (_overlaps(low, high, taken) + outside) + LINE * _overlaps(low, high, lines)
    own = (taken[:, :2] <= point).all(axis=1) & (taken[:, 2:] >= point).all(axis=1)
    for share in (0.3, 0.5, 0.7, 0.9):
        at = point + share * (end - point)
        costs += CROSSED * (distance > 2 * NEAR) * _overlaps(at, at, taken[~own])
    return costs


def _overlaps(low: NDArray[np.float64], high: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return with how many boxes each rectangle overlaps."""
    apart = (low[:, None] >= boxes[None, :, 2:]) | (high[:, None] <= boxes[None, :, :2])
    return (~apart.any(axis=2)).sum(axis=1)
