"""Inverse perspective mapping: images projected onto the ground plane, and the bird's-eye view projected into images.

It also makes BEV targets from label images.

Sampling is Kornia's ``remap`` with ``align_corners=True``. Pixel centres are integers, so pixel (u, v) is read at
exactly (u, v). The coordinates come from the cameras directly, never from a numerically inverted homography; a map and
its inverse are equally exact.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, UInt8
from kornia.geometry.transform import remap
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry.cameras import NEAR, Cameras, apply_homography
from bevreshape.geometry.grid import BEVGrid
from bevreshape.ops.tensors import constant

UNLABELED = 255
"""Label id of unknown pixels."""


def ground_pixels(cameras: Cameras, grid: BEVGrid) -> tuple[Float[Tensor, "b n R C 2"], Bool[Tensor, "b n R C"]]:
    """Project every cell's centre, on the ground, into every image.

    Returns:
        Pixels (u, v), and whether the camera sees the point: in front of it and inside its image.
    """
    centers = grid.centers(cameras.intrinsics.device, cameras.intrinsics.dtype).flatten(0, 1)  # p 2
    pixels, depth = apply_homography(cameras.pixel_from_ground, centers)  # b n p 2, b n p
    seen = cameras.sees(pixels, depth)
    rows, cols = grid.shape
    return (
        rearrange(pixels, "b n (R C) uv -> b n R C uv", R=rows, C=cols),
        rearrange(seen, "b n (R C) -> b n R C", R=rows, C=cols),
    )


def sample(
    images: Float[Tensor, "b n c h w"], pixels: Float[Tensor, "b n R C 2"], mode: str = "bilinear"
) -> Float[Tensor, "b n c R C"]:
    """Sample images or feature maps at fractional (u, v); outside, the nearest border value is returned.

    Args:
        images: values whose first element is centred on (0, 0).
        pixels: positions in elements of ``images``.
        mode: ``bilinear`` or ``nearest``.
    """
    b = images.shape[0]
    with torch.autocast(images.device.type, enabled=False):
        values = images if images.dtype == torch.float64 else images.float()
        flat = _normalized(rearrange(pixels.to(values.dtype), "b n R C uv -> (b n) R C uv"), images.shape)
        sampled = remap(
            rearrange(values, "b n c h w -> (b n) c h w"),
            flat[..., 0],
            flat[..., 1],
            mode=mode,
            padding_mode="border",
            align_corners=True,
            normalized_coordinates=True,
        )
    return rearrange(sampled, "(b n) c R C -> b n c R C", b=b)


def _normalized(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """Map the first and last pixel of (…, h, w) to -1 and 1; Kornia's own function waits for the device."""
    sides = shape[-1], shape[-2]
    scale = constant([1.0 if side == 1 else 2.0 / (side - 1) for side in sides], pixels)
    return scale * pixels + constant([0.0 if side == 1 else -1.0 for side in sides], pixels)


def image_to_bev(
    images: Float[Tensor, "b n c H W"], cameras: Cameras, grid: BEVGrid, mode: str = "bilinear"
) -> tuple[Float[Tensor, "b n c R C"], Bool[Tensor, "b n R C"]]:
    """Project every image onto the ground plane (Mallot et al. 1991), one bird's-eye view per camera.

    Returns:
        The views, zero where a cell is not visible to the camera, and the visibility.

    Raises:
        InputError: if the images do not have the cameras' size.
    """
    _check_size("image_to_bev", images, cameras)
    pixels, seen = ground_pixels(cameras, grid)
    bev = sample(images, pixels, mode)
    return bev * seen.unsqueeze(2), seen


