"""The column-wise fully connected view transformer of Pyramid Occupancy Networks."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import Count, Depths, FocalLength, HeightRange, Length, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.geometry.cameras import NEAR
from bevreshape.ops.linear import grouped_linear
from bevreshape.ops.tensors import constant
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.polar import PolarMaps, PolarTaps, heading, nominal_focal

PUBLISHED = {
    "conv.weight": "project.weight",
    "conv.bias": "project.bias",
    "bn.weight": "norm.weight",
    "bn.bias": "norm.bias",
    "fc.weight": "weight",
    "fc.bias": "bias",
}
"""Names in the published weights, and the names here."""


class Windows(NamedTuple):
    """The rows of the features that are the input of W, for s scales.

    Attributes:
        rows: (b, n, s, k + 1), one row more than the longest window; rows outside the image are clamped to its border.
        upper: (b, n, s, k), weight of the upper of two neighbouring rows, 0 outside the image.
        lower: (b, n, s, k), weight of the lower one.
    """

    rows: Int[Tensor, "b n s k1"]
    upper: Float[Tensor, "b n s k"]
    lower: Float[Tensor, "b n s k"]


class ColumnGeometry(NamedTuple):
    """Values that depend on the calibration alone.

    Attributes:
        taps: samples of the polar maps.
        windows: windows of the images' rows.
        camera_mask: (b, n), false for a dropped camera; ``None`` if all are present.
    """

    taps: PolarTaps
    windows: Windows
    camera_mask: Tensor | None


class Columns(nn.Module):
    """One scale: ``ReLU(GroupNorm(P·X))``, and one W from a column's rows × channels to its bins × channels.

    Args:
        source: the features.
        dim: d.
        rows: k, rows of the features that are the input of W; ``None`` for all of them.
        bins: number of depth bins.
        groups: number of groups into which W divides the channels.
    """

    def __init__(self, source: FeatureShape, dim: int, rows: int | None, bins: int, groups: int) -> None:
        super().__init__()
        self.rows = rows
        self.bins = bins
        self.groups = groups
        width_in, width_out = dim // groups * (rows or source.height), dim // groups * bins
        self.project = nn.Linear(source.channels, dim)
        self.norm = nn.GroupNorm(math.gcd(16, dim), dim)
        self.weight = nn.Parameter(torch.empty(groups, width_out, width_in))  # g (bins d/g) (d/g k)
        self.bias = nn.Parameter(torch.empty(groups, 1, width_out))
        bound = 1 / math.sqrt(width_in)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, window: Sequence[Tensor], present: Tensor | None) -> Tensor:
        """Map (b, n, c, h, w), its part of :meth:`ColumnMLP.windows`, and (b, n) → (b, n, w, bins, d)."""
        n, w = x.shape[1], x.shape[-1]
        x = x.flatten(0, 1)  # (b n) c h w
        present = None if present is None else present.reshape(-1, 1, 1, 1)
        if self.rows is None:
            x = x if present is None else torch.where(present, x, 0)
            x = self._project(x) + self.project.bias[:, None, None]
        else:
            x = self._window(x, self.rows, [values.flatten(0, 1) for values in window], present)
        x = rearrange(F.relu(self.norm(x)), "b (g d) k w -> g (b w) (d k)", g=self.groups)
        x = grouped_linear(x, self.weight, self.bias)  # g (b n w) (bins d/g)
        return rearrange(x, "g (b n w) (z d) -> b n w z (g d)", n=n, w=w, z=self.bins)

    def _project(self, x: Tensor) -> Tensor:
        # as a plain product, to avoid a convolution's reordering
        weight = self.project.weight.expand(x.shape[0], -1, -1)
        return grouped_linear(weight, x.flatten(2).mT).unflatten(2, x.shape[2:])

    def _window(self, x: Tensor, rows: int, window: Sequence[Tensor], present: Tensor | None) -> Tensor:
        """Return (b n) d k w, interpolated if the window begins between rows; zeros are projected outside the image."""
        b, c, h, w = x.shape
        row, upper, lower = window
        flat = h * torch.arange(b * c, device=x.device).reshape(b, c, 1) + row[:, None, : rows + 1]
        x = F.embedding(flat, x.reshape(-1, w))  # (b n) c k+1 w
        x = self._project(x if present is None else torch.where(present, x, 0))
        upper, lower = (part[:, None, :rows, None].to(x.dtype) for part in (upper, lower))
        return torch.addcmul(x[:, :, :-1] * upper + self.project.bias[:, None, None], x[:, :, 1:], lower)


@checked
class ColumnMLP(GeometricReshaper):
    """One fully connected layer maps every image column to its ray on the ground.

    This is the dense transformer of Pyramid Occupancy Networks (Roddick and Cipolla, CVPR 2020). The channels of a
    feature map X, (c, h, w), are projected and normalised, ``Y = ReLU(GroupNorm(P·X))``. The same ``W·y + b`` maps each
    column of Y, k rows × d channels, to depth bins × d channels. The map of columns × bins is sampled at the cells of
    the ground. With several scales each covers a band of depth, coarse ones near, fine ones far (see
    :class:`PolarMaps`). All columns and cameras share the weights. A cell that several cameras see is their average; a
    cell that no camera sees is 0.

    The input of W is the k rows around a point at the near end of the band, at the middle of ``height_m`` relative to
    the camera. k covers ``height_m`` there; objects that fit at the near end also fit farther away. If that is the
    whole image or more, all rows are used.

    Differences from the original:

    - It samples cells at their corner, and features as if centred half a stride into their cell. Here both are centred.
    - Its maps fade to zero at their borders, also between scales. Here they do not.
    - Its window begins at an integer row. Here it is interpolated.
    - It has one level camera at the origin. Here any rig is possible.

    To use the original's positions, pass to :meth:`gather` the result of ``maps.corners`` (which fades to zero), and
    that of :meth:`windows` for the first rows of its windows.

    Can it reproduce X at a cell that observes exactly one token? No: as in the original, the group norm removes the
    mean and scale of each group of channels over the image, and ReLU what is negative.

    Args:
        source: the shape of its features, one per scale.
        grid: the cells it fills.
        dim: d.
        groups: number of groups into which W divides the channels.
        depth_m: borders of the bands, near first, one more than scales; ``None`` derives them.
        bin_m: length of a depth bin; ``None`` for that of a cell.
        rows: k of every scale; beyond the image they are zero. ``None`` derives them.
        height_m: lowest and highest visible point, relative to the camera.
        focal_px: nominal focal length of the full-size image, for derived values; ``None`` for 0.8 of its width.

    Raises:
        InputError: if widths, borders or rows do not fit.
    """

    takes_scales = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        groups: Width = 1,
        depth_m: Depths | None = None,
        bin_m: Length | None = None,
        rows: Sequence[Count] | None = None,
        height_m: HeightRange = (-4.0, 2.0),
        focal_px: FocalLength | None = None,
    ) -> None:
        super().__init__(source, grid, dim)
        if dim % groups:
            raise InputError(f"ColumnMLP: dim={dim} cannot be divided into groups={groups}; choose a multiple")
        low, high = height_m
        if not low < high:
            raise InputError(f"ColumnMLP: height_m=({low}, {high}) must ascend; write the lowest first")
        focal = nominal_focal(self.sources[0]) if focal_px is None else focal_px
        self.groups = groups
        self.middle_m = (low + high) / 2
        self.maps = PolarMaps(self.name, self.sources, self.grid, depth_m, bin_m, focal)
        pairs = list(zip(self.sources, self.maps.bands, strict=True))
        self.rows: list[int | None]
        if rows is None:
            wanted = [math.ceil(focal / s.stride * (high - low) / band.near_m) for s, band in pairs]
            self.rows = [k if k < s.height else None for k, s in zip(wanted, self.sources, strict=True)]
        elif len(rows) != len(self.sources):
            raise InputError(f"ColumnMLP: rows={list(rows)} must be {len(self.sources)} numbers, one per scale")
        else:
            self.rows = list(rows)
        self.scales = nn.ModuleList(
            Columns(s, dim, k, band.bins, groups) for (s, band), k in zip(pairs, self.rows, strict=True)
        )

    def locate(self, cameras: Cameras) -> ColumnGeometry:
        """Return the tokens of the polar maps at the cells, and the rows that are the input of W."""
        return ColumnGeometry(self.maps.locate(cameras), self.windows(self._tops(cameras)), cameras.camera_mask)

    def windows(self, tops: Float[Tensor, "b n s"]) -> Windows:
        """Return the windows that begin at rows ``tops`` of the features of every scale."""
        rows = max(rows or 0 for rows in self.rows)
        last = constant([source.height - 1 for source in self.sources], tops)[:, None]  # s 1
        tops = tops.nan_to_num().unsqueeze(-1)  # a NaN as an index would end the process
        row = tops.floor() + torch.arange(rows + 1, device=tops.device)  # b n s k+1
        on = row.clamp(min=0).minimum(last)
        inside, part = (on == row).to(tops.dtype), tops - tops.floor()
        return Windows(on.long(), (1 - part) * inside[..., :-1], part * inside[..., 1:])

    def _tops(self, cameras: Cameras) -> Tensor:
        values = [
            (band.near_m, self.middle_m, source.offset_px, source.stride, ((rows or 1) - 1) / 2)
            for source, band, rows in zip(self.sources, self.maps.bands, self.rows, strict=True)
        ]
        k = cameras.intrinsics
        near_m, middle_m, offset_px, stride, half = constant(values, k).mT  # scales
        ahead = heading(cameras).unsqueeze(-2) * near_m[:, None]  # b n scales 2
        middle = torch.cat([ahead, middle_m[:, None].expand(*ahead.shape[:-1], 1)], dim=-1)  # from the camera, ego axes
        middle = (cameras.ego_from_cam[..., None, :3, :3] * middle.unsqueeze(-1)).sum(-2)  # camera axes
        v = (k[..., None, 1, :] * middle).sum(-1) / middle[..., 2].clamp(min=NEAR)
        return torch.where(cameras.full_mask[..., None], (v - offset_px) / stride - half, 0)

    def gather(self, features: tuple[Tensor, ...], located: ColumnGeometry) -> Tensor:
        b = features[0].shape[0]
        present = None if located.camera_mask is None else located.camera_mask.expand(b, -1)
        window = (values.expand(b, -1, -1, -1).unbind(2) for values in located.windows)
        maps = [
            scale(x, parts, present)
            for x, parts, scale in zip(features, zip(*window, strict=True), self.scales, strict=True)
        ]
        return self.maps.read(maps, located.taps)

    @torch.no_grad()
    def load_original(self, state: Mapping[str, Tensor]) -> "ColumnMLP":
        """Load the weights of the published ``DenseTransformer``, or of a ``TransformerPyramid`` scale by scale.

        With the published ``focal_px``, ``height_m`` and ``depth_m`` the numbers of rows agree, unless they exceed the
        image's; else set ``rows``.

        Raises:
            InputError: if weights are missing, left over or of another shape; it lists them.
        """
        weights: dict[str, Tensor] = {}
        for key, value in state.items():
            pyramid = key.startswith("transformers.")
            number, _, part = key.removeprefix("transformers.").partition(".") if pyramid else ("0", "", key)
            if part.startswith("fc.") and len(value) % self.out_channels == 0:
                d = self.out_channels // self.groups
                value = rearrange(value.reshape(len(value), -1), "(g d z) i -> g (z d) i", g=self.groups, d=d)
                value = value if part == "fc.weight" else value.mT
            elif part == "conv.weight":
                value = value.flatten(1)
            weights[f"scales.{number}.{PUBLISHED.get(part, part)}"] = value
        self.check_original(
            weights, "build it with as many scales and layers, and their widths, rows and bins of depth"
        )
        self.load_state_dict(weights)
        return self
