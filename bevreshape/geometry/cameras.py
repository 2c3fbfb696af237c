"""Pinhole cameras of a rig: projection of points into the images, and of pixels onto the ground plane.

Conventions (pinned in ``tests/geometry``). Ego frame: x forward, y left, z up, metres, origin on the ground; the ground
plane is z = 0. Camera frame: x right, y down, z forward. Pixels: (u, v), the centre of the top-left pixel is (0, 0), so
an image covers ``[-½, W - ½] × [-½, H - ½]``. Matrices carry their frames in their names, so that products cancel:
``pixel_from_cam @ cam_from_ego``.

Everything is computed in float32 (float64 if given), at every precision of the network. Sums of products replace matrix
multiplications, because TF32 and autocast would round those to ten bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.ops.tensors import index_of

NEAR = 1e-3
"""Depth in metres below which a point counts as behind the camera."""


def compose(a_from_b: Tensor, b_from_c: Tensor) -> Tensor:
    """Multiply ``a_from_b @ b_from_c`` in full precision, on any leading dimensions."""
    return (a_from_b.unsqueeze(-1) * b_from_c.unsqueeze(-3)).sum(-2)


def apply_homography(
    target_from_source: Float[Tensor, "*m 3 3"], points: Float[Tensor, "*q p 2"]
) -> tuple[Float[Tensor, "*r p 2"], Float[Tensor, "*r p"]]:
    """Map 2D points by a homography, in full precision.

    Returns:
        The mapped points and their third homogeneous coordinate. Its sign is the side of the horizon. Where it is below
        ``NEAR`` the points are meaningless, but they and their gradients are finite.
    """
    m = target_from_source.unsqueeze(-3)  # *m 1 3 3
    x, y = points[..., 0], points[..., 1]  # *q p
    u, v, w = (m[..., i, 0] * x + m[..., i, 1] * y + m[..., i, 2] for i in range(3))
    safe = torch.where(w > NEAR, w, torch.ones_like(w))
    return torch.stack([u / safe, v / safe], dim=-1), w


def invert_intrinsics(pixel_from_cam: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Invert upper-triangular intrinsics in closed form (ONNX has no matrix inverse)."""
    fx, skew, cx = pixel_from_cam[..., 0, 0], pixel_from_cam[..., 0, 1], pixel_from_cam[..., 0, 2]
    fy, cy = pixel_from_cam[..., 1, 1], pixel_from_cam[..., 1, 2]
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [
        torch.stack([1 / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy)], dim=-1),
        torch.stack([zero, 1 / fy, -cy / fy], dim=-1),
        torch.stack([zero, zero, one], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def pinhole_rays(pixel_from_cam: Float[Tensor, "3 3"], pixels: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
    """Return rays of depth 1 in the camera frame at pixels (u, v) of a camera without distortion."""
    points, _ = apply_homography(invert_intrinsics(pixel_from_cam), pixels)
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=1)


def invert_rigid(a_from_b: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """Invert a rotation and translation in closed form."""
    rotation, translation = a_from_b[..., :3, :3].mT, a_from_b[..., :3, 3]
    moved = -(rotation * translation.unsqueeze(-2)).sum(-1, keepdim=True)
    return torch.cat([torch.cat([rotation, moved], dim=-1), a_from_b[..., 3:, :]], dim=-2)


@dataclass(frozen=True)
class Cameras:
    """The calibrated cameras of a batch of rigs.

    Attributes:
        intrinsics: ``pixel_from_cam``, (b, n, 3, 3), in pixels of an image of ``image_size``.
        ego_from_cam: (b, n, 4, 4), in metres.
        image_size: (H, W) in pixels.
        camera_mask: (b, n), false for a dropped camera; ``None`` if all are present.
    """

    intrinsics: Tensor
    ego_from_cam: Tensor
    image_size: tuple[int, int]
    camera_mask: Tensor | None = None

    def __post_init__(self) -> None:
        b, n = self.intrinsics.shape[:2]
        if self.intrinsics.shape != (b, n, 3, 3) or self.ego_from_cam.shape != (b, n, 4, 4):
            raise InputError(
                f"cameras: intrinsics {tuple(self.intrinsics.shape)} and ego_from_cam {tuple(self.ego_from_cam.shape)} "
                "must be (b, n, 3, 3) and (b, n, 4, 4) with the same b and n"
            )
        if self.camera_mask is not None and self.camera_mask.shape != (b, n):
            raise InputError(f"cameras: camera_mask {tuple(self.camera_mask.shape)} must be (b, n) = {(b, n)}")
        for key in ("intrinsics", "ego_from_cam"):
            value = getattr(self, key)
            if value.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"cameras: {key} is {value.dtype}; geometry needs float32 or float64 at every precision"
                )

    @property
    def batch_shape(self) -> tuple[int, int]:
        """(b, n)."""
        return self.intrinsics.shape[0], self.intrinsics.shape[1]

    @property
    def cam_from_ego(self) -> Float[Tensor, "b n 4 4"]:
        """Return the extrinsics, the inverse of ``ego_from_cam``."""
        return invert_rigid(self.ego_from_cam)

    @property
    def full_mask(self) -> Bool[Tensor, "b n"]:
        """Return ``camera_mask``, or all true if it is ``None``."""
        if self.camera_mask is not None:
            return self.camera_mask
        return torch.ones(self.batch_shape, dtype=torch.bool, device=self.intrinsics.device)

    @property
    def pixel_from_ground(self) -> Float[Tensor, "b n 3 3"]:
        """Return the homography from the ground plane (x, y, 1) in metres to pixels.

        Its third coordinate is depth in metres.
        """
        cam_from_ego = self.cam_from_ego[..., :3, :]
        cam_from_ground = torch.cat([cam_from_ego[..., :2], cam_from_ego[..., 3:]], dim=-1)
        return compose(self.intrinsics, cam_from_ground)

    @property
    def ground_from_pixel(self) -> Float[Tensor, "b n 3 3"]:
        """Return the homography from pixels (u, v, 1) to the ground plane in metres.

        Its third coordinate is positive below the horizon. The ray of a pixel, ``center + t · direction``, meets z = 0
        at ``t = -center_z / direction_z``; over the common denominator ``-direction_z`` this is linear in (u, v, 1).
        """
        direction = compose(self.ego_from_cam[..., :3, :3], invert_intrinsics(self.intrinsics))  # ego_from_pixel
        center = self.centers
        x, y, z = (direction[..., i, :] for i in range(3))
        cx, cy, cz = (center[..., i, None] for i in range(3))
        return torch.stack([cz * x - cx * z, cz * y - cy * z, -z], dim=-2)

    def project(self, points: Float[Tensor, "b p 3"]) -> tuple[Float[Tensor, "b n p 2"], Float[Tensor, "b n p"]]:
        """Project ego points in metres into every camera.

        Returns:
            Pixels (u, v) and depth along the optical axis in metres. Behind the camera (depth < ``NEAR``) the pixels
            are meaningless but finite; see :meth:`sees`.
        """
        pixel_from_ego = compose(self.intrinsics, self.cam_from_ego[..., :3, :]).unsqueeze(-3)  # b n 1 3 4
        x, y, z = (points[:, None, :, i].to(pixel_from_ego.dtype) for i in range(3))  # b 1 p
        u, v, depth = (
            pixel_from_ego[..., i, 0] * x + pixel_from_ego[..., i, 1] * y + pixel_from_ego[..., i, 2] * z
            + pixel_from_ego[..., i, 3]
            for i in range(3)
        )  # fmt: skip
        safe = torch.where(depth > NEAR, depth, torch.ones_like(depth))
        return torch.stack([u / safe, v / safe], dim=-1), depth

    def rays(self, pixels: Float[Tensor, "p 2"]) -> Float[Tensor, "b n p 3"]:
        """Return the viewing rays of pixels (u, v) in the ego frame, of depth 1 metre along the optical axis.

        ``center + depth · ray`` is the point at that depth.
        """
        ego_from_pixel = compose(self.ego_from_cam[..., :3, :3], invert_intrinsics(self.intrinsics)).unsqueeze(-3)
        u, v = (pixels[:, i].to(ego_from_pixel.dtype) for i in range(2))
        return torch.stack(
            [
                ego_from_pixel[..., i, 0] * u + ego_from_pixel[..., i, 1] * v + ego_from_pixel[..., i, 2]
                for i in range(3)
            ],
            dim=-1,
        )

    @property
    def centers(self) -> Float[Tensor, "b n 3"]:
        """Return the cameras' centres in the ego frame, in metres."""
        return self.ego_from_cam[..., :3, 3]

    def sees(self, pixels: Float[Tensor, "b n p 2"], depth: Float[Tensor, "b n p"]) -> Bool[Tensor, "b n p"]:
        """Return whether projected points are in front of a present camera and inside its image."""
        height, width = self.image_size
        u, v = pixels[..., 0], pixels[..., 1]
        inside = (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
        return inside & (depth > NEAR) & self.full_mask[..., None]

    def resized(self, image_size: tuple[int, int]) -> "Cameras":
        """Return the cameras of the same images resized to (H, W): u becomes ``s · (u + ½) − ½``."""
        scale_v, scale_u = (new / old for new, old in zip(image_size, self.image_size, strict=True))
        return replace(self, intrinsics=resize_intrinsics(self.intrinsics, scale_u, scale_v), image_size=image_size)

    def cropped(self, top: int, left: int, image_size: tuple[int, int]) -> "Cameras":
        """Return the cameras of a crop of (H, W) pixels whose first pixel is (left, top)."""
        return replace(self, intrinsics=shift_intrinsics(self.intrinsics, -left, -top), image_size=image_size)

    def zoomed(self, scale: Float[Tensor, " b"], left: Float[Tensor, " b"], top: Float[Tensor, " b"]) -> "Cameras":
        """Return the cameras of a crop of ``image_size`` from pixel (left, top) of the images enlarged by ``scale``."""
        scale, left, top = (x[:, None, None] for x in (scale, left, top))
        resized = resize_intrinsics(self.intrinsics, scale, scale)
        return replace(self, intrinsics=shift_intrinsics(resized, -left, -top))

    def mirrored(self, partner: Sequence[int]) -> "Cameras":
        """Return the cameras that see the world mirrored at y = 0 in mirrored images.

        S reflects the ego frame and F the camera's x axis: ``ego_from_cam → S · ego_from_cam · F`` stays a rotation,
        and ``u → (W − 1) − u`` makes ``cx → (W − 1) − cx``.

        Args:
            partner: for every camera, the index of the camera that is mirrored into it.
        """
        order, device = index_of(partner, self.intrinsics), self.intrinsics.device
        # signs of S · ego_from_cam · F
        pose_signs = torch.ones(4, 4, device=device)
        pose_signs[1, :] *= -1
        pose_signs[:, 0] *= -1
        return replace(
            self,
            intrinsics=mirror_intrinsics(self.intrinsics[:, order], self.image_size[1]),
            ego_from_cam=self.ego_from_cam[:, order] * pose_signs,
            camera_mask=None if self.camera_mask is None else self.camera_mask[:, order],
        )

    def where(self, chosen: Bool[Tensor, " b"], other: "Cameras") -> "Cameras":
        """Return these rigs where ``chosen``, and those of ``other`` elsewhere."""
        masked = self.camera_mask is not None or other.camera_mask is not None
        return replace(
            self,
            intrinsics=torch.where(chosen[:, None, None, None], self.intrinsics, other.intrinsics),
            ego_from_cam=torch.where(chosen[:, None, None, None], self.ego_from_cam, other.ego_from_cam),
            camera_mask=torch.where(chosen[:, None], self.full_mask, other.full_mask) if masked else None,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        """Return a copy with a function applied to every tensor; their first dimensions are (b, n)."""
        return replace(
            self,
            intrinsics=function(self.intrinsics),
            ego_from_cam=function(self.ego_from_cam),
            camera_mask=None if self.camera_mask is None else function(self.camera_mask),
        )

    def __getitem__(self, samples: slice) -> "Cameras":
        """Return the rigs of some samples."""
        return self.map(lambda tensor: tensor[samples])

    def to(self, device: torch.device | str) -> "Cameras":
        """Return the same cameras on another device."""
        return self.map(lambda tensor: tensor.to(device))

    @classmethod
    def cat(cls, parts: Sequence["Cameras"]) -> "Cameras":
        """Concatenate the rigs of several batches."""
        masked = any(part.camera_mask is not None for part in parts)
        return cls(
            torch.cat([part.intrinsics for part in parts]),
            torch.cat([part.ego_from_cam for part in parts]),
            parts[0].image_size,
            torch.cat([part.full_mask for part in parts]) if masked else None,
        )


def resize_intrinsics(intrinsics: Tensor, scale_u: float | int | Tensor, scale_v: float | int | Tensor) -> Tensor:
    """Resize intrinsics (..., 3, 3): ``u → s·(u + ½) − ½`` (Kornia's ``PinholeCamera.scale`` omits the halves)."""
    return torch.stack(
        [
            intrinsics[..., 0, :] * scale_u + intrinsics[..., 2, :] * (0.5 * scale_u - 0.5),
            intrinsics[..., 1, :] * scale_v + intrinsics[..., 2, :] * (0.5 * scale_v - 0.5),
            intrinsics[..., 2, :],
        ],
        dim=-2,
    )


def shift_intrinsics(intrinsics: Tensor, by_u: float | int | Tensor, by_v: float | int | Tensor) -> Tensor:
    """Return intrinsics (..., 3, 3) after moving every pixel by (by_u, by_v)."""
    third = intrinsics[..., 2, :]
    return torch.stack([intrinsics[..., 0, :] + third * by_u, intrinsics[..., 1, :] + third * by_v, third], dim=-2)


def mirror_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Return intrinsics (..., 3, 3) after mirroring an image and the camera's x axis: ``u → (width − 1) − u``."""
    signs = torch.ones(3, 3, device=intrinsics.device)
    signs[0, 1:] *= -1
    return shift_intrinsics(intrinsics * signs, width - 1.0, 0.0)
