"""Geometry agreement of effective weights with the calibration (claims A8, A9).

The position of a cell's weights W is measured in two ways per camera. The weighted centroid of its tokens is exact for
bilinear sampling, but distant weights move it. The peak, the token of the largest W, is robust to a diffuse rest, but
exact to half a feature at best. Both are compared with the projection of the cell's centre, on the ground. A centroid
cannot leave the features' centres, so projections between the outermost centres and the image's edge are clamped to
them.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bevreshape.analysis.effective_weights import Cells, cell_indices
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import FeatureShape


@dataclass(frozen=True)
class Distance:
    """Distances between the position of weights and the projection by the calibration, in feature cells.

    Attributes:
        median: median over pairs of a cell and a camera that sees it.
        p90: their 90th percentile.
    """

    median: float
    p90: float


@dataclass(frozen=True)
class Band:
    """Agreement of the cells with a centre ``near_m`` to ``far_m`` (exclusive) metres from the ego origin.

    Attributes:
        near_m: metres.
        far_m: metres.
        pairs: number of pairs of a cell and a camera that sees it.
        centroid: distance of the weighted centroid.
        peak: distance of the largest weight.
        uniform: distance for uniform weights, by either measure.
    """

    near_m: float
    far_m: float
    pairs: int
    centroid: Distance
    peak: Distance
    uniform: Distance


@dataclass(frozen=True)
class Agreement:
    """Agreement of effective weights with the calibration.

    Attributes:
        whole: agreement of all cells.
        bands: agreement by distance, without empty bands.
        unseen: number of cells of all samples that no camera sees; they are excluded.
        silent: number of pairs of a cell and a camera that sees it but has no weight in it; they are excluded.
        share: mean share of a cell's weights in cameras that see it; 1 is best.
        uniform_share: the same for uniform weights over all tokens of the present cameras.
    """

    whole: Band
    bands: tuple[Band, ...]
    unseen: int
    silent: int
    share: float
    uniform_share: float


def projections(
    cameras: Cameras, grid: BEVGrid, source: FeatureShape, cells: Cells | None = None
) -> tuple[Float[Tensor, "b q n 2"], Bool[Tensor, "b q n"]]:
    """Project the centre of each cell, on the ground, into every camera's features.

    Returns:
        (column, row), with integers at the centres of features, and whether the camera sees it. Where it does not, the
        position is meaningless.

    Raises:
        InputError: if a cell is outside the grid, or the features do not cover the images.
    """
    source.check_covers(cameras.image_size, "projections")
    ground = grid.centers(cameras.intrinsics.device, cameras.intrinsics.dtype)
    row, col = cell_indices(cells, grid.shape, ground.device).unbind(1)
    points = F.pad(ground[row, col], (0, 1))  # q 3, on the ground
    pixels, depth = cameras.project(points.expand(cameras.batch_shape[0], -1, -1))
    positions = (pixels - source.offset_px) / source.stride
    return rearrange(positions, "b n q xy -> b q n xy"), rearrange(cameras.sees(pixels, depth), "b n q -> b q n")


def centroid(weights: Float[Tensor, "*m h w"]) -> Float[Tensor, "*m 2"]:
    """Return (column, row) of the weighted mean of the tokens; NaN if all weights are 0."""
    h, w = weights.shape[-2:]
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    col, row = (torch.arange(size, device=weights.device, dtype=weights.dtype) for size in (w, h))
    moments = torch.stack([weights.sum(-2) @ col, weights.sum(-1) @ row], dim=-1)
    return moments / weights.sum((-2, -1)).unsqueeze(-1)


def peak(weights: Float[Tensor, "*m h w"]) -> Float[Tensor, "*m 2"]:
    """Return (column, row) of the largest weight, or the mean of several equal ones."""
    return centroid((weights == weights.amax((-2, -1), keepdim=True)).to(weights.dtype))


def geometry_agreement(
    weights: Float[Tensor, "b q n h w"],
    cameras: Cameras,
    grid: BEVGrid,
    source: FeatureShape,
    *,
    cells: Cells | None = None,
    band_m: float | int = 10.0,
) -> Agreement:
    """Compare effective weights with the calibration.

    Args:
        weights: non-negative weights of any kind: Jacobian norms, or attention averaged over heads.
        cameras: the calibration of the full-size images; of every sample, or one for all.
        grid: the cells.
        source: shape of the features, with stride and offset.
        cells: the cells of the weights; ``None`` for all, row-major.
        band_m: width of the distance bands, in metres.

    Raises:
        InputError: if weights do not fit cells, cameras or features, or are negative or not finite; if ``band_m`` is
            not positive; or if no camera sees any cell.
    """
    b = weights.shape[0]
    positions, seen = projections(cameras, grid, source, cells)
    _check_weights(weights, positions, seen, source)
    if not band_m > 0:
        raise InputError(f"geometry_agreement: band_m={band_m} must be a positive width in metres")
    positions, seen = positions.expand(b, -1, -1, -1), seen.expand(b, -1, -1)
    if not seen.any():
        raise InputError(
            "geometry_agreement: no camera sees any of these cells; choose others, or check the calibration"
        )
    mass = weights.sum((-2, -1))  # b q n
    pairs = seen & (mass > 0)
    if not pairs.any():
        raise InputError("geometry_agreement: all weights are 0 in cameras that see the cells; measure a trained model")
    distances = _distances(weights, positions, pairs)  # 3 m
    row, col = cell_indices(cells, grid.shape, weights.device).unbind(1)
    away = grid.centers(weights.device)[row, col].norm(dim=-1)  # q
    band = (away / band_m).floor().long()[:, None].expand_as(pairs)[pairs]  # m
    bands = tuple(
        _band(number * band_m, (number + 1) * band_m, distances[:, band == number]) for number in band.unique().tolist()
    )
    share, uniform_share = _shares(mass, seen, cameras.full_mask)
    return Agreement(
        whole=_band(0.0, bands[-1].far_m, distances),
        bands=bands,
        unseen=int((~seen.any(-1)).sum()),
        silent=int((seen & ~pairs).sum()),
        share=share,
        uniform_share=uniform_share,
    )


def _distances(
    weights: Float[Tensor, "b q n h w"], positions: Float[Tensor, "b q n 2"], pairs: Bool[Tensor, "b q n"]
) -> Float[Tensor, "3 m"]:
    """Return the distances of centroid, peak and the middle of the features from the projections of the m pairs."""
    h, w = weights.shape[-2:]
    outermost = positions.new_tensor([w - 1, h - 1])
    targets = torch.minimum(positions, outermost).clamp(min=0)
    places = (centroid(weights), peak(weights), (outermost / 2).expand_as(targets))
    return torch.stack([(place - targets).norm(dim=-1)[pairs].to(targets) for place in places])


def _shares(
    mass: Float[Tensor, "b q n"], seen: Bool[Tensor, "b q n"], present: Bool[Tensor, "_ n"]
) -> tuple[float, float]:
    """Return the mean share of a cell's weights in cameras that see it, and that of uniform weights."""
    heard = seen.any(-1) & (mass.sum(-1) > 0)  # b q
    share = (mass * seen).sum(-1)[heard] / mass.sum(-1)[heard]
    uniform_share = seen.sum(-1)[heard] / present.unsqueeze(1).expand_as(seen).sum(-1)[heard]
    return share.mean().item(), uniform_share.mean().item()


