"""Bilinear sampling of features at projected points, shared by reshapers that project.

Most cameras do not see most points. The visible pairs of a point and a camera are therefore listed, by point. The four
features around a pair's position are its taps; they are summed with their weights. No other features are read: those of
a camera that sees nothing, or was dropped, may be NaN.

:func:`project_points` finds the taps, :func:`sample_features` sums them. :class:`WeightedGather` is the fast path;
exported programs use plain operations with the same result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.geometry.cameras import NEAR, compose
from bevreshape.geometry.ipm import sample
from bevreshape.ops.tensors import constant, is_exporting
from bevreshape.ops.weighted_gather import WeightedGather, owners

PADDINGS = ("border", "zeros")

SLACK = 0.5
"""Margin by which a cell must miss an image to be culled, in pixels times metres (metres for depth).

It exceeds float32's rounding.
"""


class Taps(NamedTuple):
    """The features around the projections of points.

    Attributes:
        rows: (m, 4), the rows of the taps in the table of the features of all b samples, (b·n·h·w, c). The m pairs of a
            point and a camera that sees it are sorted by point.
        weights: (m, 4), the weights of the taps.
        starts: (b, p), the first pair of every point.
    """

    rows: Tensor
    weights: Tensor
    starts: Tensor


class Positions(NamedTuple):
    """Sampling positions for exported programs, whose shapes may not depend on values.

    Attributes:
        positions: (b, n, p, 2), column and row in the features of camera n at point p.
        weights: (b, n, p), 0 if the camera does not see the point.
    """

    positions: Tensor
    weights: Tensor


@torch.no_grad()
def project_points(
    cameras: Cameras, grid: BEVGrid, heights_m: Sequence[float], source: FeatureShape
) -> Taps | Positions:
    """Project the points above the centre of every cell into the features of the cameras that see them.

    The number of pairs is known only on the device, so the host waits for it twice.

    Args:
        cameras: those of the full-size images.
        grid: R×C cells.
        heights_m: k heights above the ground, ascending.
        source: the shape of the features.

    Returns:
        Input of :func:`sample_features` for p = R·C·k points; the heights of a cell are adjacent.
    """
    heights = constant(heights_m, cameras.intrinsics)
    if is_exporting():
        return _project_all(cameras, grid, heights, source)
    pixel_from_ego = compose(cameras.intrinsics, cameras.cam_from_ego[..., :3, :])  # b n 3 4
    centers = grid.centers(heights.device, heights.dtype)  # R C 2
    batch, row, col, camera = _columns_in_view(cameras, pixel_from_ego, centers, heights).unbind(1)  # q columns
    along_x, along_y, along_z, rest = pixel_from_ego[batch, camera].permute(2, 1, 0).unsqueeze(-1)  # 3 q 1
    x, y = centers[row, col].mT.unsqueeze(-1)  # q 1
    image = along_x * x + along_y * y + along_z * heights + rest  # 3 q k
    pixels, depth = image[:2] / torch.where(image[2] > NEAR, image[2], 1), image[2]  # 2 q k, q k
    pairs = _inside(pixels, depth, cameras.image_size).flatten().nonzero().squeeze(1)  # m of the q·k
    k, cells = len(heights), grid.rows * grid.cols
    point = torch.arange(k, device=batch.device) + (batch * cells + row * grid.cols + col).unsqueeze(1) * k  # q k
    point, order = point.flatten()[pairs].sort(stable=True)
    pairs = pairs[order]
    positions = (pixels.flatten(1)[:, pairs] - source.offset_px) / source.stride  # 2 m
    view = (batch * cameras.batch_shape[1] + camera)[pairs // k]
    return _taps(positions, view, point, (cameras.batch_shape[0], cells * k), source)


def _inside(pixels: Tensor, depth: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return whether (u, v) is inside the image, as :meth:`Cameras.sees` does."""
    height, width = image_size
    u, v = pixels
    return (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5) & (depth > NEAR)


def _columns_in_view(cameras: Cameras, pixel_from_ego: Tensor, centers: Tensor, heights: Tensor) -> Tensor:
    """Return the columns of points that a camera may see in part: (q, 4) indices of sample, row, column and camera.

    The indices ascend. A point is seen if five functions of it are positive: its signed distances from the image's
    edges times depth, and depth itself. All are linear, so the largest value of a column is at one of its two ends.
    """
    height, width = cameras.image_size
    u, v, depth = pixel_from_ego.unbind(2)  # b n 4
    sides = (u + 0.5 * depth, (width - 0.5) * depth - u, v + 0.5 * depth, (height - 0.5) * depth - v, depth)
    along_x, along_y, along_z, rest = torch.stack(sides, dim=2).unsqueeze(-1).unbind(3)  # b n 5 1
    rest = rest + torch.maximum(along_z * heights[0], along_z * heights[-1])
    over_x, over_y = along_x * centers[:, 0, 0], along_y * centers[0, :, 1] + rest  # b n 5 R, b n 5 C
    nearest = (over_x.unsqueeze(-1) + over_y.unsqueeze(-2)).amin(2)  # b n R C
    return rearrange((nearest > -SLACK) & cameras.full_mask[..., None, None], "b n R C -> b R C n").nonzero()


def _project_all(cameras: Cameras, grid: BEVGrid, heights: Tensor, source: FeatureShape) -> Positions:
    """Project every point into every camera."""
    centers = grid.centers(heights.device, heights.dtype).flatten(0, 1)  # R·C 2
    ground = centers.repeat_interleave(len(heights), dim=0)
    points = torch.cat([ground, heights.repeat(len(centers))[:, None]], dim=-1)
    pixels, depth = cameras.project(points.expand(cameras.batch_shape[0], -1, -1))
    seen = cameras.sees(pixels, depth)
    weights = seen / seen.sum(1, keepdim=True).clamp(min=1)
    return Positions((pixels - source.offset_px) / source.stride, weights)


