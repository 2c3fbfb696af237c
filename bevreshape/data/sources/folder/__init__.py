"""Read camera folders: calibrated images of any camera, with image labels, BEV labels, or 3D boxes."""

from bevreshape.data.sources.folder.source import FolderSource

__all__ = ["FolderSource"]
