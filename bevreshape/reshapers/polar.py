"""Polar maps, image columns × depth bins, and their sampling at cells of the ground."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.geometry.cameras import NEAR
from bevreshape.ops.tensors import constant, is_exporting


@dataclass(frozen=True)
class Band:
    """The range of depths that one scale covers.

    Attributes:
        near_m: start of its first bin, in metres from the camera along its horizontal heading.
        far_m: end of its last bin.
        bins: number of bins, of equal length.
    """

    near_m: float
    far_m: float
    bins: int


class PolarTaps(NamedTuple):
    """The tokens of the polar maps at the cells.

    Attributes:
        tokens: (b, p, m), indices of tokens.
        weights: (b, p, m), their weights.
    """

    tokens: Int[Tensor, "b p m"]
    weights: Float[Tensor, "b p m"]


class PolarMaps:
    """The polar maps of all cameras and scales, and their sampling at cells of the ground.

    An image column corresponds to a vertical plane through the camera, divided into ``bins`` of depth. Depth is
    measured along the camera's horizontal heading; for a level camera it is the depth along the optical axis. Each of
    several scales covers a band of depth, the coarsest the nearest, where a column is as wide as a cell (Roddick and
    Cipolla 2020).

    A cell's column is that of its centre on the ground, by the full calibration. For a level camera all points above it
    are in the same column. For a pitched camera this is an approximation that is exact on the ground. A camera sees a
    cell that is in front of it, between its first and last column and inside a band. The rows are not checked, since
    objects in the cell may be visible even if its ground is not. Maps are sampled bilinearly inside a band, and at the
    nearest token within half a bin or half a column of its borders.

    Args:
        name: name of the reshaper, at the beginning of messages.
        sources: shapes of the features, one per scale.
        grid: the cells.
        depth_m: borders of the bands in ascending order, one more than scales; ``None`` for those of the paper: from
            1 m to the grid's farthest corner, divided where a cell is as wide as a column of the next finer scale.
        bin_m: length of a bin; ``None`` for the length of a cell.
        focal_px: nominal focal length of the cameras, for the paper's borders.

    Raises:
        InputError: if borders do not ascend or their number does not fit.
    """

    def __init__(
        self,
        name: str,
        sources: Sequence[FeatureShape],
        grid: BEVGrid,
        depth_m: Sequence[float | int] | None,
        bin_m: float | int | None,
        focal_px: float | int,
    ) -> None:
        bin_m = grid.cell_m if bin_m is None else float(bin_m)
        near_first = sorted(range(len(sources)), key=lambda scale: -sources[scale].stride)
        if depth_m is None:
            edges = depth_borders([sources[scale].stride for scale in near_first], grid, bin_m, focal_px)
        else:
            edges = [float(edge) for edge in depth_m]
        if len(edges) != len(sources) + 1:
            raise InputError(
                f"{name}: depth_m={edges} has {len(edges)} borders but {len(sources)} scales need {len(sources) + 1}; "
                "write the near end, the borders between scales and the far end"
            )
        if any(near >= far for near, far in pairwise(edges)):
            raise InputError(f"{name}: depth_m={edges} must ascend; write the nearest first")
        self.grid = grid
        self.sources = sources
        self.near_first = near_first
        self.edges = edges
        self.bands = [Band(0.0, 0.0, 0)] * len(sources)
        for rank, scale in enumerate(near_first):
            bins = math.ceil((edges[rank + 1] - edges[rank]) / bin_m - 1e-6)
            self.bands[scale] = Band(edges[rank], edges[rank + 1], bins)
        sizes = [source.width * band.bins for source, band in zip(sources, self.bands, strict=True)]
        self.starts = [sum(sizes[:scale]) for scale in range(len(sizes))]
        self.tokens = sum(sizes)

    def locate(self, cameras: Cameras) -> PolarTaps:
        """Return the tokens of the maps at every cell, averaged over the cameras that see it."""
        homography, ahead = cameras.pixel_from_ground, heading(cameras)
        behind = -(ahead * cameras.centers[..., :2]).sum(-1, keepdim=True)
        across, _, distance, depth = self._on_cells(
            torch.cat([homography, torch.cat([ahead, behind], dim=-1).unsqueeze(-2)], dim=-2)
        ).unbind(2)  # b n p
        seen = (distance > NEAR) & (depth >= self.edges[0]) & (depth < self.edges[-1]) & cameras.full_mask[..., None]
        u = across / torch.where(seen, distance, 1)
        seen = seen & (u >= -0.5) & (u < cameras.image_size[1] - 0.5)
        borders = constant(self.edges[1:-1], u)
        scale = (depth >= borders[:, None, None, None]).sum(0)  # from near to far
        if self.near_first != list(range(len(self.sources))):
            scale = _look_up([(scale,) for scale in self.near_first], scale, torch.long)[0]
        values = []
        for source, band, layout in zip(self.sources, self.bands, self._layout(), strict=True):
            bins_per_metre = band.bins / (band.far_m - band.near_m)
            slopes, starts = (
                (1 / source.stride, bins_per_metre),
                (-source.offset_px / source.stride, -band.near_m * bins_per_metre - 0.5),
            )
            values.append((*slopes, *starts, *layout))
        table = _look_up(values, scale, u.dtype)
        position = torch.addcmul(table[2:4], torch.stack([u, depth]), table[:2])
        position = torch.where(seen, position, 0).clamp(min=0).minimum(table[4:6])
        return self._corners(position, table[4:].long(), seen / seen.sum(1, keepdim=True).clamp(min=1))

    def _on_cells(self, linear: Float[Tensor, "b n i 3"]) -> Float[Tensor, "b n i p"]:
        """Return functions linear in (x, y, 1) at the cells' centres."""
        centers = self.grid.centers(linear.device, linear.dtype)
        rows = linear[..., :1] * centers[:, 0, 0]
        cols = linear[..., 1:2] * centers[0, :, 1] + linear[..., 2:]
        return (rows.unsqueeze(-1) + cols.unsqueeze(-2)).flatten(-2)

    def corners(
        self,
        column: Float[Tensor, "b n p"],
        bins: Float[Tensor, "b n p"],
        scale: Int[Tensor, "b n p"],
        weight: Float[Tensor, "b n p"],
    ) -> PolarTaps:
        """Return the tokens around positions in the maps, with bilinear weights; tokens outside a map are 0.

        Args:
            column: 0 is the centre of the map's first column.
            bins: 0 is the centre of its first bin.
            scale: index of the map's scale.
            weight: weight of the sample.

        Returns:
            Four tokens per camera, m = 4·n.
        """
        return self._corners(torch.stack([column, bins]), _look_up(self._layout(), scale, torch.long), weight)

    def _layout(self) -> list[tuple[int, int, int, int]]:
        """Return last column, last bin, number of bins and first token of every scale's map."""
        return [
            (source.width - 1, band.bins - 1, band.bins, start)
            for source, band, start in zip(self.sources, self.bands, self.starts, strict=True)
        ]

    def _corners(self, position: Tensor, layout: Tensor, weight: Tensor) -> PolarTaps:
        low = position.floor()
        part = position - low  # 2 b n p, of column and bin
        pair = torch.stack([low, low + 1]).long()
        inside = pair.clamp(min=0).minimum(layout[:2])
        share = torch.stack([1 - part, part]) * (inside == pair)
        first = (self.tokens + 1) * torch.arange(position.shape[2], device=position.device)[:, None]  # n 1, of a camera
        tokens = (inside[:, 0] * layout[2] + layout[3] + first).unsqueeze(1) + inside[:, 1]  # 2 2 b n p
        weights = (weight * share[:, 0]).unsqueeze(1) * share[:, 1]
        tokens = torch.where(weights == 0, self.tokens + first, tokens)  # 0 · NaN would be NaN
        tokens, weights = (rearrange(x, "i j b n p -> b p (n i j)") for x in (tokens, weights))
        return PolarTaps(tokens, weights)

    def read(self, maps: Sequence[Tensor], taps: PolarTaps) -> Float[Tensor, "b d R C"]:
        """Sum the weighted tokens of every cell.

        Args:
            maps: (b, n, w, bins, d), one per scale.
            taps: from :meth:`locate`, of b samples or of one shared by all.
        """
        nothing = torch.zeros_like(maps[0][:, :, 0, :1])  # b n 1 d, target of taps with weight 0
        table = torch.cat([*(polar.flatten(2, 3) for polar in maps), nothing], dim=2).flatten(1, 2)  # b n·(tokens+1) d
        b, dtype = table.shape[0], table.dtype
        table = table if dtype == torch.float64 else table.float()
        tokens, weights = taps.tokens.expand(b, -1, -1), taps.weights.to(table.dtype).expand(b, -1, -1)
        tokens = tokens + table.shape[1] * torch.arange(b, device=tokens.device)[:, None, None]
        flat = table.flatten(0, 1)
        if is_exporting() or torch.onnx.is_in_onnx_export():
            bev = (flat[tokens] * weights.unsqueeze(-1)).sum(2)
        else:
            with torch.autocast(table.device.type, enabled=False):
                bev = F.embedding_bag(
                    tokens.flatten(0, 1), flat, per_sample_weights=weights.flatten(0, 1), mode="sum"
                ).unflatten(0, (b, -1))
        return rearrange(bev, "b (R C) d -> b d R C", R=self.grid.rows).to(dtype)