@torch.no_grad()
def taps_at(
    positions: Float[Tensor, "b n p 2"], seen: Bool[Tensor, "b n p"], source: FeatureShape, padding: str = "border"
) -> Taps:
    """Return the taps of points at known positions, averaged over the cameras that see them.

    Args:
        positions: column and row in features; integers are their centres.
        seen: where a camera sees a point.
        source: the shape of the features.
        padding: value of a tap outside the features: the nearest feature (``border``) or 0 (``zeros``).

    Raises:
        InputError: if the padding is unknown.
    """
    if padding not in PADDINGS:
        raise InputError(f"sampling: there is no padding={padding}; {suggest(padding, PADDINGS)}")
    b, n, p = seen.shape
    batch, point, camera = rearrange(seen, "b n p -> b p n").nonzero(as_tuple=True)
    return _taps(positions[batch, camera, point].mT, batch * n + camera, batch * p + point, (b, p), source, padding)


def _taps(
    positions: Tensor,
    view: Tensor,
    point: Tensor,
    shape: tuple[int, int],
    source: FeatureShape,
    padding: str = "border",
) -> Taps:
    """Return the taps of pairs by ascending point.

    Args:
        positions: (2, m), column and row in features.
        view: (m,), camera of every pair, counted over the whole batch.
        point: (m,), point of every pair, counted over the whole batch.
        shape: (b, p).
        source: the shape of the features.
        padding: see :func:`taps_at`.
    """
    counts = torch.zeros(shape, dtype=torch.int32, device=point.device).flatten()
    counts.index_add_(0, point, torch.ones_like(point, dtype=torch.int32))
    size = constant([[source.width], [source.height]], positions)
    if padding == "border":
        positions = torch.minimum(positions, size - 1).clamp(min=0)
    first = torch.minimum(positions.floor(), size - 2).clamp(min=0)
    beyond = positions - first  # in 0..1, or outside the features
    near_far = torch.stack([1 - beyond, beyond])  # 2 2 m
    if padding == "zeros":
        near_far = torch.minimum(near_far, 2 - near_far).clamp(min=0)
        near_far[1] *= size > 1
    near_far_x, near_far_y = near_far.unbind(1)  # 2 m
    weights = near_far_y.unsqueeze(1) * near_far_x / counts[point]  # 2 2 m, rows before columns
    column, row = first.int()
    rows = (view.int() * source.height + row) * source.width + column
    return Taps(
        rows[:, None] + constant(_steps(source.height, source.width), rows),
        weights.flatten(0, 1).mT.contiguous(),
        (counts.cumsum(0, dtype=torch.int32) - counts).reshape(shape),
    )


def sample_features(
    features: Float[Tensor, "b n c h w"], located: Taps | Positions, together: int = 1
) -> Float[Tensor, "b q c"]:
    """Sum the features of every point over its taps, in float32, or in float64 if the features are.

    Args:
        features: features of all cameras.
        located: from :func:`project_points` or :func:`taps_at`, for b samples or for one shared by all.
        together: number of consecutive points that are summed, q = p / together.

    Returns:
        Channels last; 0 for points that no camera sees. Gradients reach the features, not the calibration.
    """
    values = features if features.dtype == torch.float64 else features.float()
    if isinstance(located, Positions):
        return _sample_all(values, located, together)
    rows, weights, starts = located
    b, _, c, h, w = features.shape
    starts = starts[:, ::together]
    weights = weights.to(values.dtype)
    if is_exporting():
        return _sample_plainly(rearrange(values, "b n c h w -> b (n h w) c"), rows, weights, starts)
    if starts.shape[0] < b:  # one rig for all samples
        sample_number = torch.arange(b, dtype=torch.int32, device=rows.device)[:, None, None]
        rows = (rows + sample_number * (features[0].numel() // c)).flatten(0, 1)
        starts = starts + sample_number[:, 0] * weights.shape[0]
        weights = weights.expand(b, -1, -1).flatten(0, 1)
    table = rearrange(values, "b n c h w -> (b n h w) c").contiguous()
    return WeightedGather.apply(table, rows, weights, starts.flatten(), _steps(h, w)).reshape(b, -1, c)


def _sample_plainly(tokens: Tensor, rows: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Compute :class:`WeightedGather` in operations that every export format has, for tables of one sample."""
    owner = owners(starts[0].long(), rows.shape[0])  # ONNX scatters no int32
    points = tokens.new_zeros(tokens.shape[0], starts.shape[1], tokens.shape[2])
    for row, weight in zip(rows.unbind(1), weights.unbind(1), strict=True):
        points = points.index_add(1, owner, tokens.index_select(1, row) * weight[:, None])
    return points


def _sample_all(values: Tensor, located: Positions, together: int) -> Tensor:
    """Sample every camera at every point, in operations that every export format has."""
    positions = located.positions.expand(values.shape[0], -1, -1, -1)
    weights = located.weights.to(values.dtype).unsqueeze(2)
    views = sample(values, positions.unsqueeze(2)).squeeze(3)  # b n c p
    points = torch.where(weights > 0, views * weights, 0).sum(1)
    return rearrange(points, "b c (q together) -> b q c together", together=together).sum(-1)


def _steps(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the distances from a pair's first tap to all four, in rows of the table."""
    right, below = min(1, width - 1), min(1, height - 1) * width
    return 0, right, below, below + right
