"""Attention from every cell to a window of features around its projection."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Len
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from bevreshape.config.options import Count, CountOrNone, Height, Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.linear import Linear, linear
from bevreshape.reshapers.attention import FeedForward
from bevreshape.reshapers.base import GeometricReshaper
from bevreshape.reshapers.camera_embedding import CameraEmbedding

RENAMED = {
    r"bev_embedding\.learned_features": "prior",
    r"layers\.": "middle.",
    r"cross_views\.(\d+)\.conv\.": r"scales.\1.widen.",
    r"cross_views\.(\d+)\.feature_proj\.": r"scales.\1.key.",
    r"cross_views\.(\d+)\.feature_linear\.": r"scales.\1.value.",
    r"cross_views\.(\d+)\.img_embed\.": r"scales.\1.embedding.point.",
    r"cross_views\.(\d+)\.cam_embed\.": r"scales.\1.embedding.center.",
    r"cross_views\.(\d+)\.bev_embed\.": r"scales.\1.embedding.cell.",
    r"cross_views\.(\d+)\.cross_attn\.mlp\.": r"scales.\1.feedforward.",
    r"cross_views\.(\d+)\.cross_attn\.": r"scales.\1.",
}
"""Published names and ours."""


class View(NamedTuple):
    """What the cameras show of the cells at one scale; features of a camera are counted row by row.

    Attributes:
        points: (b, n, hw, 3), ego metres, of every feature the point 1 m deep on its ray.
        windows: (b, n, p, g), whole numbers in 0..hw−1, the features around every cell's projection.
        valid: (b, n, p, g), which of them are to be attended to.
    """

    points: Tensor
    windows: Tensor
    valid: Tensor


class Sight(NamedTuple):
    """A :class:`View` arranged for attention: t features of all cameras, each once; s cameras a cell, g features each.

    Attributes:
        tokens: (b, t, a), the features that are read, with their a neighbours, counted over all cameras.
        inside: (b, t, a), false where there is nothing to read.
        embedding: (b, t, d), of the features.
        windows: (b, p, s·g), which of the t tokens.
        valid: (b, p, s·g).
        cells: (b, p, s, d), embedding of every cell as its cameras see it.
        seen: (b, p), whether images tell anything of a cell.
    """

    tokens: Tensor
    inside: Tensor
    embedding: Tensor
    windows: Tensor
    valid: Tensor
    cells: Tensor
    seen: Tensor


def rows_at(table: Float[Tensor, "b t d"], index: Int[Tensor, "_ ..."]) -> Tensor:
    """(b, t, d) rows at an index (b or 1, ...) → (b, ..., d)."""
    b, t, _ = table.shape
    start = torch.arange(b, device=index.device).reshape(b, *[1] * (index.ndim - 1)) * t
    return F.embedding(index + start, table.flatten(0, 1))


def nearest(position: Float[Tensor, "*p"], size: int, cells: int) -> tuple[Int[Tensor, "*p g"], Bool[Tensor, "*p g"]]:
    """The ``size`` numbers nearest to a position, and which of them are of the ``cells``; others are kept within.

    Far outside they are moved until one, the first or the last, is there.
    """
    first = (position - size / 2 + 1).floor().clamp(1 - size, cells - 1).long()
    numbers = first.unsqueeze(-1) + torch.arange(size, device=position.device)
    return numbers.clamp(0, cells - 1), (numbers >= 0) & (numbers < cells)


def over_cameras(windows: Int[Tensor, "b n p g"], tokens: int) -> Int[Tensor, "b n p g"]:
    """Numbers of features in their camera → in all cameras one after another."""
    return windows + torch.arange(windows.shape[1], device=windows.device)[:, None, None] * tokens


def of_cameras(values: Tensor, camera: Int[Tensor, "b p s"]) -> Tensor:
    """(b, n, p, g) → (b, p, s·g), of the cameras that every cell has."""
    index = camera.mT.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])  # b s p g
    return rearrange(values.gather(1, index), "b s p g -> b p (s g)")


def used_tokens(windows: Int[Tensor, "b n p g"], wanted: Bool[Tensor, "b n p g"], tokens: int) -> Bool[Tensor, "b nt"]:
    """Which features are in a window that is wanted, ``windows`` counted over all cameras."""
    b, n = windows.shape[:2]
    last = n * tokens  # where the others go
    used = torch.zeros(b, last + 1, dtype=torch.bool, device=windows.device)
    return used.scatter(1, windows.masked_fill(~wanted, last).flatten(1), True)[:, :last]


def listed(
    used: Bool[Tensor, "b nt"], windows: Int[Tensor, "b p w"], count: int
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"], Int[Tensor, "b p w"]]:
    """The ``count`` features that are used, at most, which of the list there are, and the windows counted in the list.

    Where they are most of all the list is all of them, which spares the way there.
    """
    b, total = used.shape
    every = torch.arange(total, device=used.device).expand(b, -1)
    if 4 * count > 3 * total:
        return every, used, windows
    number = used.cumsum(1) - 1
    windows = number.gather(1, windows.flatten(1)).clamp(min=0).view_as(windows)
    first = torch.zeros(b, count + 1, dtype=torch.long, device=used.device)
    first = first.scatter(1, torch.where(used, number, count), every)[:, :count]
    return first, every[:, :count] < used.sum(1, keepdim=True), windows


def neighbours(
    tokens: Int[Tensor, "b t"], there: Bool[Tensor, "b t"], source: FeatureShape, size: tuple[int, int]
) -> tuple[Int[Tensor, "b t a"], Bool[Tensor, "b t a"]]:
    """The features around features, counted over all cameras, and which of them there are."""
    down, right = (torch.arange(cells, device=tokens.device) - cells // 2 for cells in size)
    row = (tokens % source.tokens // source.width)[..., None, None] + down.unsqueeze(1)  # b t i 1
    col = (tokens % source.width)[..., None, None] + right  # b t 1 j
    inside = (row >= 0) & (row < source.height) & (col >= 0) & (col < source.width) & there[..., None, None]
    index = tokens[..., None, None] + down.unsqueeze(1) * source.width + right
    return index.masked_fill(~inside, 0).flatten(2), inside.flatten(2)


class WindowAttention(nn.Module):
    """One scale: cells ask the windows of features that :class:`Sight` names, in all their cameras at once."""

    def __init__(self, channels: int, dim: int, heads: int, neighbours: tuple[int, int] | None) -> None:
        super().__init__()
        self.heads = heads
        self.widen = None
        if neighbours is not None:
            padding = (neighbours[0] // 2, neighbours[1] // 2)
            self.widen = nn.Conv2d(channels, channels, neighbours, padding=padding)
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
        slots = cells.shape[2]
        tokens = self.read(features, sight)  # b t c
        k, v = (
            rearrange(rows_at(table, sight.windows), "b p w (a d) -> b p w a d", a=self.heads)
            for table in (self.to_k(self.key(tokens) + embedding), self.to_v(self.value(tokens)))
        )
        q = rearrange(self.to_q(x.unsqueeze(2) + cells), "b p s (a d) -> b p s 1 a d", a=self.heads)
        dots = (q * k.unflatten(2, (slots, -1))).sum(-1).flatten(2, 3)  # b p w a
        # finite, or a cell without any window would be NaN
        dots = (dots * q.shape[-1] ** -0.5).masked_fill(~sight.valid.unsqueeze(-1), torch.finfo(dots.dtype).min)
        z = (dots.softmax(2).to(v.dtype).unsqueeze(-1) * v).sum(2).flatten(2)  # b p d
        z = self.prenorm(x + self.proj(z.masked_fill(~sight.seen.unsqueeze(-1), 0)))
        return self.postnorm(z + self.feedforward(z))

    def read(self, features: Float[Tensor, "b n c h w"], sight: Sight) -> Float[Tensor, "b t c"]:
        """The tokens' features, ``widen`` done."""
        _, n, _, h, w = features.shape
        if sight.tokens.shape[1] < n * h * w:
            rows = rows_at(rearrange(features, "b n c h w -> b (n h w) c"), sight.tokens)  # b t a c
            rows = rows.masked_fill(~sight.inside.unsqueeze(-1), 0).flatten(2)
            return rows if self.widen is None else linear(rows, self._weight(), self.widen.bias)
        there = sight.inside.reshape(-1, n, h * w).any(-1)
        features = features.masked_fill(~there[..., None, None, None], 0).flatten(0, 1)
        wide = features if self.widen is None else self.widen(features)
        return rearrange(wide, "(b n) c h w -> b (n h w) c", n=n)

    def _weight(self) -> Tensor:
        assert self.widen is not None
        return rearrange(self.widen.weight, "o c i j -> o (i j c)")


