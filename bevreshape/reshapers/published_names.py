"""Names of published weights, and the names of the same parameters here."""

import re
from collections.abc import Mapping

from torch import Tensor

CVT = (
    ("bev_embedding.learned_features", "prior"),
    ("cross_views.", "views."),
    ("layers.", "middle."),
    ("feature_proj.0.", "embed_key.norm."),
    ("feature_proj.2.", "embed_key.linear."),
    ("feature_linear.0.", "embed_value.norm."),
    ("feature_linear.2.", "embed_value.linear."),
    ("bev_embed.", "embedding.cell."),
    ("img_embed.", "embedding.point."),
    ("cam_embed.", "embedding.center."),
    *((f"cross_attend.to_{x}.0.", f"to_{x}.norm.") for x in "qkv"),
    *((f"cross_attend.to_{x}.1.", f"to_{x}.linear.") for x in "qkv"),
    ("cross_attend.proj.", "project."),
    ("cross_attend.mlp.", "feedforward."),
    ("cross_attend.", ""),
)
"""Cross-view transformers (CVT): original names, and the names here."""

GKT = {
    r"bev_embedding\.learned_features": "prior",
    r"layers\.": "middle.",
    r"cross_views\.(\d+)\.conv\.": r"scales.\1.context.",
    r"cross_views\.(\d+)\.feature_proj\.": r"scales.\1.key.",
    r"cross_views\.(\d+)\.feature_linear\.": r"scales.\1.value.",
    r"cross_views\.(\d+)\.img_embed\.": r"scales.\1.embedding.point.",
    r"cross_views\.(\d+)\.cam_embed\.": r"scales.\1.embedding.center.",
    r"cross_views\.(\d+)\.bev_embed\.": r"scales.\1.embedding.cell.",
    r"cross_views\.(\d+)\.cross_attn\.mlp\.": r"scales.\1.feedforward.",
    r"cross_views\.(\d+)\.cross_attn\.": r"scales.\1.",
}
"""Geometry-guided kernel transformer (GKT): patterns of original names, and the names here."""

LARA = (
    (r"^.*?(?=latent_(encoder|decoder)\.)", ""),
    (r"^latent_encoder\.latent$", "latents"),
    (r"^latent_encoder\.input_embedding\.embedding_map\.", "embed_rays."),
    (r"^latent_decoder\.query_map\.", "embed_cells."),
    (r"^embed_(rays|cells)\.0\.", r"embed_\1.first."),
    (r"^embed_(rays|cells)\.2\.", r"embed_\1.second."),
    (r"^latent_decoder\.query_generator\.query_generators\.0\.bev_embedding$", "cells"),
    (r"^latent_encoder\.ca_layer\.([01])\.module\.module\.", r"read.\1."),
    (r"^latent_encoder\.sa_layer\.(\d+)\.([01])\.module\.module\.", r"think.\1.\2."),
    (r"^latent_encoder\.sa_layer\.(\d+)\.([01])\.module\.layer_scale\.gamma$", r"think.\1.scales.\2"),
    (r"^latent_decoder\.cross_attention\.0\.(?=q_norm|kv_norm|attention)", "write.0."),
    (r"^latent_decoder\.cross_attention\.1\.module\.module\.", "write.1."),
    (r"^(read|think\.\d+|write)\.0\.(q_)?norm\.", r"\1.norm."),
    (r"^(read|write)\.0\.kv_norm\.", r"\1.norm_tokens."),
    (r"^(read|think\.\d+|write)\.0\.attention\.attention\.out_proj\.", r"\1.out."),
    (r"^(read|think\.\d+|write)\.0\.attention\.attention\.([qkv])_proj_weight$", r"\1.attention.to_\2.weight"),
    (r"^(read|think\.\d+|write)\.0\.attention\.attention\.in_proj_(weight|bias)$", r"\1.attention.to_qkv.\2"),
    (r"^(read|think\.\d+|write)\.1\.0\.", r"\1.feedforward.0."),
    (r"^(read|think\.\d+|write)\.1\.1\.", r"\1.feedforward.1.0."),
    (r"^(read|think\.\d+|write)\.1\.3\.", r"\1.feedforward.1.2."),
)
"""LaRa: patterns of original names, and the names here, applied in order."""

TIM = {
    "in_proj_": "to_qkv.",
    "out_proj.": "out.",
    "linear1.": "feedforward.0.",
    "linear2.": "feedforward.2.",
    "norm1.": "norms.0.",
    "norm2.": "norms.1.",
    "norm3.": "norms.2.",
    "multihead_attn.": "cross_attention.",
    "encoder.layers.": "encoder.",
    "decoder.layers.": "decoder.",
    "decoder.norm.": "norm.",
}
"""Translating Images into Maps: parts of original names, and of the names here."""


def tim_name(key: str) -> str:
    """Translate the name of a weight of Translating Images into Maps."""
    attention = "attention." if key.startswith("encoder.") else "self_attention."
    for theirs, ours in {**TIM, "self_attn.": attention}.items():
        key = key.replace(theirs, ours)
    return key


def bevformer_weights(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return BEVFormer's weights under the names of :class:`DeformableAttention`, and the names that are left over."""
    # the first of two attentions in a layer is temporal, and so is the first of three norms
    spatial = int(any(".attentions.1." in f".{name}" for name in state_dict))
    attention = f"attentions.{spatial}"
    in_a_layer = {
        f"{attention}.deformable_attention.sampling_offsets": "attention.offsets",
        f"{attention}.deformable_attention.attention_weights": "attention.weights",
        f"{attention}.deformable_attention.value_proj": "attention.value",
        f"{attention}.output_proj": "attention.out",
        f"norms.{spatial}": "norm",
        f"norms.{spatial + 1}": "norm_out",
        "ffns.0.layers.0.0": "feedforward.0",
        "ffns.0.layers.1": "feedforward.2",
    }
    around = {
        "bev_embedding.weight": "query",
        "positional_encoding.row_embed.weight": "position.0",
        "positional_encoding.col_embed.weight": "position.1",
        "level_embeds": "level_embedding",
        "cams_embeds": "camera_embedding",
    }
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for name, value in state_dict.items():
        whole = f"layers.0.{attention}.{name}" if name.startswith(("deformable_attention.", "output_proj.")) else name
        part = re.fullmatch(r"(?:.*\bencoder\.)?layers\.(\d+)\.(.+)\.(weight|bias)", whole)
        if part and part[2] in in_a_layer:
            found[f"layers.{part[1]}.{in_a_layer[part[2]]}.{part[3]}"] = value
        elif name in around:
            found[around[name]] = value
        elif not (part and spatial and part[2].startswith(("attentions.0.", "norms.0"))):
            left.append(name)
    return found, left
