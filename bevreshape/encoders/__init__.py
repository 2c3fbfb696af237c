"""Image encoders: images of every camera → features."""

from bevreshape.encoders.timm import TimmEncoder

__all__ = ["TimmEncoder"]
