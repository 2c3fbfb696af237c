"""Pairs of a camera and a visible cell; only these pairs are computed."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.ops.tensors import is_exporting

FAR = -1e6
"""Position of a point outside all images, in pixels or features."""


class References(NamedTuple):
    """Pairs of a camera and a visible cell, equally many (m) for every sample.

    Attributes:
        pairs: (b, m), index ``camera·RC + cell`` of the pair.
        share: (b, m), 1 / number of cameras that see the cell; 0 for padding in samples with fewer than m pairs.
        positions: (b, m, 2, …), column and row of the cell's reference points in the camera's features.
    """

    pairs: Tensor
    share: Tensor
    positions: Tensor


def visible_pairs(points: Float[Tensor, "b n RC z 2"], seen: Bool[Tensor, "b n RC z"]) -> References:
    """List the pairs in which the camera sees at least one point of the cell.

    m is the largest number of pairs of a sample. An exported program lists all pairs, since its shapes must not depend
    on values.

    Returns:
        The pairs, with positions (b, m, z, 2); points that the camera does not see are at ``FAR``.
    """
    visible = seen.any(-1)  # b n RC
    share = (visible / visible.sum(1, keepdim=True).clamp(min=1)).flatten(1)
    points, visible = points.flatten(1, 2), visible.flatten(1)
    pairs = torch.arange(visible.shape[1], device=visible.device).expand_as(visible)
    if not is_exporting():
        rank = visible.cumsum(1)
        most = max(1, int(rank[:, -1].max()))
        slot = torch.where(visible, rank - 1, most)  # the last slot receives the invisible pairs
        pairs = pairs.new_zeros(visible.shape[0], most + 1).scatter_(1, slot, pairs)[:, :most]
        visible = torch.arange(most, device=visible.device) < rank[:, -1:]
        share = share.gather(1, pairs) * visible
        points = points.gather(1, pairs[..., None, None].expand(-1, -1, *points.shape[2:]))
    return References(pairs, share, torch.where(visible[..., None, None], points, torch.full_like(points, FAR)))


def every_pair(seen: References, count: int) -> References:
    """Expand the visible pairs of a fixed rig to all ``count`` pairs in order, for an exported program."""
    pairs, share, positions = seen
    if pairs.shape[1] == count:
        return seen
    all_shares = share.new_zeros(1, count).scatter(1, pairs, share)
    where = pairs[(..., *[None] * (positions.ndim - 2))].expand_as(positions)
    everywhere = positions.new_full((1, count, *positions.shape[2:]), FAR).scatter(1, where, positions)
    return References(torch.arange(count, device=pairs.device)[None], all_shares, everywhere)