def _look_up(values: Sequence[tuple[float | int, ...]], row: Tensor, dtype: torch.dtype) -> Tensor:
    """Return every column of a table at these rows, (columns, *row.shape)."""
    table = constant(values, row, dtype).mT
    if len(values) == 1:
        return table[..., None, None]
    return table.index_select(1, row.flatten()).unflatten(1, row.shape)


def heading(cameras: Cameras) -> Float[Tensor, "b n 2"]:
    """Return the optical axes' direction on the ground (x, y), of length 1; shorter if a camera points down."""
    axis = cameras.ego_from_cam[..., :2, 2]
    return axis / axis.square().sum(-1, keepdim=True).sqrt().clamp(min=NEAR)


def depth_borders(strides: Sequence[int], grid: BEVGrid, bin_m: float, focal_px: float | int) -> list[float]:
    """Return the borders of the bands from near to far, over the depth of the grid.

    A scale's band begins at the last bin in which its columns are no wider than a bin, ``⌊focal / stride⌋`` bins away.
    """
    corner = math.hypot(max(map(abs, grid.forward_m)), max(map(abs, grid.left_m)))
    far = math.ceil(corner / bin_m - 1e-6) * bin_m
    borders = [min(1.0, far / 2)]
    for number, stride in enumerate(strides[1:], 1):
        wanted = math.floor(focal_px / stride) * bin_m
        borders.append(min(max(wanted, borders[-1] + bin_m), far - (len(strides) - number) * bin_m))
    return [*borders, far]


def nominal_focal(source: FeatureShape) -> float:
    """Return the default focal length in pixels: 0.8 of the image's width, as of nuScenes' front cameras."""
    return 0.8 * source.width * source.stride
