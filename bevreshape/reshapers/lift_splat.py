"""Lift-splat: features distributed along their rays by a predicted depth, and summed on the ground plane."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Len
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import HeightRange, Length, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.tensors import flat_index, is_exporting
from bevreshape.reshapers.base import GeometricReshaper


class PlacedPoints(NamedTuple):
    """The points of the rays sorted by the cell that they fall into, m = n·D·h·w.

    Attributes:
        order: (b, m), index of the point.
        pixels: (b, m), index of its pixel.
        cells: (b, m), index of its cell.
        starts: (b, R·C), the first point of every cell.
        counts: (b, n, D, h, w), in the original order, whether a point counts.
    """

    order: Tensor
    pixels: Tensor
    cells: Tensor
    starts: Tensor
    counts: Tensor


@checked
class LiftSplat(GeometricReshaper):
    """Every feature is distributed along its ray by a predicted depth, and every cell sums the points in it.

    Lift, Splat, Shoot (Philion & Fidler, ECCV 2020). A 1×1 convolution of the features gives every pixel D logits and a
    context vector of d channels. The point of pixel p at the k-th depth has ``softmax(logits_p)_k · context_p``:

        ``bev[cell] = Σ_(p,k) [point (p,k) is in the cell] · softmax(logits_p)_k · context_p``.

    The point is on the ray through the feature's centre, at the given depth along the optical axis, ``center + depth ·
    ray``. Its height only decides whether it counts. A cell without points is 0.

    The points' features, (b, n·D·h·w, d), are never formed: sorted by cell, the sum is a weighted bag of context rows.
    The order depends on the calibration alone, so a fixed rig sorts once (:class:`FixedRig`). The result is channels
    last in memory.

    Differences from the published code:

    - It centres features evenly from the first pixel of an image to the last (a ``linspace``), for every stride of the
      encoder. Here they are centred on ``stride·j + offset_px``.
    - It rounds towards zero. Points up to one cell behind or to the right of the grid fall into its border cells, and
      points up to one height band below the band still count. Here they are omitted.
    - Its sums are differences of one running sum over all points, which loses precision. Here each cell is summed
      separately.
    - Its axes (X, Y) are cells ahead and to the left: the row is ``R - 1 - X`` and the column ``C - 1 - Y``, so its
      output is ``bev.flip(-2, -1)``. Its height bands are separate channels; here there is one band, as configured.

    With :meth:`load_original` and the original's points, ``gather(features, place(points, truncate=True))`` is its
    output.

    Depth can be supervised (as in BEVDepth, Li et al., AAAI 2023): add ``depth_loss(depth(features), depth_m)`` to the
    loss.

    Can it reproduce X at a cell that observes exactly one token? Yes, times the probability of its depth.

    Args:
        source: the shape of its features.
        grid: the cells it fills.
        depths_m: first depth, end (not included) and step, in metres; D of them. Published: 4, 45, 1.
        height_m: lowest and highest point that counts, in metres above the ground.
        channels: d.

    Raises:
        InputError: if the grid has no metres, or depths or heights do not ascend.
    """

    pixel_of_point: Tensor
    spare_cell: Tensor

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        depths_m: Annotated[Sequence[Length], Len(3, 3)] = (1.0, 41.0, 1.0),
        height_m: HeightRange = (-10.0, 10.0),
        channels: Width = 64,
    ) -> None:
        super().__init__(source, grid, channels)
        if not depths_m[0] < depths_m[1]:
            raise InputError(
                f"LiftSplat: depths_m={list(depths_m)} must be [first, end, step] in metres with first < end, such as "
                "[1, 41, 1]"
            )
        if not height_m[0] < height_m[1]:
            raise InputError(
                f"LiftSplat: height_m={list(height_m)} must be [lowest, highest] in metres and ascend, such as [-10, "
                "10]"
            )
        self.first_m, end_m, self.step_m = (float(v) for v in depths_m)
        self.height_m = (float(height_m[0]), float(height_m[1]))
        self.depths = math.ceil((end_m - self.first_m) / self.step_m - 1e-6)
        self.depthnet = nn.Conv2d(source.channels, self.depths + channels, 1)
        points = torch.arange(source.cameras * self.depths * source.tokens)  # in the order n D h w
        pixels = points // (self.depths * source.tokens) * source.tokens + points % source.tokens
        self.register_buffer("pixel_of_point", pixels.int(), persistent=False)
        # points that do not count have weight 0; they are distributed over all cells, so that no cell is slow
        self.register_buffer("spare_cell", (points % math.prod(self.target_shape)).int(), persistent=False)

    def points(self, cameras: Cameras) -> Float[Tensor, "b n D h w 3"]:
        """Return the points of every feature at every depth, in ego metres."""
        device, dtype = cameras.intrinsics.device, cameras.intrinsics.dtype
        rays = cameras.rays(self.source.pixels(device, dtype).flatten(0, 1))  # b n p 3
        rays = rays.unflatten(2, (1, self.source.height, self.source.width))  # b n 1 h w 3
        steps = torch.arange(self.depths, device=device, dtype=torch.float64)
        depths = (self.first_m + steps * self.step_m).to(dtype)
        return cameras.centers[:, :, None, None, None] + depths[:, None, None, None] * rays

    def place(
        self, points: Float[Tensor, "b n D h w 3"], present: Bool[Tensor, "b n"] | None = None, truncate: bool = False
    ) -> PlacedPoints:
        """Sort points by the cell that they fall into.

        Args:
            points: ego points in metres.
            present: which cameras are present; ``None`` for all.
            truncate: round towards zero, as the published code does, instead of down.
        """
        rows, cols = self.target_shape
        low, high = self.height_m
        ahead, left = self.grid.metric_to_cell_edges(points[..., :2]).unbind(-1)  # b n D h w
        up = (points[..., 2] - low) / (high - low)
        ahead, left, up = (torch.trunc(v) if truncate else torch.floor(v) for v in (ahead, left, up))
        counts = (ahead >= 0) & (ahead < rows) & (left >= 0) & (left < cols) & (up == 0)
        if present is not None:
            counts = counts & present[..., None, None, None]
        cells = torch.where(counts, (rows - 1 - ahead) * cols + (cols - 1 - left), 0).int().flatten(1)
        cells = torch.where(counts.flatten(1), cells, self.spare_cell)  # b m, m points
        if is_exporting():  # unsorted, because ONNX sorts slowly; splat then does not read starts
            order = torch.arange(cells.shape[1], device=cells.device).expand_as(cells)
            return PlacedPoints(order, self.pixel_of_point.expand_as(cells), cells, cells, counts)
        return PlacedPoints(*self._sort(cells), counts)

    def _sort(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, m = cells.shape
        size = math.prod(self.target_shape)
        cells, order = flat_index(cells, b, size).sort()  # one long sort is faster than one per sample
        held = cells.new_zeros(b * size).index_add_(0, cells, torch.ones_like(cells)).view(b, size)
        sample = torch.arange(b, device=cells.device, dtype=torch.int32)[:, None]
        order = order.view(b, m).int() - sample * m
        pixels = self.pixel_of_point.index_select(0, order.flatten()).view(b, m)
        return order, pixels, cells.view(b, m) - sample * size, held.cumsum(1, dtype=torch.int32) - held

    def locate(self, cameras: Cameras) -> PlacedPoints:
        """Sort the points of these cameras by cell."""
        return self.place(self.points(cameras), cameras.full_mask)

    def lift(
        self, features: Float[Tensor, "b n c h w"]
    ) -> tuple[Float[Tensor, "b n D h w"], Float[Tensor, "b n d h w"]]:
        """Return logits of depth, and context."""
        lifted = self.depthnet(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return lifted[:, :, : self.depths], lifted[:, :, self.depths :]

    def depth(self, features: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n D h w"]:
        """Return every feature's logits of depth; their softmax over D is the distribution."""
        return self.lift(features)[0]

    def depth_loss(
        self,
        logits: Float[Tensor, "b n D h w"],
        depth_m: Float[Tensor, "b n h w"],
        valid: Bool[Tensor, "b n h w"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy with the depth bin nearest to the target depth.

        Args:
            logits: from :meth:`depth`.
            depth_m: target depth along the optical axis, in metres, at every feature's centre.
            valid: where it is known. Pixels more than half a step off all D depths are excluded as well.
        """
        nearest = torch.floor((depth_m - self.first_m) / self.step_m + 0.5)
        known = (nearest >= 0) & (nearest < self.depths)
        known = known if valid is None else known & valid
        target = torch.where(known, nearest, -1).long()
        loss = F.cross_entropy(logits.movedim(2, 1).float(), target, ignore_index=-1, reduction="sum")
        return loss / known.sum().clamp(min=1)

    def splat(
        self, chances: Float[Tensor, "b n D h w"], context: Float[Tensor, "b n d h w"], located: PlacedPoints
    ) -> Float[Tensor, "b d R C"]:
        """Sum the points of every cell.

        Args:
            chances: probability of every depth, a distribution over D.
            context: context vector of every pixel.
            located: from :meth:`place`, of b samples or of one. Probabilities of points that do not count are not read.
        """
        order, pixels, cells, starts, counts = located
        b, m = chances.shape[0], order.shape[1]
        chances = torch.where(counts, chances, 0).flatten(1)  # b m
        context = rearrange(context, "b n d h w -> b (n h w) d")
        if is_exporting():  # the same sum without bags, which ONNX lacks
            share = chances.gather(1, order.expand(b, -1).long())[..., None]
            points = share * context.gather(1, pixels.expand(b, -1).long()[..., None].expand(-1, -1, context.shape[2]))
            index = cells.expand(b, -1).long()[..., None].expand_as(points)
            empty = points.new_zeros(b, math.prod(self.target_shape), points.shape[2])
            bev = empty.scatter_add(1, index, points)
        else:
            bev = F.embedding_bag(
                flat_index(pixels, b, context.shape[1]),
                context.flatten(0, 1),
                flat_index(starts, b, m),
                mode="sum",
                per_sample_weights=chances.flatten().index_select(0, flat_index(order, b, m)),
            ).unflatten(0, (b, -1))
        return bev.unflatten(1, self.target_shape).permute(0, 3, 1, 2)

    def gather(self, features: Tensor, located: PlacedPoints) -> Tensor:
        # a camera without points in the grid, such as a dropped one, may hold NaN, so it is not multiplied by zero
        seen = located.counts.flatten(2).any(-1)[..., None, None, None]  # b n 1 1 1
        logits, context = self.lift(torch.where(seen, features, 0))
        with torch.autocast(features.device.type, enabled=False):
            exact = torch.promote_types(features.dtype, torch.float32)
            return self.splat(logits.to(exact).softmax(2), context.to(exact), located).to(features.dtype)

    def load_original(self, state_dict: Mapping[str, Tensor]) -> "LiftSplat":
        """Load the published weights ``camencode.depthnet.weight`` and ``.bias``, with or without ``camencode.``.

        The first D channels are the logits, the others the context, as here.

        Raises:
            InputError: if one is missing or of another shape, or others are left over.
        """
        given = {name.removeprefix("camencode."): value for name, value in state_dict.items()}
        self.check_original(
            given,
            "give depthnet.weight and depthnet.bias and nothing else, and set depths_m, channels and the source to "
            "theirs",
        )
        self.load_state_dict(given)
        return self
