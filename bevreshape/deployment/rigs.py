"""Make the cameras with which a program is exported and compared."""

import math
from pathlib import Path

import torch
from torch import Tensor

from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.data.batch import match_cameras
from bevreshape.data.image_io import resize_and_crop_intrinsics
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels


def example(spec: BEVSpec, rig: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch of 3 with random images and ``rig``, each sample's cameras a little higher."""
    images = torch.rand(3, len(spec.camera_names), 3, *spec.image_size, generator=torch.Generator().manual_seed(0))
    poses = rig.ego_from_cam.repeat(3, 1, 1, 1)
    poses[:, :, 2, 3] *= torch.tensor([1.0, 1.1, 1.2])[:, None]
    return images, rig.intrinsics.repeat(3, 1, 1, 1), poses


def example_rig(spec: BEVSpec) -> Cameras:
    """Return a ring of the model's cameras at a height that suits the grid; the first one faces its middle."""
    grid = spec.grid
    rig = ring(
        len(spec.camera_names),
        spec.image_size,
        1,
        torch.device("cpu"),
        max(map(abs, (*grid.forward_m, *grid.left_m))),
    )
    azimuth = math.atan2(sum(grid.left_m), sum(grid.forward_m))
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(azimuth), -math.sin(azimuth)], [math.sin(azimuth), math.cos(azimuth)]])
    return Cameras(rig.intrinsics, turn @ rig.ego_from_cam, rig.image_size)


def check_visibility(cameras: Cameras, grid: BEVGrid) -> None:
    """Refuse example cameras that observe less than a tenth of the cells, too few for a comparison.

    Raises:
        InputError: naming the observed share.
    """
    seen = ground_pixels(cameras, grid)[1].any(1).float().mean()
    if seen < 0.1:
        raise InputError(
            f"export: example cameras observe {seen:.0%} of the grid, forward {grid.forward_m}, left {grid.left_m}; "
            "export for the real rig, with calibration=FILE"
        )


def stored_rig(path: Path, spec: BEVSpec) -> Rig:
    """Read the single rig of a ``calibration.json``, its cameras in the model's order.

    Raises:
        InputError: when frames have rigs of their own, or the cameras are not the model's.
    """
    calibration = read_calibration(path)
    if calibration.shared is None or calibration.frames:
        raise InputError(f"{path}: its frames have rigs of their own; a fixed rig needs one for all")
    calibration.check_views(spec.grid)
    order = match_cameras(spec.camera_names, calibration.cameras, str(path))
    rig = calibration.only([calibration.cameras[i] for i in order]).shared
    assert rig is not None
    return rig


def fitted_rig(rig: Rig, spec: BEVSpec) -> Cameras:
    """Return the rig for images resized and cropped to the model's size."""
    fitted = [
        resize_and_crop_intrinsics(rig.intrinsics[i], rig.sizes[i], spec.image_size) for i in range(len(rig.sizes))
    ]
    return Cameras(torch.stack(fitted)[None].float(), rig.ego_from_cam[None].float(), spec.image_size)
