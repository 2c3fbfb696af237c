"""Windows of features that cells attend to, arranged so that every feature in a window is read once, and no other.

:func:`nearest_windows` finds the windows, :func:`arrange_windows` lists their features, :func:`window_attention`
attends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bevreshape.geometry import FeatureShape


class Windows(NamedTuple):
    """The g features around every cell's projection into n cameras, at one scale.

    Attributes:
        tokens: (b, n, p, g), integers in 0..hw−1, row-major indices of a camera's features.
        valid: (b, n, p, g), false for features that are not attended to.
    """

    tokens: Int[Tensor, "b n p g"]
    valid: Bool[Tensor, "b n p g"]


class Arranged(NamedTuple):
    """The windows of s cameras per cell, as indices into a list of t features of all cameras.

    Attributes:
        tokens: (b, t, a), the features that are read, with their a neighbours, indexed over all cameras.
        inside: (b, t, a), false where there is no feature.
        windows: (b, p, s·g), indices into the t tokens.
        valid: (b, p, s·g), false for features that are not attended to.
        seen: (b, p), whether any camera sees the cell.
    """

    tokens: Int[Tensor, "b t a"]
    inside: Bool[Tensor, "b t a"]
    windows: Int[Tensor, "b p sg"]
    valid: Bool[Tensor, "b p sg"]
    seen: Bool[Tensor, "b p"]

    @property
    def features(self) -> Int[Tensor, "b t"]:
        """Return the features without their neighbours."""
        return self.tokens[..., self.tokens.shape[-1] // 2]


def nearest_windows(
    pixels: Float[Tensor, "b n p 2"], scale: FeatureShape, size: tuple[int, int], seen: Bool[Tensor, "b n p"]
) -> Windows:
    """Return the windows of (rows, columns) features nearest to pixels, clipped at the map's border.

    Args:
        pixels: (u, v) of every cell in every image.
        scale: the features.
        size: rows and columns of a window.
        seen: whether a camera sees a cell.
    """
    k_h, k_w = size
    positions = ((pixels - scale.offset_px) / scale.stride).unbind(-1)
    (j, has_j), (i, has_i) = (
        nearest(position, count, cells)
        for position, count, cells in zip(positions, (k_w, k_h), (scale.width, scale.height), strict=True)
    )
    index = i.unsqueeze(-1) * scale.width + j.unsqueeze(-2)  # b n p kh kw
    inside = (has_i.unsqueeze(-1) & has_j.unsqueeze(-2)).flatten(3)
    return Windows(index.flatten(3), inside & seen.unsqueeze(-1))


def arrange_windows(
    windows: Sequence[Windows], sources: Sequence[FeatureShape], around: tuple[int, int], average_unseen: bool
) -> tuple[list[Arranged], Int[Tensor, "b p s"]]:
    """List the features of all scales that are in a window, and the cameras that see a cell.

    Counting them synchronises host and device once. A compiled or exported program lists all, since its shapes must not
    depend on values.

    Args:
        windows: windows of every scale.
        sources: the scales.
        around: rows and columns of neighbours that are read with a feature.
        average_unseen: list all windows of a cell without valid features.

    Returns:
        The arranged windows of every scale, and the s cameras of every cell.
    """
    wanted = [scale.valid for scale in windows]
    if average_unseen:
        wanted = [valid | ~valid.any(-1, keepdim=True).any(1, keepdim=True) for valid in wanted]
    seeing = torch.stack([features.any(-1) for features in wanted]).any(0)  # b n p
    indices = [over_cameras(scale.tokens, built.tokens) for scale, built in zip(windows, sources, strict=True)]
    used = [
        used_tokens(index, features, built.tokens)
        for index, features, built in zip(indices, wanted, sources, strict=True)
    ]
    b, n, p = seeing.shape
    if torch.compiler.is_compiling():
        camera = torch.arange(n, device=seeing.device).expand(b, p, n)  # b p s
        counts = [tokens.shape[1] for tokens in used]
    else:
        totals = torch.stack([seeing.sum(1).max(), *(tokens.sum(1).max() for tokens in used)])
        slots, *counts = totals.clamp(min=1).tolist()
        # the cameras that see a cell come first, in their order
        camera = seeing.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :slots].mT
    found = []
    for number, (built, scale) in enumerate(zip(sources, windows, strict=True)):
        tokens, inside, index = listed(used[number], of_cameras(indices[number], camera), counts[number])
        if tokens.shape[1] < used[number].shape[1]:
            tokens, inside = neighbours(tokens, inside, built, around)
        else:
            tokens, inside = tokens.unsqueeze(-1), inside.unsqueeze(-1)
        seen = wanted[number].any(-1).any(1)
        found.append(Arranged(tokens, inside, index, of_cameras(scale.valid, camera), seen))
    return found, camera


def window_attention(
    queries: Float[Tensor, "b p s d"],
    keys: Float[Tensor, "b t d"],
    values: Float[Tensor, "b t d"],
    arranged: Arranged,
    heads: int,
) -> Float[Tensor, "b p d"]:
    """Attend from every cell to its windows in all its cameras, ``softmax(q·kᵀ/√d_head)·v`` per head.

    Args:
        queries: queries of every cell, one for each of its s cameras.
        keys: keys of the features that are read.
        values: values of the same features.
        arranged: the windows.
        heads: number of heads that share the d channels.
    """
    k, v = (
        rearrange(rows_at(table, arranged.windows), "b p w (a d) -> b p w a d", a=heads) for table in (keys, values)
    )
    q = rearrange(queries, "b p s (a d) -> b p s 1 a d", a=heads)
    dots = (q * k.unflatten(2, (queries.shape[2], -1))).sum(-1).flatten(2, 3)  # b p w a
    # finite, because a cell without windows would be NaN
    dots = (dots * q.shape[-1] ** -0.5).masked_fill(~arranged.valid.unsqueeze(-1), torch.finfo(dots.dtype).min)
    return (dots.softmax(2).to(v.dtype).unsqueeze(-1) * v).sum(2).flatten(2)


def rows_at(table: Float[Tensor, "b t d"], index: Int[Tensor, "_ ..."]) -> Tensor:
    """Select rows of (b, t, d) at an index (b or 1, ...) → (b, ..., d)."""
    b, t, _ = table.shape
    start = torch.arange(b, device=index.device).reshape(b, *[1] * (index.ndim - 1)) * t
    return F.embedding(index + start, table.flatten(0, 1))


def nearest(position: Float[Tensor, "*p"], size: int, cells: int) -> tuple[Int[Tensor, "*p g"], Bool[Tensor, "*p g"]]:
    """Return the ``size`` integers nearest to a position, clamped to the cells, and whether each was inside.

    Far outside, the integers are shifted until the first or the last cell is among them.
    """
    first = (position - size / 2 + 1).floor().clamp(1 - size, cells - 1).long()
    numbers = first.unsqueeze(-1) + torch.arange(size, device=position.device)
    return numbers.clamp(0, cells - 1), (numbers >= 0) & (numbers < cells)


def over_cameras(windows: Int[Tensor, "b n p g"], tokens: int) -> Int[Tensor, "b n p g"]:
    """Turn indices of features in their camera into indices over all cameras."""
    return windows + torch.arange(windows.shape[1], device=windows.device)[:, None, None] * tokens


def of_cameras(values: Tensor, camera: Int[Tensor, "b p s"]) -> Tensor:
    """Select every cell's cameras: (b, n, p, g) → (b, p, s·g)."""
    index = camera.mT.unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])  # b s p g
    return rearrange(values.gather(1, index), "b s p g -> b p (s g)")


