"""A small rig: a ring of cameras that point outward and down."""

import math
from collections.abc import Callable

import pytest
import torch

from bevreshape.geometry import Cameras

IMAGE_SIZE = (32, 48)


def ring(batch: int, count: int, image_size: tuple[int, int] = IMAGE_SIZE) -> Cameras:
    """Return ``count`` cameras 1.5 m above the ground, 25° down, in equal steps of yaw; each sample is rotated."""
    down = math.radians(25)
    poses = []
    for sample in range(batch):
        for number in range(count):
            yaw = 2 * math.pi * number / count + 0.05 * sample
            forward = [math.cos(yaw) * math.cos(down), math.sin(yaw) * math.cos(down), -math.sin(down)]
            right = [math.sin(yaw), -math.cos(yaw), 0.0]
            below = [-math.cos(yaw) * math.sin(down), -math.sin(yaw) * math.sin(down), -math.cos(down)]
            pose = torch.eye(4)
            pose[:3, :3] = torch.tensor([right, below, forward]).T
            pose[:3, 3] = torch.tensor([0.3 * math.cos(yaw), 0.3 * math.sin(yaw), 1.5])
            poses.append(pose)
    height, width = image_size
    intrinsics = torch.tensor([[0.5 * width, 0, 0.5 * width], [0, 0.5 * width, 0.5 * height], [0, 0, 1]])
    return Cameras(
        intrinsics.expand(batch, count, 3, 3).clone(),
        torch.stack(poses).reshape(batch, count, 4, 4),
        image_size,
    )


@pytest.fixture
def rig() -> Callable[..., Cameras]:
    """Return a function that builds the cameras of a batch: ``rig(batch, count)``."""
    return ring
