"""From BEV features to class logits."""

from bevreshape.heads.base import Head
from bevreshape.heads.conv import ConvHead
from bevreshape.heads.pyramid import PyramidHead

__all__ = ["ConvHead", "Head", "PyramidHead"]
