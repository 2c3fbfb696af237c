"""Compute linear cross-attention from XᵀX, which no permutation of tokens changes (claims A5 and A10)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.reshapers import CrossAttention


def gram(features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """Return XᵀX of the tokens X of all cameras, a sum over tokens that does not depend on their order (A10)."""
    x = features if features.ndim == 5 else features.unsqueeze(1)
    return torch.einsum("bnchw,bnehw->bce", x, x)


def from_gram(reshaper: CrossAttention, gram: Float[Tensor, "b c c"]) -> Float[Tensor, "b d R C"]:
    """Return ``Ø·Wq·Wkᵀ·(XᵀX)·Wv`` per head, the output of a linear cross-attention (A5).

    It is divided by the number of tokens if the attention is.

    Args:
        reshaper: one with ``kernel="linear"``, ``attention_only`` and ``token_encoding="none"``; for it this is exact.
            An encoding of the queries is part of Ø.
        gram: XᵀX.

    Raises:
        InputError: if the reshaper has other options.
    """
    attention, kind = reshaper.attention, reshaper.encode_tokens.kind
    if attention.kernel != "linear" or not reshaper.attention_only or kind != "none":
        raise InputError(
            f"from_gram: the attention has kernel={attention.kernel}, attention_only={reshaper.attention_only} and "
            f"token_encoding={kind}, and depends on more than XᵀX; build it with kernel=linear, attention_only=true "
            "and token_encoding=none"
        )
    to_q, to_k, to_v = (
        rearrange(projection.weight, "(a e) c -> a c e", a=attention.heads)
        for projection in (attention.to_q, attention.to_k, attention.to_v)
    )  # a heads of e channels
    query = reshaper.encode_queries(reshaper.query)  # RC d
    out = query @ to_q @ to_k.mT @ gram.unsqueeze(1) @ to_v  # b a RC e
    if attention.divide_by_tokens:
        out = out / (reshaper.source.cameras * reshaper.source.tokens)
    return rearrange(out, "b a (R C) e -> b (a e) R C", R=reshaper.target_shape[0])
