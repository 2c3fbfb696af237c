"""Heads: BEV features → maps of a task."""

from bevreshape.heads.conv import ConvHead
from bevreshape.heads.pyramid import PyramidHead

__all__ = ["ConvHead", "PyramidHead"]
