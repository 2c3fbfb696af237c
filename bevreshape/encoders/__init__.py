"""Image encoders: images of every camera → feature maps."""

from bevreshape.encoders.timm import TimmEncoder

__all__ = ["TimmEncoder"]
