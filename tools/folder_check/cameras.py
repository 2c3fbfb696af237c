"""Describe the cameras of a folder and their views."""

import math
from dataclasses import replace
from itertools import combinations

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from bevreshape.data.sources.folder.calibration import Calibration
from bevreshape.data.sources.folder.dataset import CameraFolderDataset
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.geometry import (
    BEVGrid,
    Cameras,
    ground_pixels,
    pinhole_intrinsics,
)
from bevreshape.geometry.calibration_checks import (
    diagnose_intrinsics,
    diagnose_magnification,
    diagnose_pose,
    diagnose_tangential,
)
from bevreshape.geometry.distortion import source_pixels
from bevreshape.reporting.progress import track
from folder_check.summaries import value_range


def camera_of(calibration: Calibration, frame: str, number: int) -> Cameras:
    """Return one camera of a frame, for its stored image."""
    camera = calibration.of(frame).camera(number)
    return Cameras(camera.intrinsics.float(), camera.ego_from_cam.float(), camera.image_size)


def default_grid(calibration: Calibration) -> BEVGrid:
    """Return the BEV labels' own grid, or 40 m ahead of one camera and 30 m around several."""
    if calibration.bev_grid is not None:
        return calibration.bev_grid
    if len(calibration.cameras) == 1:
        return BEVGrid((0.0, 40.0), (-20.0, 20.0), 0.1)
    return BEVGrid((-30.0, 30.0), (-30.0, 30.0), 0.15)


def describe_cameras(frames: CameraFolderDataset, grid: BEVGrid) -> Table:
    """Tabulate every camera and its view; a range where the frames differ."""
    columns = ("frames", "size", "height", "left°", "down°", "horizon", "view°", "sees")
    table = Table("camera", *(Column(name, no_wrap=True) for name in columns), box=SIMPLE_HEAD)
    for number, camera in enumerate(frames.calibration.cameras):
        facts = torch.tensor(
            [
                _facts(camera_of(frames.calibration, name, number), grid)
                for name in track(frames.names, f"reading {camera}")
            ]
        )
        images = sum(frames.image_path(index, number) is not None for index in range(len(frames)))
        sizes = sorted({frames.calibration.of(name).sizes[number] for name in frames.names})
        height, left, down, horizon, across, upright, coverage = facts.unbind(1)
        table.add_row(
            camera,
            f"{images}/{len(frames)}",
            "\n".join(f"{high}×{wide}" for high, wide in sizes),
            f"{value_range(height, 2)}m",
            value_range(left),
            value_range(down, 1),
            value_range(horizon),
            f"{value_range(across)}×{value_range(upright)}",
            f"{value_range(coverage)}%",
        )
    table.caption = (
        "left, down: its heading. horizon: its row at half width. "
        f"sees: of forward {grid.forward_m}, left {grid.left_m} m."
    )
    return table


def describe_lenses(frames: CameraFolderDataset) -> list[str]:
    """Describe the distortion of every camera that has one, and its undistorted image, a line each."""
    lines = []
    for number, camera in enumerate(frames.calibration.cameras):
        for distortion in dict.fromkeys(frames.calibration.of(name).distortions[number] for name in frames.names):
            if distortion is None:
                continue
            shown = pinhole_intrinsics(distortion)
            straight = replace(distortion, model="opencv", coefficients=(0.0,) * 4)
            distorted, plain = (source_pixels(each, shown, distortion.image_size) for each in (distortion, straight))
            moved = (distorted - plain).norm(dim=-1).max().item()
            fx, fy, cx, cy = (shown[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
            lines.append(
                f"{camera}: {distortion.model} [{', '.join(f'{value:g}' for value in distortion.coefficients)}] moves "
                f"pixels by up to {moved:.0f}; undistorted to fx {fx:.0f}, fy {fy:.0f}, cx {cx:.0f}, cy {cy:.0f}"
            )
    return lines


def _facts(camera: Cameras, grid: BEVGrid) -> list[float]:
    """Return height, yaw, pitch, the horizon's row, horizontal and vertical field of view, observed percentage."""
    height, width = camera.image_size
    pose, k = camera.ego_from_cam[0, 0], camera.intrinsics[0, 0]
    ahead = pose[:3, 2]
    # A pixel's third coordinate on the ground is linear in (u, v) and zero on the horizon.
    a, b, c = camera.ground_from_pixel[0, 0, 2].tolist()
    return [
        pose[2, 3].item(),
        math.degrees(math.atan2(ahead[1], ahead[0])),
        math.degrees(math.asin(-ahead[2])),
        -(a * (width - 1) / 2 + c) / b if b else math.nan,
        math.degrees(2 * math.atan(width / 2 / k[0, 0])),
        math.degrees(2 * math.atan(height / 2 / k[1, 1])),
        100 * ground_pixels(camera, grid)[1].float().mean().item(),
    ]


def camera_mistakes(rig: Rig, number: int, grid: BEVGrid) -> list[str]:
    """Return clauses on probable mistakes of one camera of a rig."""
    distortion = rig.distortions[number]
    found = [diagnose_pose(rig.camera(number), grid)]
    found += [] if distortion is None else [diagnose_tangential(distortion), diagnose_magnification(distortion)]
    known = [clause for clause in found if clause is not None]
    return known + diagnose_intrinsics(rig.stored_intrinsics(number), rig.sizes[number])


def twins(calibration: Calibration) -> list[str]:
    """Return sentences on cameras of the same pose and intrinsics, as in a copied entry."""
    rig = calibration.rigs[0]
    return [
        f"cameras {calibration.cameras[a]!r} and {calibration.cameras[b]!r} have the same pose and intrinsics; was one "
        "copied?"
        for a, b in combinations(range(len(calibration.cameras)), 2)
        if torch.equal(rig.ego_from_cam[a], rig.ego_from_cam[b]) and torch.equal(rig.intrinsics[a], rig.intrinsics[b])
    ]