def bev_to_image(
    bev: Float[Tensor, "b k R C"], cameras: Cameras, grid: BEVGrid, mode: str = "bilinear"
) -> tuple[Float[Tensor, "b n k H W"], Bool[Tensor, "b n H W"]]:
    """Project a bird's-eye view into every image, as if painted on the ground.

    Returns:
        The images, zero where a pixel does not show the grid (above the horizon or outside it), and the validity.

    Raises:
        InputError: if ``bev`` does not have the grid's size.
    """
    if tuple(bev.shape[-2:]) != grid.shape:
        raise InputError(f"bev_to_image: bev is {tuple(bev.shape[-2:])} cells but the grid has {grid.shape}")
    n = cameras.batch_shape[1]
    height, width = cameras.image_size
    v, u = torch.meshgrid(
        torch.arange(height, device=bev.device), torch.arange(width, device=bev.device), indexing="ij"
    )
    pixels = torch.stack([u, v], dim=-1).flatten(0, 1).to(cameras.intrinsics.dtype)
    ground, side = apply_homography(cameras.ground_from_pixel, pixels)
    cells = rearrange(grid.metric_to_cell(ground), "b n (H W) xy -> b n H W xy", H=height, W=width)
    side = rearrange(side, "b n (H W) -> b n H W", H=height, W=width)
    col, row = cells[..., 0], cells[..., 1]
    inside = (col >= -0.5) & (col < grid.cols - 0.5) & (row >= -0.5) & (row < grid.rows - 0.5)
    valid = inside & (side > NEAR) & cameras.full_mask[..., None, None]
    cells = torch.where(valid[..., None], cells, torch.zeros_like(cells))
    images = sample(repeat(bev, "b k R C -> b n k R C", n=n), cells, mode)
    return images * valid.unsqueeze(2), valid


def ground_at(
    rays: Float[Tensor, "p 3"], ego_from_cam: Float[Tensor, "4 4"]
) -> tuple[Float[Tensor, "p 2"], Bool[Tensor, " p"]]:
    """Intersect rays, given in the camera frame, with the ground plane.

    Returns:
        Points (x, y) in metres, and whether the ray meets the plane.
    """
    x, y, z = (rays @ ego_from_cam[:3, :3].T).unbind(1)
    center = ego_from_cam[:3, 3]
    reach = -center[2] / z
    ground = torch.stack([center[0] + reach * x, center[1] + reach * y], dim=1)
    return ground, (reach * rays[:, 2] > NEAR) & ground.isfinite().all(1)


def labels_to_bev(
    labels: UInt8[Tensor, "b n H W"] | Int[Tensor, "b n H W"],
    cameras: Cameras,
    grid: BEVGrid,
    classes: Sequence[Sequence[int]],
    unknown: Sequence[int] = (UNLABELED,),
) -> tuple[Bool[Tensor, "b k R C"], Bool[Tensor, "b R C"]]:
    """Return BEV targets from label images: the label at every cell's centre, as if every pixel showed the ground.

    Objects above the ground are smeared away from the camera, as IPM does. If several cameras see a cell, a class is
    present when at least one of them shows it.

    Args:
        labels: class ids of every pixel.
        cameras: those of the label images.
        grid: the cells.
        classes: for every target class, the label ids that count as it; they may overlap.
        unknown: ids of unlabelled pixels.

    Returns:
        Targets, and where they are known: the cell is visible to a camera and its pixel is labelled.

    Raises:
        InputError: if the labels do not have the cameras' image size.
    """
    _check_size("labels_to_bev", labels, cameras)
    pixels, seen = ground_pixels(cameras, grid)
    ids = sample(labels.unsqueeze(2).float(), pixels, "nearest").squeeze(2).round().long()  # b n R C
    known = seen & ~_is_any(ids, unknown)
    target = torch.stack([(_is_any(ids, members) & known).any(1) for members in classes], dim=1)  # b k R C
    return target, known.any(1)


def _is_any(ids: Tensor, members: Sequence[int]) -> Tensor:
    return torch.isin(ids, constant(list(members), ids))


def _check_size(what: str, images: Tensor, cameras: Cameras) -> None:
    if tuple(images.shape[-2:]) != tuple(cameras.image_size):
        raise InputError(
            f"{what}: images are {tuple(images.shape[-2:])} (H, W) but the cameras are calibrated for "
            f"{cameras.image_size}; resize both together"
        )
