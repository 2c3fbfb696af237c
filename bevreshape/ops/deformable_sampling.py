"""Bilinear reading of all feature scales at places that are learned, with gradients into the places."""

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
from bevreshape.ops.sampling import spread, sum_rows

FRAME = 2
"""Zeros around every map: whatever is read at -2 or beyond the last feature is 0, and so is its gradient."""

Taps = tuple[Tensor, Tensor, Tensor, Tensor]


def bilinear(places: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Taps]:
    """Corners (N, 2, K), how far past them the places lie, and what the four features around weigh, (N, K) each.

    The four are in the order of reading: here, right of it, below it, below and right.
    """
    corner = places.floor()
    past = places - corner
    below = weights * past[:, 1]
    above = weights - below
    above_right, below_right = above * past[:, 0], below * past[:, 0]
    return corner, past, (above - above_right, above_right, below - below_right, below_right)


def row_dots(left: Tensor, table: Tensor, columns: Tensor) -> Tensor:
    """Row i of ``left`` times every row of ``table`` that row i of ``columns`` names, in the shape of ``columns``."""
    _accept_sparse()
    ends = torch.arange(0, columns.numel() + 1, columns.shape[1], dtype=columns.dtype, device=columns.device)
    nothing = left.new_zeros(columns.numel())
    wanted = torch.sparse_csr_tensor(ends, columns.flatten(), nothing, (len(left), len(table)), check_invariants=False)
    torch.sparse.sampled_addmm(wanted, left, table.mT, beta=0, out=wanted)
    return wanted.values().view(columns.shape)


