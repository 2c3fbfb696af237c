"""Deformable attention from the cells of the grid into every camera's features (BEVFormer)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bevreshape.config.options import Count, Heights, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.geometry.cameras import NEAR
from bevreshape.ops.deformable_sampling import FeatureAtlas
from bevreshape.ops.linear import Linear
from bevreshape.ops.tensors import constant, is_exporting
from bevreshape.ops.visible_pairs import FAR, References, every_pair, visible_pairs
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.published_names import bevformer_weights
from bevreshape.reshapers.spatial_cross_attention import Layer


@checked
class DeformableAttention(GeometricReshaper):
    r"""Every cell samples a few positions around its projections; offsets and weights are learned.

    This is BEVFormer's encoder (Li et al., ECCV 2022) without its temporal self-attention. It builds on the multi-scale
    deformable attention of Deformable DETR (Zhu et al., ICLR 2021). A cell's learned query q is a pillar with a
    reference point P_z at every height z. V(q) are the cameras that see at least one of these points. For every camera
    i in V(q) and each of A heads,

    ``SCA(q) = q + out(1/|V| · Σ_i∈V concat_a Σ_l Σ_p w_alp · V_a F_il(P_i,z(p) + Δ_alp))``

    with offsets ``Δ = offsets(q)`` in features of scale l, weights ``w = softmax_lp(weights(q))``, point p at height
    index p mod heights, and ``V_a F`` sampled bilinearly, 0 outside of the map. A norm, a feed-forward with residual
    and a norm follow. The queries of later layers are the output of the previous one.

    (b, n, c, h, w), one or several scales → (b, dim, R, C). A cell that no camera sees keeps its query alone.

    Differences from the published module:

    - A feature is sampled at its centre, pixel ``stride·j + offset_px``. The original uses fractions of the image times
      the size of the map, minus ½. This is the same for features with offset (stride - 1)/2 that cover the image
      exactly. :meth:`locate_original` uses the original's points.
    - Every sample of a batch has its own cameras. The original selects the visible queries of all samples by the first
      sample's calibration, and divides by each sample's own count.
    - A point behind a camera is 0. The original divides by a depth of 1e-5, which mostly falls outside of the map.
    - Offsets and weights depend on the query alone, so they are computed once per cell, not once per camera.
    - There is no dropout. Camera embeddings tie the weights to the order of cameras and are off by default.
    - Temporal self-attention and its norm are omitted. In the original only this attention receives the queries'
      position, so ``query_position`` is off by default. Queries start small: their own part of the output is noise.

    Only pairs of a camera and a visible cell are computed. The host waits for the device once to count them, except on
    a fixed rig and in an exported program, whose shapes must not depend on the calibration. Memory grows with pairs ·
    heads · scales · points, not with features.

    Can it reproduce X at a cell that observes exactly one token? Yes with ``attention_only``; otherwise nearly, since
    layer norms follow the sums with the residual (5e-4 of the variance is left after training).

    Args:
        source: the shape of its features, one scale or several. Scales of another width than ``dim`` are first
            projected to it.
        grid: the cells it fills.
        dim: width of queries and BEV features.
        heads: number of heads that share the channels; each starts with its own direction.
        points: samples per head and scale, divided among the heights.
        layers: number of layers; BEVFormer has 6.
        heights_m: z of the reference points above the ground, in metres.
        mlp_ratio: width of the feed-forward relative to ``dim``.
        query_position: add a learned position, half of a row and half of a column, to queries for offsets and weights.
        camera_embedding: add a learned vector to every camera's features; then the order of cameras matters.
        attention_only: the attention and its residual alone, without norms and feed-forward.

    Raises:
        InputError: if the heads do not divide ``dim``, the heights do not divide ``points``, or a number is 0.
    """

    takes_scales: ClassVar[bool] = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        heads: Count = 8,
        points: Count = 8,
        layers: Count = 1,
        heights_m: Heights = (0.0, 1.0, 2.0, 3.0),
        mlp_ratio: Count = 2,
        query_position: bool = False,
        camera_embedding: bool = False,
        attention_only: bool = False,
    ) -> None:
        super().__init__(source, grid, dim)
        if dim % heads:
            raise InputError(
                f"{self.name}: dim={dim} cannot be divided among heads={heads}; choose a multiple of the heads"
            )
        if points % len(heights_m):
            raise InputError(
                f"{self.name}: points={points} cannot be divided among {len(heights_m)} heights_m; choose a "
                "multiple of their number"
            )
        if query_position and dim % 2:
            raise InputError(f"{self.name}: dim={dim} cannot hold a row's and a column's position; choose an even one")
        rows, cols = self.target_shape
        scales = len(self.sources)
        self.heights_m = tuple(float(z) for z in heights_m)
        self.query = nn.Parameter(torch.randn(rows * cols, dim) * 0.02)
        self.position: nn.ParameterList | None = None
        if query_position:
            self.position = nn.ParameterList(torch.rand(cells, dim // 2) for cells in (rows, cols))
        self.level_embedding = nn.Parameter(torch.randn(scales, dim))
        self.camera_embedding = nn.Parameter(torch.randn(self.source.cameras, dim)) if camera_embedding else None
        self.project = nn.ModuleList(
            nn.Identity() if scale.channels == dim else Linear(scale.channels, dim) for scale in self.sources
        )
        self.atlas = FeatureAtlas(self.sources, heads, points)
        self.points = points
        self.layers = nn.ModuleList(Layer(dim, heads, scales, points, mlp_ratio, attention_only) for _ in range(layers))

    def locate(self, cameras: Cameras) -> References:
        """Project the cells' reference points into the cameras that see them."""
        centers = self.grid.centers(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)  # RC 2
        z = constant(self.heights_m, centers)
        ground = centers[:, None].expand(-1, len(z), -1)
        points = torch.cat([ground, z[:, None].expand(len(centers), -1, 1)], dim=2).flatten(0, 1)  # (RC z) 3
        pixels, depth = cameras.project(points.expand(cameras.batch_shape[0], -1, -1))
        seen = cameras.sees(pixels, depth)
        pixels = torch.where((depth > NEAR)[..., None], pixels, torch.full_like(pixels, FAR))
        found = visible_pairs(pixels.unflatten(2, (-1, len(z))), seen.unflatten(2, (-1, len(z))))
        positions = [(found.positions - scale.offset_px) / scale.stride for scale in self.sources]
        return self._by_scale(found, positions)

    def locate_original(self, points: Float[Tensor, "n b RC z 2"], seen: Bool[Tensor, "n b RC z"]) -> References:
        """Return the result of :meth:`locate` for the published ``reference_points_cam`` and ``bev_mask``.

        The original's row 0 is farthest behind: ``reshaper.gather((features, ...), reshaper.locate_original(points,
        seen)).flip(2)`` is its output.

        Args:
            points: fractions of the image, cells in the original's order.
            seen: whether each point is in the image.
        """
        rows = self.target_shape[0]
        points, seen = (x.transpose(0, 1).unflatten(2, (rows, -1)).flip(2).flatten(2, 3) for x in (points, seen.bool()))
        found = visible_pairs(points, seen)
        sizes = [constant([scale.width, scale.height], found.positions) for scale in self.sources]
        return self._by_scale(found, [found.positions * size - 0.5 for size in sizes])

    def _by_scale(self, found: References, positions: list[Tensor]) -> References:
        stacked = rearrange(torch.stack(positions, dim=-2), "b m z scales xy -> b m xy scales z")
        return References(found.pairs, found.share, stacked)

    def gather(self, features: tuple[Tensor, ...], located: References) -> Tensor:
        b, n = features[0].shape[:2]
        dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
        pairs, share, positions = every_pair(located, n * len(self.query)) if is_exporting() else located
        positions = positions.repeat(1, 1, 1, 1, self.points // len(self.heights_m)).flatten(3)  # b m 2 (scales points)
        references = References(
            pairs.expand(b, -1), share.to(dtype).expand(b, -1), positions.to(dtype).expand(b, -1, -1, -1)
        )
        tokens = []
        for x, project, level in zip(features, self.project, self.level_embedding, strict=True):
            embedding = level[None] if self.camera_embedding is None else level + self.camera_embedding  # n d
            tokens.append((project(rearrange(x, "b n c h w -> (b n) (h w) c")), embedding))
        query = self.query[None]
        for layer in self.layers:
            query = layer(query, self._position(), tokens, references, self.atlas)
        return rearrange(query.to(features[0].dtype), "b (R C) d -> b d R C", R=self.target_shape[0])

    def _position(self) -> Tensor | float:
        if self.position is None:
            return 0.0
        row, col = self.position
        cells = (len(row), len(col), -1)
        return torch.cat([col[None].expand(cells), row[:, None].expand(cells)], dim=2).flatten(0, 1)

    def load_original(self, state_dict: Mapping[str, Tensor]) -> "DeformableAttention":
        """Load the weights of a published ``BEVFormerEncoder``, or of a ``SpatialCrossAttention`` alone.

        ``layers.N.attentions.1``, ``norms.1``, ``norms.2`` and ``ffns.0`` become layer N. Those of temporal
        self-attention, ``attentions.0`` and ``norms.0``, are skipped. ``bev_embedding.weight``,
        ``positional_encoding.row_embed.weight`` and ``col_embed``, ``level_embeds`` and ``cams_embeds`` are loaded if
        given. Without ``level_embeds`` nothing is added to the scales; queries and projections of scales are kept.
        Names of layers may have any prefix up to ``encoder.``. Rows of queries and of their positions are reversed,
        since the original's begin farthest behind.

        Raises:
            InputError: if weights are missing, left over or of another size; it lists them.
        """
        own = self.state_dict()
        found, left = bevformer_weights(state_dict)
        optional = {"query", "position.0", "position.1", "camera_embedding"}
        optional |= {name for name in own if name.startswith("project.")}
        found.setdefault("level_embedding", torch.zeros_like(self.level_embedding))
        kept = {name: value for name, value in own.items() if name in optional}
        self.check_original(
            {**kept, **found, **dict.fromkeys(left, torch.empty(0))},
            "build it with the same layers, dim, heads, points, scales, grid, attention_only, query_position and "
            "camera_embedding",
        )
        order = self.atlas.heads, len(self.sources), self.points, 2
        for name, value in found.items():
            if ".offsets." in name:
                value = value.unflatten(0, order).movedim(3, 0).flatten(0, 3)
            elif name == "query":
                value = value.unflatten(0, self.target_shape).flip(0).flatten(0, 1)
            elif name == "position.0":
                value = value.flip(0)
            own[name] = value
        self.load_state_dict(own)
        return self
