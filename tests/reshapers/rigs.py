"""Cameras shared by tests of reshapers."""

import numpy as np
import torch

from bevreshape.geometry import Cameras


def tall_camera(x: float = 4.0) -> Cameras:
    """Return a slightly rotated and tilted camera 12 m above (x, -0.3), 192×256 pixels, pointing down."""
    down, yaw = np.radians(80), np.radians(7)
    forward = np.array([np.cos(yaw) * np.cos(down), np.sin(yaw) * np.cos(down), -np.sin(down)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = [x, -0.3, 12.0]
    intrinsics = np.array([[190.0, 0, 126], [0, 195, 97], [0, 0, 1]])
    batched = (torch.from_numpy(matrix).float()[None, None] for matrix in (intrinsics, pose))
    return Cameras(*batched, (192, 256))
