"""From BEV features to class logits."""

from bevreshape.heads.conv import ConvHead

__all__ = ["ConvHead"]
