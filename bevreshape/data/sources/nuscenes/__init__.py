"""nuScenes by the published protocols: prepared once with its devkit, read without it."""

from bevreshape.data.sources.nuscenes.source import NuScenesSource

__all__ = ["NuScenesSource"]
