"""Cameras, the ground, and the way between them. The conventions are in :mod:`bevreshape.geometry.cameras`."""

from bevreshape.geometry.cameras import Cameras, check_calibration, pinhole_rays
from bevreshape.geometry.distortion import Lens, pinhole_intrinsics, rays_at
from bevreshape.geometry.grid import BEVGrid
from bevreshape.geometry.ipm import bev_to_picture, ground_at, ground_pixels, labels_to_bev, picture_to_bev
from bevreshape.geometry.rasterize import footprints

__all__ = [
    "BEVGrid",
    "Cameras",
    "Lens",
    "bev_to_picture",
    "check_calibration",
    "footprints",
    "ground_at",
    "ground_pixels",
    "labels_to_bev",
    "picture_to_bev",
    "pinhole_intrinsics",
    "pinhole_rays",
    "rays_at",
]
