"""Distortion models, and undistortion into pinhole images.

The forward models map the plane z = 1 of the camera frame to stored pixels. They are Kornia's, as OpenCV defines them:
``opencv`` with k1, k2, p1, p2[, k3[, k4, k5, k6]] (Brown-Conrady, rational with eight) and ``fisheye`` with k1 to k4
(Kannala-Brandt). Undistortion needs the forward model alone: it finds the stored pixel of every pixel of the pinhole
image. Only the edge of the stored image is inverted, once per model, to find the pinhole image that it fills.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from kornia.geometry.calibration import distort_points
from kornia.geometry.camera import distort_points_kannala_brandt
from torch import Tensor
from torch.nn import functional as F

from bevreshape.errors import InputError
from bevreshape.geometry.cameras import apply_homography, invert_intrinsics

MODELS = {"opencv": (4, 5, 8), "fisheye": (4,)}
"""Numbers of coefficients that each model takes."""

EDGE_POINTS = 129
"""Inverted points along one side of the stored image."""
STEPS = 16
"""Continuation steps outwards from the optical axis, so that the solution is connected with it."""
NEWTON = 6
"""Newton iterations per step."""
TOLERANCE_PX = 0.01
RAY_STEP_PX = 8
NARROWEST_FOCAL = 0.1
"""Relative to the image's longer side: a pinhole image wider than about 157 degrees has a tiny middle."""

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class DistortionModel:
    """A camera with distortion. It is hashable, so that derived values are computed once.

    Attributes:
        model: a key of ``MODELS``.
        coefficients: in OpenCV's order.
        intrinsics: ``pixel_from_cam`` of the stored image, three rows.
        image_size: (H, W) of the stored image, and of the pinhole image.
        chosen: intrinsics of the pinhole image; ``None`` for those that keep most of the stored image.
    """

    model: str
    coefficients: tuple[float, ...]
    intrinsics: Rows
    image_size: tuple[int, int]
    chosen: Rows | None = None

    def distort(self, points: Float[Tensor, "p 2"]) -> Float[Tensor, "p 2"]:
        """Project points (x, y) of the plane z = 1 of the camera frame to stored pixels (u, v)."""
        return apply_homography(_matrix(self.intrinsics).to(points.dtype), self._distorted(points))[0]

    def undistort(self, pixels: Float[Tensor, "p 2"]) -> tuple[Float[Tensor, "p 2"], Bool[Tensor, " p"]]:
        """Return the points (x, y) of the plane z = 1 at stored pixels (u, v), to a millionth of a focal length.

        Returns:
            The points, and whether each is valid. A point is valid if the model is one-to-one from the optical axis up
            to it, and the point is in front of the camera.
        """
        goal = apply_homography(invert_intrinsics(_matrix(self.intrinsics)), pixels.double())[0]
        points = torch.zeros_like(goal)
        for step in range(1, STEPS + 1):
            for _ in range(NEWTON):
                value, (a, b, c, d) = self._distorted_and_jacobian(points)
                x, y = (goal * (step / STEPS) - value).unbind(-1)
                determinant = a * d - b * c
                move = torch.stack([d * x - b * y, a * y - c * x], dim=-1) / determinant[:, None]
                points = torch.nan_to_num(points + move, 0.0, 1e9, -1e9)
        found = ((self._distorted(points) - goal).norm(dim=-1) < 1e-6) & (points.norm(dim=-1) < 1e6)
        for step in range(2 * STEPS + 1):
            found &= self.is_upright(points * (step / (2 * STEPS)))
        return points, found

    def _distorted(self, points: Tensor) -> Tensor:
        """Distort points on the plane z = 1."""
        coefficients = torch.tensor(self.coefficients, dtype=points.dtype)
        if self.model == "fisheye":
            unit = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=points.dtype)  # focal lengths and principal point
            return distort_points_kannala_brandt(points, torch.cat([unit, coefficients]))
        return distort_points(points[None], torch.eye(3, dtype=points.dtype)[None], coefficients[None])[0]

    def _distorted_and_jacobian(self, points: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return distorted points, and the Jacobian's entries row by row."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            value = self._distorted(points)
            u, v = (torch.autograd.grad(value[:, i].sum(), points, retain_graph=True)[0] for i in range(2))
        return value.detach(), (u[:, 0], u[:, 1], v[:, 0], v[:, 1])

    def is_upright(self, points: Tensor) -> Tensor:
        """Return where the distortion neither folds nor mirrors."""
        a, b, c, d = self._distorted_and_jacobian(points)[1]
        return a * d - b * c > 0


@lru_cache(maxsize=256)
def pinhole_intrinsics(distortion: DistortionModel) -> Float[Tensor, "3 3"]:
    """Return ``pixel_from_cam`` of the undistorted pinhole image, which has the stored image's size.

    Unless they are chosen, the intrinsics show the largest upright rectangle of the plane z = 1 that the stored image
    covers. Every pixel then has a source (OpenCV's ``getOptimalNewCameraMatrix`` with alpha = 0 and densely sampled
    edges).

    Raises:
        InputError: if the distortion is not one-to-one over the pinhole image, or leaves a pixel of it without a
            source.
    """
    height, width = distortion.image_size
    intrinsics = _widest(distortion) if distortion.chosen is None else _matrix(distortion.chosen)
    edges = torch.cat([*_edges(distortion.image_size)])
    across, down = torch.linspace(0, width - 1, 65), torch.linspace(0, height - 1, 65)
    inner = torch.cartesian_prod(across, down).double()
    rays = [apply_homography(invert_intrinsics(intrinsics), pixels)[0] for pixels in (edges, inner)]
    sources = distortion.distort(rays[0])
    last = torch.tensor([width - 1, height - 1], dtype=torch.float64)
    outside = ((sources < -TOLERANCE_PX) | (sources > last + TOLERANCE_PX)).any(-1) | ~distortion.is_upright(rays[0])
    if not distortion.is_upright(rays[1]).all():
        raise InputError(f"the distortion {_written(distortion)} folds the image over; {_REMEDY}")
    if outside.any():
        (u, v), (x, y) = edges[outside][0].tolist(), sources[outside][0].tolist()
        raise InputError(
            f"pixel ({u:g}, {v:g}) of the undistorted image comes from ({x:.1f}, {y:.1f}), outside the stored image of "
            f"{width}×{height} pixels; choose {'longer ' if distortion.chosen else ''}focal lengths in "
            f"distortion.intrinsics{', or leave them out' if distortion.chosen else ''}"
        )
    return intrinsics


def source_pixels(
    distortion: DistortionModel, intrinsics: Float[Tensor, "3 3"], image_size: tuple[int, int]
) -> Float[Tensor, "height width 2"]:
    """Return the stored pixel (u, v) of every pixel of a pinhole image of ``image_size`` with ``intrinsics``."""
    v, u = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in image_size), indexing="ij")
    rays = apply_homography(invert_intrinsics(intrinsics), torch.stack([u, v], dim=-1).flatten(0, 1))[0]
    return distortion.distort(rays).reshape(*image_size, 2)


