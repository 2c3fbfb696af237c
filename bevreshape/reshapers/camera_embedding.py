"""Embeddings of the calibration, shared by reshapers that attend from cells to cameras."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-7
"""Keeps lengths above 0, as published."""


class CameraEmbedding(nn.Module):
    """Learned unit vectors of viewing directions, from coordinates (CVT, Zhou and Krähenbühl 2022).

    A feature is ``P·(point, 1) − O·(center, 1)`` with the point 1 m deep on its ray; a cell is ``G·(x, y) + g −
    O·(center, 1)``. Each is divided by its length. The angle between the two depends on whether the camera at that
    centre sees the cell in that feature. Coordinates are metres in the ego frame, computed in float32 or more at every
    precision of the network; linear maps that follow have the network's precision.

    Args:
        dim: width of the embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.point = nn.Linear(4, dim, bias=False)
        self.center = nn.Linear(4, dim, bias=False)
        self.cell = nn.Linear(2, dim)

    def centers(self, centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n d"]:
        """Return ``O·(center, 1)``, not normalised, which the other embeddings subtract."""
        weight = self.center.weight
        return affine(centers, weight[:, :3], weight[:, 3])

    def points(self, points: Float[Tensor, "*t 3"], centers: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """Embed features, given points on their rays and the result of :meth:`centers`."""
        weight = self.point.weight
        return unit(affine(points, weight[:, :3], weight[:, 3] - centers))

    def rays(self, rays: Float[Tensor, "*n t 3"], centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 7 t"]:
        """Return z such that ``ray_weight · z`` equals :meth:`points` of ``centers + rays``, before a linear map.

        It has 7 channels for every width of the embedding. The length is computed from products of the weights.
        """
        dtype = torch.promote_types(rays.dtype, self.point.weight.dtype)
        known = _with_center(rays.to(dtype), centers)  # n 7 t
        weight = self.ray_weight(dtype)
        square = (known * (weight.mT @ weight @ known)).sum(-2, keepdim=True)  # |Wz|² = zᵀWᵀWz
        # above 0, where the root's gradient would be infinite
        return known / (square.clamp(min=1e-20).sqrt() + TINY)

    def ray_weight(self, dtype: torch.dtype) -> Float[Tensor, "d 7"]:
        """Return the matrix of (ray, centre, 1) → ``P·(centre + ray, 1) − O·(centre, 1)``."""
        point, center = self.point.weight.to(dtype), self.center.weight.to(dtype)
        return torch.cat([point[:, :3], point - center], dim=1)

    def cells(self, ground: Float[Tensor, "*p 2"], centers: Float[Tensor, "*q d"]) -> Float[Tensor, "*r d"]:
        """Embed cells as seen by cameras, given ground positions and the result of :meth:`centers`."""
        return unit(self._away(ground, centers))

    def seen_cells(self, ground: Float[Tensor, "p 2"], centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 7 p"]:
        """Return z such that ``cell_weight · z`` equals :meth:`cells`, to be followed by a linear map.

        The last channel is the sum of the embedding's squared deviations from its mean, for a LayerNorm.
        """
        away = self._away(ground, self.centers(centers).unsqueeze(-2))  # n p d
        norm = torch.linalg.vector_norm(away, dim=-1).unsqueeze(-2)  # n 1 p
        length = norm + TINY
        spread = (norm.square() - away.shape[-1] * away.mean(-1).unsqueeze(-2).square()).clamp(min=0)  # n 1 p
        known = _with_center(ground.to(away.dtype).expand(*centers.shape[:-1], -1, -1), centers)  # n 6 p
        return torch.cat([known, spread / length], dim=-2) / length

    def cell_weight(self, dtype: torch.dtype) -> Float[Tensor, "d 6"]:
        """Return the matrix of (x, y, centre, 1) → ``G·(x, y) + g − O·(centre, 1)``."""
        weight, bias, center = (x.to(dtype) for x in (self.cell.weight, self.cell.bias, self.center.weight))
        return torch.cat([weight, -center[:, :3], (bias - center[:, 3])[:, None]], dim=1)

    def _away(self, ground: Tensor, centers: Tensor) -> Tensor:
        return affine(ground, self.cell.weight, self.cell.bias) - centers


def _with_center(points: Float[Tensor, "*n t i"], centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n _ t"]:
    """Return (point, centre, 1) for every point of every camera."""
    ones = F.pad(centers.to(points.dtype), (0, 1), value=1.0).unsqueeze(-1)  # n 4 1
    return torch.cat([points.mT, ones.expand(*ones.shape[:-1], points.shape[-2])], dim=-2)


def affine(points: Float[Tensor, "*t i"], weight: Float[Tensor, "d i"], bias: Tensor) -> Float[Tensor, "*t d"]:
    """Return ``points·weightᵀ + bias`` in the higher precision of points and weights."""
    dtype = torch.promote_types(points.dtype, weight.dtype)
    points, weight, total = points.to(dtype), weight.to(dtype), bias.to(dtype)
    for i in range(points.shape[-1]):
        total = torch.addcmul(total, points[..., i, None], weight[:, i])
    return total


def unit(x: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
    """Divide by the length."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + TINY)
