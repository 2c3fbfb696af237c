"""Read nuScenes by the published protocols; its devkit prepares it once and is not needed afterwards."""

from bevreshape.data.sources.nuscenes.source import NuScenesSource

__all__ = ["NuScenesSource"]
