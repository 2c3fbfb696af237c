"""Bilinear sampling of all feature scales at learned positions, with gradients into the positions.

:class:`FeatureAtlas` packs all scales of a camera into one map, so that a single gather samples all of them.
:func:`sample_pairs` is the entry point for deformable attention.
"""

import warnings
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bevreshape.geometry import FeatureShape
from bevreshape.ops.tensors import flat_index, is_exporting
from bevreshape.ops.visible_pairs import References
from bevreshape.ops.weighted_gather import spread, sum_rows

BORDER = 2
"""Rows and columns of zeros around every map: samples at -2 or beyond the last feature are 0, as is their gradient."""

FourWeights = tuple[Tensor, Tensor, Tensor, Tensor]


def bilinear(positions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, FourWeights]:
    """Return the corners of positions, (N, 2, K), the fractions beyond them, and the weights of the four features.

    The four, (N, K) each, are: the corner, right of it, below it, below and right.
    """
    corner = positions.floor()
    past = positions - corner
    below = weights * past[:, 1]
    above = weights - below
    above_right, below_right = above * past[:, 0], below * past[:, 0]
    return corner, past, (above - above_right, above_right, below - below_right, below_right)


def row_dots(left: Tensor, table: Tensor, columns: Tensor) -> Tensor:
    """Multiply row i of ``left`` by the rows of ``table`` listed in row i of ``columns``: (N, C)."""
    _accept_sparse()
    ends = torch.arange(0, columns.numel() + 1, columns.shape[1], dtype=columns.dtype, device=columns.device)
    nothing = left.new_zeros(columns.numel())
    wanted = torch.sparse_csr_tensor(ends, columns.flatten(), nothing, (len(left), len(table)), check_invariants=False)
    torch.sparse.sampled_addmm(wanted, left, table.mT, beta=0, out=wanted)
    return wanted.values().view(columns.shape)


