"""Robustness of a trained model to a wrong calibration, another rig, dropped cameras and corrupt images."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange
from kornia.filters import gaussian_blur2d

from bevreshape.analysis.evaluation import Change, Variant, iou_of
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.geometry.cameras import compose
from bevreshape.geometry.ipm import sample
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel

ERRORS = ("yaw_deg", "pitch_deg", "roll_deg", "height_m")
"""Errors of a camera's pose: a rotation to the left, downwards, about its optical axis, and a shift upwards."""

TURNS = ERRORS[:3]

CORRUPTIONS = ("darkness", "noise", "blur", "occlusion")


def perturb_pose(cameras: Cameras, error: str, amount: float) -> Cameras:
    """Return the calibration with the same error in every camera's pose; images do not change.

    Args:
        cameras: the exact calibration.
        error: one of :data:`ERRORS`.
        amount: degrees or metres.

    Raises:
        InputError: if the error is unknown.
    """
    if error not in ERRORS:
        raise InputError(f"robustness: there is no error={error}; {suggest(error, ERRORS)}")
    pose = cameras.ego_from_cam
    if error == "height_m":
        up = torch.zeros_like(pose)
        up[..., 2, 3] = amount
        return replace(cameras, ego_from_cam=pose + up)
    # camera axes are right, down, forward: about -y is to the left, about -x downwards
    axis, sign = {"yaw_deg": (1, -1), "pitch_deg": (0, -1), "roll_deg": (2, 1)}[error]
    angle = math.radians(sign * amount)
    turn = torch.eye(4, dtype=torch.float64)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[b, a] = math.sin(angle)
    turn[a, b] = -math.sin(angle)
    return replace(cameras, ego_from_cam=compose(pose, turn.to(pose)))


def perturb_calibration(error: str, amount: float) -> Change:
    """Return a change that applies :func:`perturb_pose` to a batch."""

    def change(batch: BEVBatch) -> BEVBatch:
        return replace(batch, cameras=perturb_pose(batch.cameras, error, amount))

    return change


def rotate_rig(turn: str, amount: float, grid: BEVGrid) -> Change:
    """Return a change that rotates every camera about its centre by the same amount, in images and calibration.

    The model has not seen this rig but may adapt to it. New images follow from the old ones by the homography
    ``K·R·K⁻¹``, with the border's color beyond the old border. Cells that no camera sees any more are not counted.

    Args:
        turn: ``yaw_deg``, ``pitch_deg`` or ``roll_deg`` of :data:`ERRORS`.
        amount: degrees.
        grid: cells of the targets.

    Raises:
        InputError: if the rotation is unknown, or 45° or more.
    """
    if turn not in TURNS:
        raise InputError(f"robustness: there is no rig={turn}; {suggest(turn, TURNS)}")
    if not abs(amount) < 45:
        raise InputError(f"robustness: rigs.{turn}={amount:g} must stay below 45 degrees")

    def change(batch: BEVBatch) -> BEVBatch:
        before = batch.cameras
        after = perturb_pose(before, turn, amount)
        old, new = (x.ego_from_cam[..., :3, :3].double() for x in (before, after))
        k = before.intrinsics.double()
        homography = k @ old.mT @ new @ torch.linalg.inv(k)  # old pixels from new ones
        height, width = before.image_size
        v, u = torch.meshgrid(
            torch.arange(height, device=k.device), torch.arange(width, device=k.device), indexing="ij"
        )
        pixels = torch.stack([u, v, torch.ones_like(u)], -1).to(k)  # H W 3
        moved = torch.einsum("bnij,vuj->bnvui", homography, pixels)
        turned = replace(batch, images=sample(batch.images, moved[..., :2] / moved[..., 2:]), cameras=after)
        return turned.without_lost_cells(batch, grid)

    return change


def drop_camera(camera: int) -> Change:
    """Return a change that drops one camera of the rig."""

    def change(batch: BEVBatch) -> BEVBatch:
        mask = batch.cameras.full_mask.clone()
        if not 0 <= camera < mask.shape[1]:
            raise InputError(f"robustness: camera {camera} of a rig of {mask.shape[1]}; count from 0")
        mask[:, camera] = False
        return replace(batch, cameras=replace(batch.cameras, camera_mask=mask))

    return change


def corrupt_images(kind: str, severity: float) -> Change:
    """Return a change that corrupts all images of a batch, deterministically.

    ``darkness``: light is multiplied by 1 − severity. ``noise``: Gaussian, with standard deviation severity (white is
    1). ``blur``: Gaussian, with standard deviation severity in hundredths of an image's width. ``occlusion``: grey
    covers the share severity of the width, from the left.

    Raises:
        InputError: if the kind is unknown, the severity is negative, or a share is over 1.
    """
    if kind not in CORRUPTIONS:
        raise InputError(f"robustness: there is no corruption={kind}; {suggest(kind, CORRUPTIONS)}")
    if severity < 0 or (kind in ("darkness", "occlusion") and severity > 1):
        raise InputError(f"robustness: {kind} of severity={severity} must be in 0..1")
    return partial(_corrupted, kind, severity)


def _corrupted(kind: str, severity: float, batch: BEVBatch) -> BEVBatch:
    image = batch.images
    width = image.shape[-1]
    if kind == "darkness":
        image = image * (1 - severity)
    elif kind == "noise":
        # drawn on the CPU, so that it is the same on every device
        drawn = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(0))
        image = (image + severity * drawn.to(image)).clamp(0, 1)
    elif kind == "blur" and severity > 0:
        sigma = severity * width / 100
        size = 2 * math.ceil(3 * sigma) + 1
        size = min(size, *(2 * cells - 1 for cells in image.shape[-2:]))
        flat = rearrange(image, "b n c H W -> (b n) c H W")
        blurred = gaussian_blur2d(flat, (size, size), (sigma, sigma))
        image = rearrange(blurred, "(b n) c H W -> b n c H W", n=image.shape[1])
    elif kind == "occlusion":
        image = image.clone()
        image[..., : round(severity * width)] = 0.5
    return replace(batch, images=image)


def iou_under(
    model: BEVModel,
    batches: Iterable[BEVBatch],
    metric: BEVIoU,
    changes: Mapping[str, Change],
    step: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Return the IoU of a model under every change, ``unchanged`` first, as
    :func:`~bevreshape.analysis.evaluation.iou_of` does."""
    variants = {"unchanged": Variant(), **{name: Variant(change) for name, change in changes.items()}}
    return iou_of(model, batches, metric, variants, step)