def used_tokens(windows: Int[Tensor, "b n p g"], wanted: Bool[Tensor, "b n p g"], tokens: int) -> Bool[Tensor, "b nt"]:
    """Return which features are in a wanted window; ``windows`` indexes them over all cameras."""
    b, n = windows.shape[:2]
    last = n * tokens  # slot of unwanted features
    used = torch.zeros(b, last + 1, dtype=torch.bool, device=windows.device)
    return used.scatter(1, windows.masked_fill(~wanted, last).flatten(1), True)[:, :last]


def listed(
    used: Bool[Tensor, "b nt"], windows: Int[Tensor, "b p w"], count: int
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"], Int[Tensor, "b p w"]]:
    """List the features that are used, at most ``count``.

    If most features are used, the list holds all of them, which is faster.

    Returns:
        The list, which of its slots hold a feature, and the windows as indices into the list.
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
    """Return the neighbours of features, indexed over all cameras, and which of them exist."""
    down, right = (torch.arange(cells, device=tokens.device) - cells // 2 for cells in size)
    row = (tokens % source.tokens // source.width)[..., None, None] + down.unsqueeze(1)  # b t i 1
    col = (tokens % source.width)[..., None, None] + right  # b t 1 j
    inside = (row >= 0) & (row < source.height) & (col >= 0) & (col < source.width) & there[..., None, None]
    index = tokens[..., None, None] + down.unsqueeze(1) * source.width + right
    return index.masked_fill(~inside, 0).flatten(2), inside.flatten(2)
