"""Cross-view attention with camera-aware positional embeddings, the view transformer of CVT."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from bevreshape.config.options import Count, CountOrNone, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.image_norm import ImageEmbedding, statistics_of, synchronised
from bevreshape.ops.joint_attention import joint_attention, joint_matrix
from bevreshape.ops.linear import Linear
from bevreshape.ops.normed_linear import NormedLinear
from bevreshape.reshapers.attention import FeedForward
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.camera_embedding import CameraEmbedding
from bevreshape.reshapers.published_names import CVT


class Directions(NamedTuple):
    """Values that depend on the calibration alone, at one scale; see :class:`CameraEmbedding`.

    Attributes:
        rays: (b, n, 7, t), embedded rays of the tokens.
        cells: (b, n, 7, q), embedded cells as seen by every camera.
    """

    rays: Tensor
    cells: Tensor


class RigDirections(NamedTuple):
    """Values that depend on the calibration alone.

    Attributes:
        scales: directions at every scale.
        camera_mask: (b, n), false for a dropped camera; ``None`` if all are present.
    """

    scales: tuple[Directions, ...]
    camera_mask: Tensor | None


class CrossView(nn.Module):
    """One scale: camera-aware BEV queries attend to its tokens."""

    def __init__(
        self, channels: int, dim: int, heads: int, dim_head: int, qkv_bias: bool, skip: bool, image_features: bool
    ) -> None:
        super().__init__()
        self.heads, self.skip = heads, skip
        self.embed_key = ImageEmbedding(channels, dim) if image_features else None
        self.embed_value = ImageEmbedding(channels, dim)
        self.embedding = CameraEmbedding(dim)
        self.to_q, self.to_k, self.to_v = (NormedLinear(dim, heads * dim_head, qkv_bias) for _ in range(3))
        self.project = Linear(heads * dim_head, dim)
        self.prenorm, self.postnorm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, 2)

    def forward(
        self,
        bev: Float[Tensor, "b q d"],
        features: Float[Tensor, "b n c h w"],
        rays: Float[Tensor, "#b n 7 t"],
        cells: Float[Tensor, "#b n 7 q"],
        present: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b q d"]:
        q, k, v = self.project_qkv(bev, features, rays, cells, present)
        found = rearrange(joint_attention(q, k, v, present), "b a q e -> b q (a e)")
        found = self.project(found)
        bev = self.prenorm(bev + found if self.skip else found)
        return self.postnorm(bev + self.feedforward(bev))

    def matrix(
        self, bev: Tensor, features: Tensor, rays: Tensor, cells: Tensor, present: Tensor | None
    ) -> Float[Tensor, "b a q n t"]:
        """Return the softmax of :meth:`forward` for the same arguments."""
        q, k, _ = self.project_qkv(bev, features, rays, cells, present)
        return joint_matrix(q, k, present)

    def project_qkv(
        self, bev: Tensor, features: Tensor, rays: Tensor, cells: Tensor, present: Tensor | None
    ) -> list[Tensor]:
        """Return ``to_q(cells + bev)``, ``to_k(rays + φ(X))`` and ``to_v(ψ(X))``, (b, n, heads, q or t, e)."""
        rays = rays.expand(features.shape[0], -1, -1, -1)
        keys, values = self._tokens(features, rays, present)
        queries = self.to_q.of_sum(bev, cells, self.embedding.cell_weight(cells.dtype))  # b n q (a e)
        return [rearrange(x, "b n t (a e) -> b n a t e", a=self.heads) for x in (queries, keys, values)]

    def _tokens(self, features: Tensor, rays: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return keys and values, (b, n, t, heads · e) each."""
        wide = torch.promote_types(features.dtype, torch.float32)
        images = rearrange(features, "b n c h w -> (b n) (h w) c").to(wide).contiguous()  # p t c
        there = None if present is None else present.flatten()
        if there is not None:
            images = torch.where(there[:, None, None], images, 0.0)
        with torch.autocast(features.device.type, enabled=False):
            embeddings = [x for x in (self.embed_key, self.embed_value) if x is not None]
            counted = any(x.norm.training for x in embeddings)
            statistics = statistics_of(images, there, synchronised(self.embed_value.norm)) if counted else None
            keys, embed = rays.flatten(0, 1).mT.to(wide), self.embedding.ray_weight(wide)
            if self.embed_key is not None:
                keys = torch.cat([self.embed_key(images, statistics), keys], dim=2)
                embed = torch.cat([self.embed_key.linear.weight.to(wide), embed], dim=1)
            values = self.embed_value(images, statistics)
        k = self.to_k.of_embedded(keys, embed)
        v = self.to_v.of_embedded(values, self.embed_value.linear.weight.to(wide))
        size = features.shape[:2]
        return k.unflatten(0, size), v.unflatten(0, size)


