"""Cameras, the ground plane, and the projections between them.

The conventions are in :mod:`bevreshape.geometry.cameras`.
"""

from bevreshape.geometry.calibration import check_calibration
from bevreshape.geometry.cameras import Cameras, pinhole_rays
from bevreshape.geometry.distortion import DistortionModel, pinhole_intrinsics, rays_at
from bevreshape.geometry.feature_shape import FeatureShape
from bevreshape.geometry.grid import BEVGrid
from bevreshape.geometry.ipm import bev_to_image, ground_at, ground_pixels, image_to_bev, labels_to_bev
from bevreshape.geometry.rasterize import rasterize_boxes

__all__ = [
    "BEVGrid",
    "Cameras",
    "DistortionModel",
    "FeatureShape",
    "bev_to_image",
    "check_calibration",
    "ground_at",
    "ground_pixels",
    "image_to_bev",
    "labels_to_bev",
    "pinhole_intrinsics",
    "pinhole_rays",
    "rasterize_boxes",
    "rays_at",
]
