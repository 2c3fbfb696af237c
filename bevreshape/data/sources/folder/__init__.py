"""Camera folders: calibrated images of any camera, with labels in the images, from above, or as 3D boxes."""

from bevreshape.data.sources.folder.source import FolderSource

__all__ = ["FolderSource"]