def rays_at(distortion: DistortionModel, pixels: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
    """Return unit rays in the camera frame at stored pixels (u, v); NaN where no point in front of the camera projects.

    Rays are solved for once per model at pixels ``RAY_STEP_PX`` apart, and interpolated between them. The error is 0.03
    pixels for a fisheye of 300 pixels a radian.
    """
    grid = _rays(distortion)
    last = torch.tensor([max(side - 1, 1) for side in reversed(distortion.image_size)], dtype=torch.float64)
    grid_positions = pixels.double() / last * 2 - 1
    return F.grid_sample(grid, grid_positions[None, None], align_corners=True)[0, :, 0].T


@lru_cache(maxsize=32)
def _rays(distortion: DistortionModel) -> Float[Tensor, "1 3 rows cols"]:
    v, u = (
        torch.linspace(0, side - 1, -(-side // RAY_STEP_PX) + 1, dtype=torch.float64) for side in distortion.image_size
    )
    pixels = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)
    points, found = distortion.undistort(pixels.flatten(0, 1))
    rays = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
    rays = torch.where(found[:, None], rays / rays.norm(dim=1, keepdim=True), torch.nan)
    return rays.T.reshape(1, 3, *pixels.shape[:2])


_REMEDY = (
    "correct the coefficients (their order is k1, k2, p1, p2, k3, k4, k5, k6, of a fisheye k1 to k4), or set "
    "distortion.intrinsics to those of a narrower undistorted image"
)


def _widest(distortion: DistortionModel) -> Tensor:
    """Return the rectangle between the stored image's sides.

    Corners that cannot be undistorted are left out: calibration patterns hardly reach them. Where they matter, the
    rectangle turns out not to be covered.
    """
    height, width = distortion.image_size
    sides = _edges(distortion.image_size)
    points, found = (part.split(EDGE_POINTS) for part in distortion.undistort(torch.cat([*sides])))
    for pixels, known in zip(sides, found, strict=True):
        if not known.any():
            (u, v), (to_u, to_v) = pixels[0].tolist(), pixels[-1].tolist()
            raise InputError(
                f"the distortion {_written(distortion)} cannot be inverted from pixel ({u:.0f}, {v:.0f}) to "
                f"({to_u:.0f}, {to_v:.0f}) of the image: it folds over, or shows nothing in front of the camera; "
                f"{_REMEDY}"
            )
    top, bottom, left, right = (side[known] for side, known in zip(points, found, strict=True))
    low = torch.stack([left[:, 0].max(), top[:, 1].max()])
    high = torch.stack([right[:, 0].min(), bottom[:, 1].min()])
    focal = torch.tensor([width - 1, height - 1], dtype=torch.float64) / (high - low)
    if not (focal > NARROWEST_FOCAL * max(width, height)).all():
        raise InputError(
            f"the distortion {_written(distortion)} would need focal lengths of {focal[0]:.0f} and {focal[1]:.0f} "
            f"pixels for all of it to be shown by a pinhole camera; {_REMEDY}"
        )
    center = -low * focal
    return torch.tensor([[focal[0], 0, center[0]], [0, focal[1], center[1]], [0, 0, 1]], dtype=torch.float64)


def _edges(image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pixels (u, v) along the top, bottom, left and right row or column of pixel centres."""
    height, width = image_size
    u = torch.linspace(0, width - 1, EDGE_POINTS, dtype=torch.float64)
    v = torch.linspace(0, height - 1, EDGE_POINTS, dtype=torch.float64)
    return (
        torch.stack([u, torch.zeros_like(u)], dim=-1),
        torch.stack([u, torch.full_like(u, height - 1)], dim=-1),
        torch.stack([torch.zeros_like(v), v], dim=-1),
        torch.stack([torch.full_like(v, width - 1), v], dim=-1),
    )


def _matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _written(distortion: DistortionModel) -> str:
    return f"{distortion.model} [{', '.join(f'{value:g}' for value in distortion.coefficients)}]"
