"""The conventions implemented independently in plain numpy, point by point, with matrix inverses."""

import numpy as np
import torch

from bevreshape.geometry import Cameras


def pose(yaw_deg, pitch_deg, position, roll_deg=0.0):
    """Return ego_from_cam of a camera turned left by yaw, tilted down by pitch and rolled clockwise by roll."""
    yaw, pitch, roll = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, level)
    right = np.cos(roll) * level + np.sin(roll) * down
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    matrix[:3, 3] = position
    return matrix


def intrinsics(fx, fy, cx, cy, skew=0.0):
    """pixel_from_cam."""
    return np.array([[fx, skew, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def project(point, pixel_from_cam, ego_from_cam):
    """Return (u, v, depth) of one ego point."""
    in_camera = np.linalg.inv(ego_from_cam) @ np.append(point, 1.0)
    u, v, depth = pixel_from_cam @ in_camera[:3]
    return u / depth, v / depth, depth


def meets_ground(u, v, pixel_from_cam, ego_from_cam):
    """Return where a pixel's ray meets z = 0, and the distance along the ray; negative behind the camera."""
    ray = ego_from_cam[:3, :3] @ np.linalg.inv(pixel_from_cam) @ [u, v, 1.0]
    center = ego_from_cam[:3, 3]
    t = -center[2] / ray[2]
    return center[0] + t * ray[0], center[1] + t * ray[1], t


def rig(*cameras, image_size, dtype=torch.float64, mask=None):
    """Return a batch of one rig from (pixel_from_cam, ego_from_cam) pairs."""
    return Cameras(
        torch.from_numpy(np.stack([k for k, _ in cameras]))[None].to(dtype),
        torch.from_numpy(np.stack([p for _, p in cameras]))[None].to(dtype),
        image_size,
        None if mask is None else torch.tensor([mask]),
    )
