"""Attention from every cell to a window of features around its projection."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Len
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from bevreshape.config.options import Count, CountOrNone, Height, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.linear import Linear, linear
from bevreshape.ops.windows import Arranged, Windows, arrange_windows, nearest_windows, rows_at, window_attention
from bevreshape.reshapers.attention import FeedForward
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.camera_embedding import CameraEmbedding
from bevreshape.reshapers.published_names import GKT


class Places(NamedTuple):
    """Values that depend on the calibration alone, at one scale.

    Attributes:
        arranged: the windows, in a list of t features of all cameras.
        points: (b, t, 3), the point 1 m deep on the ray of these features, in ego metres.
        centers: (b, n, 3), centres of the cameras, in ego metres.
        ground: (p, 2), positions of the cells, in ego metres.
        camera: (b, p, s), the cameras of every cell.
    """

    arranged: Arranged
    points: Tensor
    centers: Tensor
    ground: Tensor
    camera: Tensor


class Sight(NamedTuple):
    """:class:`Places`, embedded.

    Attributes:
        arranged: the windows, in a list of t features of all cameras.
        embedding: (b, t, d), embeddings of these features.
        cells: (b, p, s, d), embeddings of every cell as seen by each of its s cameras.
    """

    arranged: Arranged
    embedding: Tensor
    cells: Tensor


class WindowAttention(nn.Module):
    """One scale: cells attend to windows of features, in all their cameras at once."""

    def __init__(self, channels: int, dim: int, heads: int, neighbours: tuple[int, int] | None) -> None:
        super().__init__()
        self.heads = heads
        self.context = None
        if neighbours is not None:
            padding = (neighbours[0] // 2, neighbours[1] // 2)
            self.context = nn.Conv2d(channels, channels, neighbours, padding=padding)
        self.key = nn.Sequential(nn.LayerNorm(channels), nn.ReLU(), Linear(channels, dim, bias=False))
        self.value = nn.Sequential(nn.LayerNorm(channels), nn.ReLU(), Linear(channels, dim, bias=False))
        self.embedding = CameraEmbedding(dim)
        self.to_q, self.to_k, self.to_v = (nn.Sequential(nn.LayerNorm(dim), Linear(dim, dim)) for _ in range(3))
        self.proj = Linear(dim, dim)
        self.prenorm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, 2)
        self.postnorm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b p d"], features: Float[Tensor, "b n c h w"], sight: Sight) -> Tensor:
        embedding, cells = sight.embedding.to(x.dtype), sight.cells.to(x.dtype)
        tokens = self.read(features, sight.arranged)  # b t c
        k = self.to_k(self.key(tokens) + embedding)
        v = self.to_v(self.value(tokens))
        q = self.to_q(x.unsqueeze(2) + cells)  # b p s d
        z = window_attention(q, k, v, sight.arranged, self.heads)  # b p d
        z = self.prenorm(x + self.proj(z.masked_fill(~sight.arranged.seen.unsqueeze(-1), 0)))
        return self.postnorm(z + self.feedforward(z))

    def read(self, features: Float[Tensor, "b n c h w"], arranged: Arranged) -> Float[Tensor, "b t c"]:
        """Return the features that are read, after the convolution."""
        _, n, _, h, w = features.shape
        if arranged.tokens.shape[1] < n * h * w:
            rows = rows_at(rearrange(features, "b n c h w -> b (n h w) c"), arranged.tokens)  # b t a c
            rows = rows.masked_fill(~arranged.inside.unsqueeze(-1), 0).flatten(2)
            return rows if self.context is None else linear(rows, self._weight(), self.context.bias)
        there = arranged.inside.reshape(-1, n, h * w).any(-1)
        features = features.masked_fill(~there[..., None, None, None], 0).flatten(0, 1)
        wide = features if self.context is None else self.context(features)
        return rearrange(wide, "(b n) c h w -> b (n h w) c", n=n)

    def _weight(self) -> Tensor:
        assert self.context is not None
        return rearrange(self.context.weight, "o c i j -> o (i j c)")


@checked
class KernelAttention(GeometricReshaper):
    """Every cell attends to the features around its projection, in all cameras that see it (GKT, Chen et al. 2022).

    A cell (x, y), at a fixed height above the ground, is projected into every image; its tokens are the window of
    k_h × k_w features nearest to the projection. With X̃ the features after a small convolution, x the current cells (at
    first a learned prior) and e the unit vectors of :class:`CameraEmbedding`::

        q = Wq·LN(x + e_cell)    k = Wk·LN(e_feature + A·relu(LN(X̃)))    v = Wv·LN(B·relu(LN(X̃)))
        z = LN(x + Wo·softmax(q·kᵀ/√d_head)·v)      x ← LN(z + MLP(z))

    with one softmax over the windows of all cameras and a separate q for each camera. Residual bottlenecks among the
    cells follow. Several scales follow one another, each with its own weights.

    Only features in a window are read, and only the cameras that see a cell are gathered for it. Compiled and exported
    programs read all features, with the same result.

    Differences from the original:

    - It centres feature j on pixel j·W/w, and its grids of rays and cells include both edges. Here geometry is that of
      ``source`` and ``grid``.
    - Its windows repeat the border. Here they end there.
    - A cell that no camera sees averages the windows of all. Here it keeps its prior.

    :meth:`place` accepts the original's coordinates. As published, the bottlenecks have batch normalisation, which
    couples the samples of a batch in training.

    Can it reproduce X at a cell that observes exactly one token? No: as in the original, V is projected from normalised
    features. With 16 channels, .10 of the variance is lost.

    Args:
        source: the shape of its features, one scale or several, in the order of attention.
        grid: the cells it fills.
        dim: d, channels of the cells; a multiple of 4.
        heads: number of heads.
        kernel_size: (k_h, k_w), rows and columns of features; published are 7 × 1.
        context_kernel: rows and columns of the convolution over neighbouring features, odd; ``None`` omits it.
            Published are 1 × 7, across the window.
        height_m: height of the projected points, in metres above the ground.
        bottlenecks: number of bottlenecks after every scale.

    Raises:
        InputError: if the grid has no metres, heads do not divide ``dim``, or a size is 0.
    """

    takes_scales = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        heads: Count = 4,
        kernel_size: Annotated[Sequence[Count], Len(2, 2)] = (7, 1),
        context_kernel: Annotated[Sequence[Count], Len(2, 2)] | None = (1, 7),
        height_m: Height = 1.0,
        bottlenecks: CountOrNone = 2,
    ) -> None:
        super().__init__(source, grid, dim)
        if dim % heads or dim % 4:
            raise InputError(
                f"KernelAttention: dim={dim} cannot be divided among heads={heads} and by 4, as its bottlenecks do; "
                "choose a common multiple"
            )
        if context_kernel is not None and not all(size % 2 for size in context_kernel):
            raise InputError(
                f"KernelAttention: context_kernel={list(context_kernel)} must be [rows, columns] of a convolution, "
                "both odd, e.g. [1, 7]; null leaves it out"
            )
        self.kernel_size = (kernel_size[0], kernel_size[1])
        self.neighbours = None if context_kernel is None else (context_kernel[0], context_kernel[1])
        self.height_m = float(height_m)
        self.prior = nn.Parameter(torch.randn(dim, *self.target_shape))
        self.scales = nn.ModuleList(
            WindowAttention(scale.channels, dim, heads, self.neighbours) for scale in self.sources
        )
        self.middle = nn.ModuleList(
            nn.Sequential(*(Bottleneck(dim, dim // 4) for _ in range(bottlenecks))) for _ in self.sources
        )

    def locate(self, cameras: Cameras) -> tuple[Places, ...]:
        """Call :meth:`place` for the cells' centres and the cameras' rays."""
        there = cameras.full_mask[..., None, None]  # b n 1 1
        ground = self.grid.centers(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)  # p 2
        points = F.pad(ground, (0, 1), value=self.height_m)  # p 3
        pixels, depth = cameras.project(points.expand(cameras.batch_shape[0], -1, -1))  # b n p 2, b n p
        seen = cameras.sees(pixels, depth)  # b n p
        centers = cameras.centers.masked_fill(~there.squeeze(-1), 0)  # b n 3
        windows, ray_points = [], []
        for scale in self.sources:
            rays = cameras.rays(scale.pixels(ground.device, ground.dtype).flatten(0, 1)).masked_fill(~there, 0)
            ray_points.append(centers.unsqueeze(2) + rays)
            windows.append(nearest_windows(pixels, scale, self.kernel_size, seen))
        return self.place(ground, centers, ray_points, windows)

    def place(
        self,
        ground: Float[Tensor, "p 2"],
        centers: Float[Tensor, "b n 3"],
        points: Sequence[Float[Tensor, "b n _ 3"]],
        windows: Sequence[Windows],
        average_unseen: bool = False,
    ) -> tuple[Places, ...]:
        """Return input of :meth:`prepare` for given coordinates, such as those of the original.

        Args:
            ground: (x, y) of every cell in ego metres, row-major.
            centers: centres of the cameras, in ego metres.
            points: for every feature of every scale, the point 1 m deep on its ray, in ego metres.
            windows: windows of every scale.
            average_unseen: average all windows of a cell without valid features, as the original does.
        """
        found, camera = arrange_windows(windows, self.sources, self.neighbours or (1, 1), average_unseen)
        return tuple(
            Places(arranged, rows_at(all_points.flatten(1, 2), arranged.features), centers, ground, camera)
            for arranged, all_points in zip(found, points, strict=True)
        )

    def prepare(self, located: Sequence[Places]) -> tuple[Sight, ...]:
        """Embed rays and cells by the weights of every scale."""
        sights = []
        for built, scale, (arranged, points, centers, ground, camera) in zip(
            self.sources, self.scales, located, strict=True
        ):
            assert isinstance(scale, WindowAttention)
            offset = scale.embedding.centers(centers)  # b n d
            embedding = scale.embedding.points(points, rows_at(offset, arranged.features // built.tokens))
            cells = scale.embedding.cells(ground.unsqueeze(1), rows_at(offset, camera))
            sights.append(Sight(arranged, embedding, cells))
        return tuple(sights)

    def gather(self, features: Sequence[Tensor], located: tuple[Sight, ...]) -> Tensor:
        x = rearrange(self.prior, "d R C -> 1 (R C) d").expand(features[0].shape[0], -1, -1)
        for scale, middle, tokens, sight in zip(self.scales, self.middle, features, located, strict=True):
            x = scale(x, tokens, sight)
            x = rearrange(middle(rearrange(x, "b (R C) d -> b d R C", R=self.target_shape[0])), "b d R C -> b (R C) d")
        return rearrange(x, "b (R C) d -> b d R C", R=self.target_shape[0]).to(features[0].dtype)

    def load_original(self, state_dict: Mapping[str, Tensor]) -> "KernelAttention":
        """Load published weights.

        Args:
            state_dict: that of the published encoder (``GeometryKernelEncoder``), without its ``backbone``.

        Raises:
            InputError: if weights are missing, left over, or of another shape.
        """
        given = {}
        for name, value in state_dict.items():
            for theirs, ours in GKT.items():
                name = re.sub(f"^{theirs}", ours, name)
            given[name] = value.flatten(1) if "embedding" in name and value.ndim == 4 else value  # 1×1 convolutions
        self.check_original(
            given, "give the encoder's weights without its backbone's, and build it with as many scales and bottlenecks"
        )
        self.load_state_dict(given)
        return self
