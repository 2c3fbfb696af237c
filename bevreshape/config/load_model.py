"""Loading the model of a checkpoint, without calling classes that are neither known nor trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.allowed import check_targets, read_trust
from bevreshape.config.build_model import build_model
from bevreshape.config.groups import MODEL_PARTS
from bevreshape.errors import InputError
from bevreshape.model import BEVModel
from bevreshape.storage.checkpoint import check_architecture, load_weights, model_weights, read_checkpoint

MAX_BUFFER_BYTES = 1 << 30
"""Largest memory of a checkpoint's model in addition to its weights."""


def load_model(path: str, trust: Sequence[str] = ()) -> tuple[BEVModel, BEVSpec, dict[str, Any]]:
    """Rebuild a trained model from its checkpoint alone, on the CPU and in evaluation mode.

    Args:
        path: the checkpoint.
        trust: packages whose classes it may name, in addition to bevreshape and the installed entry points.

    Returns:
        The model, the specification it was trained for, and the config of its run.

    Raises:
        InputError: when the file is no checkpoint of bevreshape, or names a class that is not allowed.
    """
    checkpoint = read_checkpoint(path)
    cfg, spec = _read_recipe(checkpoint["bevreshape"], f"checkpoint {path}", read_trust(trust))
    weights = model_weights(checkpoint)
    try:
        if all(node["_target_"].startswith("bevreshape.") for node in _model_nodes(cfg, path).values()):
            # on the device meta, since numbers in the recipe may ask for any amount of memory; classes of other
            # packages may need real tensors
            with torch.device("meta"):
                sketch = build_model({**cfg, "encoder": _with_offsets(cfg["encoder"])}, spec)
            check_architecture(sketch, weights, path)
            _check_buffers(sketch, path)
        model = build_model(cfg, spec)
    except InputError as error:
        raise InputError(str(error) if path in str(error) else f"checkpoint {path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint {path}: its model cannot be built ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}); its recipe is damaged or of another version"
        ) from error
    load_weights(model, checkpoint, path)
    return model.eval(), spec, cfg


def _with_offsets(encoder: dict[str, Any]) -> dict[str, Any]:
    """Return an encoder's node with offsets, since measuring them needs real tensors; no weight depends on them."""
    strides = encoder.get("strides", [8])
    return {**encoder, "offset_px": [0.0] * len(strides)} if isinstance(strides, list) else encoder


def _read_recipe(recipe: Mapping[str, Any], where: str, trust: Sequence[str]) -> tuple[dict[str, Any], BEVSpec]:
    """Return the config of a checkpoint's run with ``pretrained`` off, and the specification of its data."""
    cfg = recipe.get("config")
    if not isinstance(cfg, dict):
        raise InputError(f"{where}: bevreshape.config must be a mapping, not {cfg!r:.80}; it is damaged")
    for key, node in _model_nodes(cfg, where).items():
        if "_target_" not in node:
            raise InputError(f"{where}: bevreshape.config.{key} has no _target_; it is damaged")
    for part in MODEL_PARTS:
        check_targets(cfg[part], part, where, trust)
    cfg = dict(cfg)
    if "pretrained" in cfg["encoder"]:
        cfg["encoder"] = {**cfg["encoder"], "pretrained": False}  # the weights are in the checkpoint
    return cfg, BEVSpec.from_plain(recipe.get("spec"), f"{where}: bevreshape.spec")


def _model_nodes(cfg: Mapping[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    """Return the nodes of a model by their keys, one for each head."""
    nodes = {part: cfg.get(part) for part in MODEL_PARTS}
    heads = nodes.pop("head")
    nodes |= (
        {f"head.{name}": node for name, node in heads.items()} if isinstance(heads, dict) and heads else {"head": None}
    )
    found: dict[str, Mapping[str, Any]] = {}
    for key, node in nodes.items():
        if not isinstance(node, dict):
            raise InputError(f"{where}: bevreshape.config.{key} must be a mapping, not {node!r:.80}; it is damaged")
        found[key] = node
    return found


def _check_buffers(sketch: torch.nn.Module, path: str) -> None:
    """Refuse a model that takes too much memory in addition to its weights."""
    stored = sketch.state_dict().keys()
    others = sum(one.numel() * one.element_size() for name, one in sketch.named_buffers() if name not in stored)
    if others > MAX_BUFFER_BYTES:
        raise InputError(
            f"checkpoint {path}: its model would take {others:,} bytes in addition to its weights, at most "
            f"{MAX_BUFFER_BYTES:,} are allowed; use a file that bevreshape wrote"
        )
