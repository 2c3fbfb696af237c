"""View transformers, one file each, behind one contract: ``reshaper(features, cameras) -> bev``."""

from bevreshape.reshapers.base import FeatureShape, GeometricReshaper, Reshaper
from bevreshape.reshapers.column_attention import ColumnAttention
from bevreshape.reshapers.column_mlp import ColumnMLP
from bevreshape.reshapers.cross_attention import CrossAttention
from bevreshape.reshapers.ipm import IPM
from bevreshape.reshapers.mlp import MLP
from bevreshape.reshapers.pool import Pool
from bevreshape.reshapers.self_attention import SelfAttention
from bevreshape.reshapers.strided_conv import StridedConv

__all__ = [
    "IPM",
    "MLP",
    "ColumnAttention",
    "ColumnMLP",
    "CrossAttention",
    "FeatureShape",
    "GeometricReshaper",
    "Pool",
    "Reshaper",
    "SelfAttention",
    "StridedConv",
]
