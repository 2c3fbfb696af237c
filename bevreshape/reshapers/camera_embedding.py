"""Embeddings that know the calibration, shared by the reshapers that attend from cells to cameras."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

TINY = 1e-7
"""Keeps lengths from 0, as published."""


class CameraEmbedding(nn.Module):
    """Unit vectors of directions as a camera looks, learned from coordinates (CVT, Zhou and Krähenbühl 2022).

    A feature is ``P·(point, 1) − O·(center, 1)``, the point 1 m deep on its ray, and a cell ``G·(x, y) + g −
    O·(center, 1)``, each divided by its length: the angle between the two says whether the camera at that centre sees
    the cell in that feature. All coordinates are metres in the ego frame, and the arithmetic is theirs (float32 or
    more), whatever the precision of the network; what is linear after it is multiplied as the network multiplies.

    Args:
        dim: width of the embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.point = nn.Linear(4, dim, bias=False)
        self.center = nn.Linear(4, dim, bias=False)
        self.cell = nn.Linear(2, dim)

    def centers(self, centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n d"]:
        """What the others subtract: ``O·(center, 1)``, not divided."""
        weight = self.center.weight
        return affine(centers, weight[:, :3], weight[:, 3])

    def points(self, points: Float[Tensor, "*t 3"], centers: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
        """Of features, from points on their rays and what :meth:`centers` said of their cameras."""
        weight = self.point.weight
        return unit(affine(points, weight[:, :3], weight[:, 3] - centers))

    def rays(self, rays: Float[Tensor, "*n t 3"], centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 7 t"]:
        """What :meth:`ray_weight` takes to the same as :meth:`points` of ``centers + rays``, for one linear map to
        follow.

        It is 7 wide, however wide the embedding, whose length comes from the weights' own products.
        """
        dtype = torch.promote_types(rays.dtype, self.point.weight.dtype)
        known = _with_center(rays.to(dtype), centers)  # n 7 t
        weight = self.ray_weight(dtype)
        square = (known * (weight.mT @ weight @ known)).sum(-2, keepdim=True)  # |Wz|² = zᵀWᵀWz
        # kept from 0, where the root's gradient would be infinite
        return known / (square.clamp(min=1e-20).sqrt() + TINY)

    def ray_weight(self, dtype: torch.dtype) -> Float[Tensor, "d 7"]:
        """Of (ray, centre, 1): ``P·(centre + ray, 1) − O·(centre, 1)``."""
        point, center = self.point.weight.to(dtype), self.center.weight.to(dtype)
        return torch.cat([point[:, :3], point - center], dim=1)

    def cells(self, ground: Float[Tensor, "*p 2"], centers: Float[Tensor, "*q d"]) -> Float[Tensor, "*r d"]:
        """Of cells as seen by cameras, from positions on the ground and what :meth:`centers` said of the cameras."""
        return unit(self._away(ground, centers))

    def seen_cells(self, ground: Float[Tensor, "p 2"], centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 7 p"]:
        """What :meth:`cell_weight` takes to the same as :meth:`cells`, for one linear map to follow, and last the sum
        of their squared distances from their mean, for a LayerNorm to follow."""
        away = self._away(ground, self.centers(centers).unsqueeze(-2))  # n p d
        norm = torch.linalg.vector_norm(away, dim=-1).unsqueeze(-2)  # n 1 p
        length = norm + TINY
        spread = (norm.square() - away.shape[-1] * away.mean(-1).unsqueeze(-2).square()).clamp(min=0)  # n 1 p
        known = _with_center(ground.to(away.dtype).expand(*centers.shape[:-1], -1, -1), centers)  # n 6 p
        return torch.cat([known, spread / length], dim=-2) / length

    def cell_weight(self, dtype: torch.dtype) -> Float[Tensor, "d 6"]:
        """Of (x, y, centre, 1): ``G·(x, y) + g − O·(centre, 1)``."""
        weight, bias, center = (x.to(dtype) for x in (self.cell.weight, self.cell.bias, self.center.weight))
        return torch.cat([weight, -center[:, :3], (bias - center[:, 3])[:, None]], dim=1)

    def _away(self, ground: Tensor, centers: Tensor) -> Tensor:
        return affine(ground, self.cell.weight, self.cell.bias) - centers


def _with_center(points: Float[Tensor, "*n t i"], centers: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n _ t"]:
    """(point, centre, 1) of every point of every camera."""
    ones = F.pad(centers.to(points.dtype), (0, 1), value=1.0).unsqueeze(-1)  # n 4 1
    return torch.cat([points.mT, ones.expand(*ones.shape[:-1], points.shape[-2])], dim=-2)


def affine(points: Float[Tensor, "*t i"], weight: Float[Tensor, "d i"], bias: Tensor) -> Float[Tensor, "*t d"]:
    """``points·weightᵀ + bias`` in the precision of the points or the weights, whichever is higher."""
    dtype = torch.promote_types(points.dtype, weight.dtype)
    points, weight, total = points.to(dtype), weight.to(dtype), bias.to(dtype)
    for i in range(points.shape[-1]):
        total = torch.addcmul(total, points[..., i, None], weight[:, i])
    return total


def unit(x: Float[Tensor, "*t d"]) -> Float[Tensor, "*t d"]:
    """Divided by its length."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + TINY)