@checked
class CrossViewAttention(GeometricReshaper):
    """Cells attend to the tokens of all cameras by the direction in which a camera would see them (CVT).

    "Cross-view Transformers for real-time Map-view Semantic Segmentation" (Zhou & Krähenbühl, CVPR 2022). A token of
    camera n at pixel u is embedded by the point one metre deep on its ray, and a cell by its position x on the ground.
    Both are relative to the camera's centre ``cₙ``, and only the direction of the difference counts::

        δₙᵤ = unit(W_ray·(Rₙ Kₙ⁻¹ u + cₙ) - W_camera·cₙ)        query  qₙₓ = to_q(unit(W_ground·x - W_camera·cₙ) + bev)
        key kₙᵤ = to_k(δₙᵤ + φ(feature))                        value  vₙᵤ = to_v(ψ(feature))
        bev ← LN(z + MLP(z)),  z = LN(bev + project(softmax over all n, u (qₙₓ·kₙᵤ/√e) · v))

    with φ, ψ = BatchNorm, ReLU and a 1×1 convolution each, and to_q, to_k, to_v a LayerNorm and a linear layer. The BEV
    starts as a learned map, and every scale refines it in turn, followed by residual bottlenecks (He et al. 2016). The
    correspondence of tokens and cells is learned, not computed: every cell attends to all cameras, even those that do
    not see it.

    The result equals the original's up to rounding. It is computed without the matrix of cells × tokens, see
    :func:`joint_attention`, and without embedded tokens wider than their features, see :class:`NormedLinear`.
    Differences from the original:

    - Its rays start at pixel ``j·W/(w - 1)`` for feature j of w, and its cells are a ``linspace`` over the whole map
      that includes the edges. Both are off by up to half a cell. Here rays start at the features' centres, and cells
      are their centres. ``gather(features, encode(rays, centers, ground))`` uses the original's coordinates.
    - Dropped cameras have no weight in the softmax, and BatchNorm's statistics exclude their images.

    In training, BatchNorm couples the samples of a batch, as in the original; in evaluation it does not.

    Can it reproduce X at a cell that observes exactly one token? Nearly: as in the original, V is projected from
    normalised keys, but with ``dim`` channels, which can hold the length of a token of fewer channels (.06 of the
    variance is left after a short training, and falling).

    Args:
        source: the shape of its features, one scale or several; attention visits them in this order (the original: the
            finest first).
        grid: the cells it fills.
        dim: d, channels of the BEV and of all embeddings (the original: 128).
        heads: number of heads.
        dim_head: e, width of a head (the original: 32).
        qkv_bias: give to_q, to_k and to_v a bias.
        skip: add the attention's output to the BEV instead of replacing it.
        image_features: include the image features (φ) in the keys; otherwise keys are directions alone.
        middle: bottlenecks after every scale, one number for all or one each.

    Raises:
        InputError: if the grid has no metres, or widths or numbers of blocks do not fit.
    """

    takes_scales = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        heads: Count = 4,
        dim_head: Width = 16,
        qkv_bias: bool = True,
        skip: bool = True,
        image_features: bool = True,
        middle: CountOrNone | Sequence[CountOrNone] = 2,
    ) -> None:
        super().__init__(source, grid, dim)
        blocks = [middle] * len(self.sources) if isinstance(middle, int) else list(middle)
        if len(blocks) != len(self.sources):
            raise InputError(
                f"{self.name}: middle={middle} must give the number of blocks after each of {len(self.sources)} scales"
            )
        if any(blocks) and dim % 4:
            raise InputError(
                f"{self.name}: the blocks after a scale are a quarter as wide inside, but dim={dim} is no multiple of "
                "4; choose one, or middle=0"
            )
        self.prior = nn.Parameter(torch.randn(dim, *self.target_shape))
        self.views = nn.ModuleList(
            CrossView(scale.channels, dim, heads, dim_head, qkv_bias, skip, image_features) for scale in self.sources
        )
        self.middle = nn.ModuleList(
            nn.Sequential(*(Bottleneck(dim, dim // 4) for _ in range(count))) for count in blocks
        )

    def load_original(self, state: Mapping[str, Tensor]) -> "CrossViewAttention":
        """Load the weights of the original.

        Args:
            state: state dict of its ``Encoder``; the prefix ``encoder.``, its backbone and its grids are skipped.

        Raises:
            InputError: if weights are missing, left over or of another shape.
        """
        own, renamed = self.state_dict(), {}
        for name, value in state.items():
            name = name.removeprefix("encoder.")
            if name.startswith("backbone.") or name.endswith((".image_plane", "bev_embedding.grid")):
                continue
            for theirs, ours in CVT:
                name = name.replace(theirs, ours)
            pointwise = name in own and own[name].ndim == 2 and value.shape[2:] == (1, 1)
            renamed[name] = value.flatten(1) if pointwise else value
        self.check_original(renamed, "build it with the original's sizes and options")
        self.load_state_dict(renamed)
        return self

    def locate(self, cameras: Cameras) -> RigDirections:
        """Embed the directions of the cameras' rays and of the cells."""
        device, dtype = cameras.intrinsics.device, cameras.intrinsics.dtype
        rays = [cameras.rays(scale.pixels(device, dtype).flatten(0, 1)) for scale in self.sources]
        return self.encode(rays, cameras.centers, self.grid.centers(device, dtype), cameras.camera_mask)

    def encode(
        self,
        rays: Sequence[Float[Tensor, "b n _ 3"]],
        centers: Float[Tensor, "b n 3"],
        ground: Float[Tensor, "R C 2"],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> RigDirections:
        """Embed the directions of any rays and cells.

        With the original's inverse matrices ``I_inv``, ``E_inv`` and its grids, its coordinates are ``rays =
        (E_inv[..., :3, :3] @ I_inv @ image_plane).mT`` of every scale, ``centers = E_inv[..., :3, 3]`` and ``ground =
        grid[:2]``, cells last. The ego frames are the same.

        Args:
            rays: directions of the tokens of every scale, row-major, in the ego frame, one metre deep.
            centers: centres of the cameras, in metres.
            ground: positions of the cells (x, y), in metres.
            mask: false for a dropped camera.
        """
        if mask is not None:  # the calibration of a dropped camera may be invalid
            rays = [torch.where(mask[..., None, None], x, 0.0) for x in rays]
            centers = torch.where(mask[..., None], centers, 0.0)
        scales: list[Directions] = []
        with torch.autocast(centers.device.type, enabled=False):
            for view, scale in zip(self.views, rays, strict=True):
                assert isinstance(view, CrossView)
                tokens = view.embedding.rays(scale, centers)
                scales.append(Directions(tokens, view.embedding.seen_cells(ground.flatten(0, 1), centers)))
        return RigDirections(tuple(scales), mask)

    def gather(self, features: tuple[Tensor, ...], located: RigDirections) -> Tensor:
        b = features[0].shape[0]
        present = None if located.camera_mask is None else located.camera_mask.expand(b, -1)
        bev = self.prior.expand(b, -1, -1, -1)  # b d R C
        for view, blocks, x, directions in zip(self.views, self.middle, features, located.scales, strict=True):
            queries = view(rearrange(bev, "b d R C -> b (R C) d"), x, *directions, present)
            bev = blocks(rearrange(queries, "b (R C) d -> b d R C", R=self.target_shape[0]))
        return bev

    def attention_weights(
        self,
        features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]],
        cameras: Cameras | None = None,
        scale: int = 0,
    ) -> Float[Tensor, "b a q n h w"]:
        """Return the attention of each of the R·C cells (row-major) to every token of a scale, per head.

        It is for evaluation: in training BatchNorm's statistics would count the images twice.

        Raises:
            InputError: as :meth:`forward`.
        """
        view = self.views[scale]
        assert isinstance(view, CrossView)
        given: list[Any] = []
        with view.register_forward_pre_hook(lambda _, arguments: given.extend(arguments)):
            self(features, cameras)
        return rearrange(view.matrix(*given), "b a q n (h w) -> b a q n h w", h=self.sources[scale].height)