@cache
def _accept_sparse() -> None:
    """Torch says once a process that its sparse matrices are in beta, which is no concern of the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


class FeatureAtlas(nn.Module):
    """All feature scales of a camera on one map, below one another and framed by zeros.

    The frame makes zero padding a matter of clamping, of values and gradients alike, and one map makes all scales one
    gather. K = heads · scales · points are the samples of a query, in this order.

    Args:
        sources: the scales.
        heads: parts of the channels, each with its own samples.
        points: samples of a head on a scale.
    """

    limit: Tensor
    origin: Tensor
    head: Tensor

    def __init__(self, sources: Sequence[FeatureShape], heads: int, points: int) -> None:
        super().__init__()
        self.sizes = [(scale.height, scale.width) for scale in sources]
        self.width = max(width for _, width in self.sizes) + 2 * FRAME
        tops = [FRAME]
        for height, _ in self.sizes:
            tops.append(tops[-1] + height + FRAME)
        self.height = tops.pop()
        self.heads, self.samples = heads, len(sources) * points
        per_scale = {
            "limit": [(width, height) for height, width in self.sizes],
            "origin": [(FRAME, top) for top in tops],
        }
        for key, value in per_scale.items():
            # whole numbers, which a module cast to half precision leaves alone
            samples = torch.tensor(value).T.repeat_interleave(points, dim=1).repeat(1, heads)  # 2 K
            self.register_buffer(key, samples, persistent=False)
        self.register_buffer("head", torch.arange(heads).repeat_interleave(self.samples), persistent=False)

    def paint(self, values: Sequence[Float[Tensor, "bn _ d"]]) -> Float[Tensor, "bn rows cols d"]:
        """Put the tokens of every scale in their place."""
        framed: list[Tensor] = []
        for value, (height, width) in zip(values, self.sizes, strict=True):
            below = FRAME if len(framed) + 1 == len(self.sizes) else 0
            sides = (0, 0, FRAME, self.width - FRAME - width, FRAME, below)
            framed.append(F.pad(value.unflatten(1, (height, width)), sides))
        return torch.cat(framed, dim=1) if len(framed) > 1 else framed[0]

    def on_canvas(self, places: Float[Tensor, "N 2 K"]) -> Float[Tensor, "N 2 K"]:
        """Columns and rows of the canvas of places given in features of their scale."""
        return torch.minimum(places.clamp(min=-FRAME), self.limit.to(places.dtype)) + self.origin

    def look_up(self, places: Tensor, weights: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Taps]:
        """Rows of the table of features (bn·rows·cols·heads, channels of a head) in which the corners of places are, on
        canvases that begin at row ``first``, (N·heads, K / heads); with them what :func:`bilinear` says."""
        corner, past, taps = bilinear(self.on_canvas(places), weights)
        row = (corner[:, 1] * self.width + corner[:, 0]) * self.heads + self.head
        return (row.int() + first[:, None]).view(-1, self.samples), past, taps

    @property
    def steps(self) -> tuple[int, int, int, int]:
        """Rows of the table from a corner to the four features."""
        below = self.width * self.heads
        return 0, self.heads, below, below + self.heads

    def around(self, rows: Tensor) -> Tensor:
        """The rows of all four, (N·heads, 4·K / heads)."""
        return torch.cat([rows + step for step in self.steps], dim=1)

    def add_up(self, table: Tensor, places: Tensor, weights: Tensor, first: Tensor) -> Tensor:
        """What every head reads, (N·heads, channels of a head)."""
        rows, _, taps = self.look_up(places, weights, first)
        return sum_rows(table, self.around(rows), torch.cat([tap.view_as(rows) for tap in taps], dim=1))

    def read(self, canvas: Tensor, places: Tensor, weights: Tensor, camera: Tensor) -> Tensor:
        """Sum the samples of every head, bilinearly read: (N, d).

        Args:
            canvas: what :meth:`paint` made, (bn, rows, cols, d).
            places: (N, 2, K), in features.
            weights: (N, K).
            camera: (N) which canvas.
        """
        table = canvas.view(-1, canvas.shape[-1] // self.heads)
        first = (camera * (self.height * self.width * self.heads)).int()
        own_backward = canvas.device.type == "cpu" and not torch.compiler.is_compiling()
        add_up = partial(DeformableSampling.apply, self) if own_backward else self.add_up
        return add_up(table, places, weights, first).view(-1, canvas.shape[-1])

    def read_all(self, canvas: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """:meth:`read` of equally many places in every camera, (bn, m, 2, K) → (bn, m, d), in operations that export."""
        maps = rearrange(canvas, "bn y x (a e) -> (bn a) e y x", a=self.heads)
        size = places.new_tensor([self.width - 1, self.height - 1])
        x = self.on_canvas(places.flatten(0, 1)).unflatten(0, places.shape[:2])
        x = rearrange(x, "bn m xy (a s) -> (bn a) m s xy", a=self.heads) * (2 / size) - 1
        w = rearrange(weights, "bn m (a s) -> (bn a) 1 m s", a=self.heads)
        read = (F.grid_sample(maps, x, align_corners=True) * w).sum(-1)  # (bn a) e m
        return rearrange(read, "(bn a) e m -> bn m (a e)", a=self.heads)


class DeformableSampling(torch.autograd.Function):
    """:meth:`FeatureAtlas.read` on a CPU, with a backward of its own.

    That of ``embedding_bag`` takes two to five times as long: it sorts four rows a sample where one will do, and
    multiplies rows of a few channels by a routine made for long vectors. Indices are found again rather than kept.
    """

    @staticmethod
    def forward(canvas: FeatureAtlas, table: Tensor, places: Tensor, weights: Tensor, first: Tensor) -> Tensor:
        return canvas.add_up(table, places, weights, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.canvas, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, places, weights, first = ctx.saved_tensors
        canvas: FeatureAtlas = ctx.canvas
        rows, past, taps = canvas.look_up(places, weights, first)
        grad = grad.contiguous()
        grad_table = grad_places = grad_weights = None
        if ctx.needs_input_grad[1]:
            first_taps = rows.flatten()
            readers = torch.arange(len(rows), dtype=rows.dtype, device=rows.device).repeat_interleave(canvas.samples)
            grad_table = spread(grad, readers, first_taps, [tap.flatten() for tap in taps], canvas.steps, len(table))
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dots = row_dots(grad, table, canvas.around(rows)).view(-1, 4, canvas.samples)
            here, right, below, across = (dot.reshape(weights.shape) for dot in dots.unbind(1))
            along_above, along_below = right.sub_(here), across.sub_(below)
            above = torch.addcmul(here, along_above, past[:, 0])
            down = torch.addcmul(below, along_below, past[:, 0]).sub_(above)
            grad_weights = torch.addcmul(above, down, past[:, 1])
            grad_places = torch.stack([torch.lerp(along_above, along_below, past[:, 1]), down], dim=1)
            grad_places *= weights[:, None]
        return None, grad_table, grad_places, grad_weights, None
