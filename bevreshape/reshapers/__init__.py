"""View transformers, one file each, behind one contract: ``reshaper(features, cameras) -> bev``."""

from bevreshape.geometry import FeatureShape
from bevreshape.reshapers.base import GeometricReshaper, Reshaper
from bevreshape.reshapers.bilinear import Bilinear
from bevreshape.reshapers.column_attention import ColumnAttention
from bevreshape.reshapers.column_mlp import ColumnMLP
from bevreshape.reshapers.cross_attention import CrossAttention
from bevreshape.reshapers.cross_view_attention import CrossViewAttention
from bevreshape.reshapers.deformable_attention import DeformableAttention
from bevreshape.reshapers.fixed_rig import FixedRig
from bevreshape.reshapers.ipm import IPM
from bevreshape.reshapers.kernel_attention import KernelAttention
from bevreshape.reshapers.latent_attention import LatentAttention
from bevreshape.reshapers.lift_splat import LiftSplat
from bevreshape.reshapers.mlp import MLP
from bevreshape.reshapers.mlp_attention import MLPAttention
from bevreshape.reshapers.pool import Pool
from bevreshape.reshapers.self_attention import SelfAttention
from bevreshape.reshapers.strided_conv import StridedConv

__all__ = [
    "IPM",
    "MLP",
    "Bilinear",
    "ColumnAttention",
    "ColumnMLP",
    "CrossAttention",
    "CrossViewAttention",
    "DeformableAttention",
    "FeatureShape",
    "FixedRig",
    "GeometricReshaper",
    "KernelAttention",
    "LatentAttention",
    "LiftSplat",
    "MLPAttention",
    "Pool",
    "Reshaper",
    "SelfAttention",
    "StridedConv",
]