@cache
def _accept_sparse() -> None:
    """Silence torch's warning that its sparse matrices are in beta, once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


class FeatureAtlas(nn.Module):
    """All feature scales of a camera in one map, below one another, with a border of zeros.

    With the border, zero padding is a clamp, for values and gradients. K = heads · scales · points is the number of
    samples of a query, in this order.

    Args:
        sources: the scales.
        heads: groups of channels, each with its own samples.
        points: samples per head and scale.
    """

    limit: Tensor
    origin: Tensor
    head: Tensor

    def __init__(self, sources: Sequence[FeatureShape], heads: int, points: int) -> None:
        super().__init__()
        self.sizes = [(scale.height, scale.width) for scale in sources]
        self.width = max(width for _, width in self.sizes) + 2 * BORDER
        tops = [BORDER]
        for height, _ in self.sizes:
            tops.append(tops[-1] + height + BORDER)
        self.height = tops.pop()
        self.heads, self.samples = heads, len(sources) * points
        per_scale = {
            "limit": [(width, height) for height, width in self.sizes],
            "origin": [(BORDER, top) for top in tops],
        }
        for key, value in per_scale.items():
            # integers: casting the module to half precision keeps them
            samples = torch.tensor(value).T.repeat_interleave(points, dim=1).repeat(1, heads)  # 2 K
            self.register_buffer(key, samples, persistent=False)
        self.register_buffer("head", torch.arange(heads).repeat_interleave(self.samples), persistent=False)

    def pack(self, values: Sequence[Float[Tensor, "bn _ d"]]) -> Float[Tensor, "bn rows cols d"]:
        """Copy the tokens of every scale into the atlas."""
        bordered: list[Tensor] = []
        for value, (height, width) in zip(values, self.sizes, strict=True):
            below = BORDER if len(bordered) + 1 == len(self.sizes) else 0
            sides = (0, 0, BORDER, self.width - BORDER - width, BORDER, below)
            bordered.append(F.pad(value.unflatten(1, (height, width)), sides))
        return torch.cat(bordered, dim=1) if len(bordered) > 1 else bordered[0]

    def on_atlas(self, positions: Float[Tensor, "N 2 K"]) -> Float[Tensor, "N 2 K"]:
        """Turn positions in features of their scale into columns and rows of the atlas."""
        return torch.minimum(positions.clamp(min=-BORDER), self.limit.to(positions.dtype)) + self.origin

    def corners(self, positions: Tensor, weights: Tensor, first: Tensor) -> tuple[Tensor, Tensor, FourWeights]:
        """Return the rows of the table of features, (bn·rows·cols·heads, channels of a head), that hold the corners.

        Args:
            positions: (N, 2, K), in features.
            weights: (N, K).
            first: (N,), the first row of the camera's atlas.

        Returns:
            Rows, (N·heads, K / heads), and the rest of what :func:`bilinear` returns.
        """
        corner, past, four = bilinear(self.on_atlas(positions), weights)
        row = (corner[:, 1] * self.width + corner[:, 0]) * self.heads + self.head
        return (row.int() + first[:, None]).view(-1, self.samples), past, four

    @property
    def steps(self) -> tuple[int, int, int, int]:
        """Return the distances in rows of the table from a corner to its four features."""
        below = self.width * self.heads
        return 0, self.heads, below, below + self.heads

    def around(self, rows: Tensor) -> Tensor:
        """Return the rows of all four, (N·heads, 4·K / heads)."""
        return torch.cat([rows + step for step in self.steps], dim=1)

    def gather(self, table: Tensor, positions: Tensor, weights: Tensor, first: Tensor) -> Tensor:
        """Return the samples of every head, summed, (N·heads, channels of a head)."""
        rows, _, four = self.corners(positions, weights, first)
        return sum_rows(table, self.around(rows), torch.cat([weight.view_as(rows) for weight in four], dim=1))

    def sample(self, packed: Tensor, positions: Tensor, weights: Tensor, camera: Tensor) -> Tensor:
        """Sum the samples of every head, bilinearly: (N, d).

        Args:
            packed: from :meth:`pack`, (bn, rows, cols, d).
            positions: (N, 2, K), in features.
            weights: (N, K).
            camera: (N,), index of the camera in bn.
        """
        table = packed.view(-1, packed.shape[-1] // self.heads)
        first = (camera * (self.height * self.width * self.heads)).int()
        own_backward = packed.device.type == "cpu" and not torch.compiler.is_compiling()
        gather = partial(DeformableSampling.apply, self) if own_backward else self.gather
        return gather(table, positions, weights, first).view(-1, packed.shape[-1])

    def sample_all(self, packed: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        """Sample equally many positions in every camera with exportable operations; see :meth:`sample`.

        Args:
            packed: from :meth:`pack`, (bn, rows, cols, d).
            positions: (bn, m, 2, K), in features.
            weights: (bn, m, K).

        Returns:
            (bn, m, d).
        """
        maps = rearrange(packed, "bn y x (a e) -> (bn a) e y x", a=self.heads)
        size = positions.new_tensor([self.width - 1, self.height - 1])
        x = self.on_atlas(positions.flatten(0, 1)).unflatten(0, positions.shape[:2])
        x = rearrange(x, "bn m xy (a s) -> (bn a) m s xy", a=self.heads) * (2 / size) - 1
        w = rearrange(weights, "bn m (a s) -> (bn a) 1 m s", a=self.heads)
        sampled = (F.grid_sample(maps, x, align_corners=True) * w).sum(-1)  # (bn a) e m
        return rearrange(sampled, "(bn a) e m -> bn m (a e)", a=self.heads)


def sample_pairs(
    atlas: FeatureAtlas,
    packed: Float[Tensor, "bn rows cols d"],
    offsets: Float[Tensor, "#b RC 2 K"],
    weights: Float[Tensor, "#b RC K"],
    references: References,
) -> Float[Tensor, "b RC d"]:
    """Average the weighted samples around a cell's reference points over the cameras that see the cell.

    Args:
        atlas: the atlas of the scales.
        packed: its features, of all cameras.
        offsets: Δ of every cell from its reference points, in features.
        weights: w of every sample.
        references: reference points of the pairs of a camera and a cell, one for every scale and point, (b, m, 2, K /
            heads).
    """
    pairs, share, reference = references
    cells, heads, (b, m) = offsets.shape[1], atlas.heads, pairs.shape
    # the first layer shares its queries between samples, later layers do not
    chosen = flat_index(pairs % cells, offsets.shape[0], cells)
    offsets = offsets.flatten(0, 1).index_select(0, chosen).view(b * m, 2, heads, -1)
    weights = weights.flatten(0, 1).index_select(0, chosen)
    positions = (offsets + reference.flatten(0, 1)[:, :, None]).flatten(2)  # bm 2 K
    if is_exporting():
        n = m // cells
        sampled = atlas.sample_all(packed, positions.view(b * n, cells, 2, -1), weights.view(b * n, cells, -1))
    else:
        sampled = atlas.sample(packed, positions, weights, flat_index(pairs // cells, b, packed.shape[0] // b))
    sampled = sampled.reshape(b, m, -1) * share[..., None]
    total = sampled.new_zeros(b * cells, sampled.shape[-1])
    return total.index_add_(0, flat_index(pairs % cells, b, cells), sampled.flatten(0, 1)).view(b, cells, -1)


class DeformableSampling(torch.autograd.Function):
    """:meth:`FeatureAtlas.gather` on a CPU, with its own backward pass.

    The backward pass of ``embedding_bag`` takes two to five times as long: it sorts four rows per sample instead of
    one, and multiplies rows of a few channels by a routine for long vectors. Indices are recomputed, not kept.
    """

    @staticmethod
    def forward(atlas: FeatureAtlas, table: Tensor, positions: Tensor, weights: Tensor, first: Tensor) -> Tensor:
        return atlas.gather(table, positions, weights, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.atlas, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, positions, weights, first = ctx.saved_tensors
        atlas: FeatureAtlas = ctx.atlas
        rows, past, four = atlas.corners(positions, weights, first)
        grad = grad.contiguous()
        grad_table = grad_positions = grad_weights = None
        if ctx.needs_input_grad[1]:
            corners = rows.flatten()
            readers = torch.arange(len(rows), dtype=rows.dtype, device=rows.device).repeat_interleave(atlas.samples)
            grad_table = spread(grad, readers, corners, [weight.flatten() for weight in four], atlas.steps, len(table))
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dots = row_dots(grad, table, atlas.around(rows)).view(-1, 4, atlas.samples)
            here, right, below, across = (dot.reshape(weights.shape) for dot in dots.unbind(1))
            along_above, along_below = right.sub_(here), across.sub_(below)
            above = torch.addcmul(here, along_above, past[:, 0])
            down = torch.addcmul(below, along_below, past[:, 0]).sub_(above)
            grad_weights = torch.addcmul(above, down, past[:, 1])
            grad_positions = torch.stack([torch.lerp(along_above, along_below, past[:, 1]), down], dim=1)
            grad_positions *= weights[:, None]
        return None, grad_table, grad_positions, grad_weights, None