@checked
class KernelAttention(GeometricReshaper):
    """Every cell attends to the features around its projection, in all cameras that see it (GKT, Chen et al. 2022).

    A cell (x, y), at a fixed height above the ground, is projected into every image; its tokens are the window of
    k_h × k_w features nearest to where it appears. With X̃ the features after a small convolution, x the cells so far
    (at first a learned prior) and e the unit vectors of :class:`CameraEmbedding`::

        q = Wq·LN(x + e_cell)    k = Wk·LN(e_feature + A·relu(LN(X̃)))    v = Wv·LN(B·relu(LN(X̃)))
        z = LN(x + Wo·softmax(q·kᵀ/√d_head)·v)      x ← LN(z + MLP(z))

    with one softmax over the windows of all cameras, q being another for each of them. Then come residual bottlenecks
    among the cells. Several scales do so one after another, each with its own weights.

    Only the features that some window holds are read, and only the cameras that see a cell are gathered for it; finding
    out how many these are takes one look from the host at the device, which a fixed rig spares. While the model
    is compiled or exported all are read, and the result is the same.

    The original reads feature j as centred on pixel j·W/w, draws its rays and its cells on grids that include both
    edges, repeats the border in windows that cross it, and lets a cell that no camera sees average the windows of all.
    Here geometry is that of ``source`` and ``grid``, windows end at the border, and such a cell keeps to its prior.
    :meth:`arrange` takes the original's own coordinates. The bottlenecks have batch normalisation as published, so in
    training the samples of a batch do meet.

    Can it reproduce X at a cell that looks at exactly one token? No: as in the original, V is of normalised
    features. With 16 channels, .10 of the variance is lost.

    Args:
        source: the features it will get, or several scales of them, in the order in which they are asked.
        grid: the cells it fills.
        dim: d, channels of the cells; a multiple of 4.
        heads: of the attention.
        window: (k_h, k_w), rows and columns of features; published are 7 × 1.
        widen: rows and columns of the convolution that lets a feature know its neighbours first, odd; ``None`` leaves
            it out. Published are 1 × 7, across the window.
        height_m: of the points that are projected, in metres above the ground.
        bottlenecks: after every scale.

    Raises:
        InputError: when the grid has no metres, heads do not divide dim, or a size is none.
    """

    takes_scales = True

    def __init__(
        self,
        source: FeatureShape | Sequence[FeatureShape],
        grid: BEVGrid | tuple[int, int],
        *,
        dim: Width = 64,
        heads: Count = 4,
        window: Annotated[Sequence[Count], Len(2, 2)] = (7, 1),
        widen: Annotated[Sequence[Count], Len(2, 2)] | None = (1, 7),
        height_m: Height = 1.0,
        bottlenecks: CountOrNone = 2,
    ) -> None:
        super().__init__(source, grid, dim)
        if dim % heads or dim % 4:
            raise InputError(
                f"KernelAttention: dim={dim} cannot be divided among heads={heads} and by 4, as its bottlenecks do; choose "
                "a common multiple"
            )
        if widen is not None and not all(size % 2 for size in widen):
            raise InputError(
                f"KernelAttention: widen={list(widen)} must be [rows, columns] of a convolution, both odd, e.g. [1, 7]; null "
                "leaves it out"
            )
        self.window = (window[0], window[1])
        self.neighbours = None if widen is None else (widen[0], widen[1])
        self.height_m = float(height_m)
        self.prior = nn.Parameter(torch.randn(dim, *self.target_shape))
        self.scales = nn.ModuleList(
            WindowAttention(scale.channels, dim, heads, self.neighbours) for scale in self.sources
        )
        self.middle = nn.ModuleList(
            nn.Sequential(*(Bottleneck(dim, dim // 4) for _ in range(bottlenecks))) for _ in self.sources
        )

    def locate(self, cameras: Cameras) -> tuple[Sight, ...]:
        """What :meth:`arrange` makes of the cells' centres and the cameras' rays."""
        there = cameras.full_mask[..., None, None]  # b n 1 1
        ground = self.grid.centers(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)  # p 2
        points = F.pad(ground, (0, 1), value=self.height_m)  # p 3
        pixels, depth = cameras.project(points.expand(cameras.batch_shape[0], -1, -1))  # b n p 2, b n p
        seen = cameras.sees(pixels, depth).unsqueeze(-1)  # b n p 1
        centers = cameras.centers.masked_fill(~there.squeeze(-1), 0)  # b n 3
        views = []
        for scale in self.sources:
            rays = cameras.rays(scale.pixels(ground.device, ground.dtype).flatten(0, 1)).masked_fill(~there, 0)
            windows, inside = self.windows(pixels, scale)
            views.append(View(centers.unsqueeze(2) + rays, windows, inside & seen))
        return self.arrange(ground, centers, views)

    def windows(
        self, pixels: Float[Tensor, "b n p 2"], scale: FeatureShape
    ) -> tuple[Int[Tensor, "b n p g"], Bool[Tensor, "b n p g"]]:
        """The features nearest to pixels, and which of them there are."""
        k_h, k_w = self.window
        positions = ((pixels - scale.offset_px) / scale.stride).unbind(-1)
        (j, has_j), (i, has_i) = (
            nearest(position, size, cells)
            for position, size, cells in zip(positions, (k_w, k_h), (scale.width, scale.height), strict=True)
        )
        windows = i.unsqueeze(-1) * scale.width + j.unsqueeze(-2)  # b n p kh kw
        return windows.flatten(3), (has_i.unsqueeze(-1) & has_j.unsqueeze(-2)).flatten(3)

    def arrange(
        self,
        ground: Float[Tensor, "p 2"],
        centers: Float[Tensor, "b n 3"],
        views: Sequence[View],
        average_unseen: bool = False,
    ) -> tuple[Sight, ...]:
        """What :meth:`gather` takes, of given coordinates: the way to those of the original.

        Args:
            ground: (x, y) of every cell in ego metres, row by row.
            centers: of the cameras, in ego metres.
            views: of every scale.
            average_unseen: let a cell that has no valid feature average all its windows, as the original does.
        """
        wanted = [view.valid for view in views]
        if average_unseen:
            wanted = [valid | ~valid.any(-1, keepdim=True).any(1, keepdim=True) for valid in wanted]
        seeing = torch.stack([features.any(-1) for features in wanted]).any(0)  # b n p
        windows = [over_cameras(view.windows, built.tokens) for view, built in zip(views, self.sources, strict=True)]
        used = [
            used_tokens(index, features, built.tokens)
            for index, features, built in zip(windows, wanted, self.sources, strict=True)
        ]
        b, n, p = seeing.shape
        if torch.compiler.is_compiling():
            camera = torch.arange(n, device=seeing.device).expand(b, p, n)  # b p s
            counts = [tokens.shape[1] for tokens in used]
        else:
            totals = torch.stack([seeing.sum(1).max(), *(tokens.sum(1).max() for tokens in used)])
            slots, *counts = totals.clamp(min=1).tolist()
            # those that see a cell come first, in their order
            camera = seeing.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :slots].mT
        located: list[Sight] = []
        for number, (built, scale, view) in enumerate(zip(self.sources, self.scales, views, strict=True)):
            assert isinstance(scale, WindowAttention)
            first, inside, index = listed(used[number], of_cameras(windows[number], camera), counts[number])
            offset = scale.embedding.centers(centers)  # b n d
            points = rows_at(view.points.flatten(1, 2), first)  # b t 3
            embedding = scale.embedding.points(points, rows_at(offset, first // built.tokens))
            cells = scale.embedding.cells(ground.unsqueeze(1), rows_at(offset, camera))
            if first.shape[1] < used[number].shape[1]:
                first, inside = neighbours(first, inside, built, self.neighbours or (1, 1))
            else:
                first, inside = first.unsqueeze(-1), inside.unsqueeze(-1)
            valid = of_cameras(view.valid, camera)
            located.append(Sight(first, inside, embedding, index, valid, cells, wanted[number].any(-1).any(1)))
        return tuple(located)

    def gather(self, features: Sequence[Tensor], located: tuple[Sight, ...]) -> Tensor:
        x = rearrange(self.prior, "d R C -> 1 (R C) d").expand(features[0].shape[0], -1, -1)
        for scale, middle, tokens, sight in zip(self.scales, self.middle, features, located, strict=True):
            x = scale(x, tokens, sight)
            x = rearrange(middle(rearrange(x, "b (R C) d -> b d R C", R=self.target_shape[0])), "b d R C -> b (R C) d")
        return rearrange(x, "b (R C) d -> b d R C", R=self.target_shape[0]).to(features[0].dtype)

    def load_original(self, state_dict: Mapping[str, Tensor]) -> "KernelAttention":
        """Take over published weights.

        Args:
            state_dict: of the published encoder (``GeometryKernelEncoder``), without those of its ``backbone``.

        Raises:
            InputError: when weights are missing, left over, or of another shape.
        """
        given = {}
        for name, value in state_dict.items():
            for theirs, ours in RENAMED.items():
                name = re.sub(f"^{theirs}", ours, name)
            given[name] = value.flatten(1) if "embedding" in name and value.ndim == 4 else value  # 1×1 convolutions
        self.check_original(
            given, "give the encoder's weights without its backbone's, and build it with as many scales and bottlenecks"
        )
        self.load_state_dict(given)
        return self