def _check_weights(weights: Tensor, positions: Tensor, seen: Tensor, source: FeatureShape) -> None:
    b, q, n, h, w = weights.shape
    if (q, n, h, w) != (positions.shape[1], source.cameras, source.height, source.width) or seen.shape[2] != n:
        raise InputError(
            f"geometry_agreement: weights of {q} cells × {n} cameras × {h}×{w} tokens, but {positions.shape[1]} cells, "
            f"{seen.shape[2]} calibrated cameras and features of {source.cameras} × {source.height}×{source.width}; "
            "give those that the weights were measured with"
        )
    if len(positions) not in (1, b):
        raise InputError(
            f"geometry_agreement: weights are of {b} samples but the calibration is of {len(positions)}; give each "
            "its own, or one for all"
        )
    if not (weights.isfinite() & (weights >= 0)).all():
        raise InputError(
            "geometry_agreement: some weights are negative or not finite; give Jacobian norms, or the abs() of what "
            "has a sign"
        )


def _band(near_m: float, far_m: float, distances: Tensor) -> Band:
    quantiles = distances.quantile(distances.new_tensor([0.5, 0.9]), dim=1).mT  # 3 2
    return Band(near_m, far_m, distances.shape[1], *(Distance(*pair) for pair in quantiles.tolist()))
