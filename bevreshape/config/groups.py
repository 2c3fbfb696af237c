"""The groups of a config: arguments of their classes, and required attributes of their objects."""

import re
from collections.abc import Mapping
from typing import Any

from bevreshape.config.construct import accepted, check_node, construct
from bevreshape.errors import InputError

MODEL_PARTS = ("encoder", "reshaper", "head")
"""Groups that form the model."""

FROM_CHECKPOINT = ("data", "loader", "metric")
"""Groups that evaluation takes from the checkpoint's run, unless others are chosen."""

NAMED = ("head", "objective", "metric")
"""Groups that hold several nodes by name. Their classes may omit the offered arguments, and nodes may set them."""


GIVEN: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "augment": ("grid", "camera_names", "image_mode"),
    "encoder": ("image_size", "cameras"),
    "reshaper": ("source", "grid"),
    "head": ("in_channels", "out_channels"),
    "objective": ("classes", "grid"),
    "metric": ("classes", "grid"),
    "optimizer": (),
    "logger": ("save_dir",),
}
"""Arguments for the class of a group, in addition to the options of the config."""


NEEDED: Mapping[str, tuple[str, ...]] = {
    "data": ("grid", "classes", "camera_names", "image_size", "prepare", "split", "make_targets"),
    "encoder": ("sources", "forward", "named_parameters"),
    "reshaper": ("out_channels", "forward", "named_parameters"),
    "head": ("forward", "named_parameters"),
    "objective": ("forward", "named_parameters"),
    "optimizer": ("build",),
}
"""Required attributes of the objects of a group."""


ADVICE = {
    "named_parameters": "derive it from torch.nn.Module",
    "out_channels": "set it to d in its __init__, the head is built for it",
    "sources": "set it to a FeatureShape of each scale in its __init__, the reshaper is built for them",
}
"""Remedies for attributes that a third party's class may lack."""


def check_nodes(cfg: Mapping[str, Any]) -> None:
    """Check every group of a config against its class, before anything is read, built or downloaded.

    Raises:
        InputError: when a node does not fit its class; names the key.
    """
    for key, names in GIVEN.items():
        node = dict(cfg.get(key) or {})
        if key in NAMED:
            for name, one in node.items():
                check_node(f"{key}.{name}", _node(f"{key}.{name}", one), accepted(f"{key}.{name}", one, names))
        elif node or key not in ("augment", "logger"):
            check_node(key, node, names)


def build_part(key: str, node: Mapping[str, Any], where: str = "", **given: Any) -> Any:
    """Build the object of one node.

    Args:
        key: of its group.
        node: plain values.
        where: the node's own key, if it is not the group's.
        given: further arguments of its class.
    """
    made = construct(where or key, node, **given)
    missing = [name for name in NEEDED.get(key, ()) if not _has(made, name)]
    if missing:
        raise InputError(
            f"{where or key}: {type(made).__name__} has no {missing[0]}, so it is no {key}; "
            f"{ADVICE.get(missing[0], f'choose {key}=NAME')}"
        )
    return made


def _has(made: Any, name: str) -> bool:
    """Return whether an object defines an attribute; every module of torch inherits a ``forward`` that only raises."""
    return getattr(getattr(made, name, None), "__name__", "") != "_forward_unimplemented" and hasattr(made, name)


def build_named(key: str, nodes: Mapping[str, Any], **offered: Any) -> dict[str, Any]:
    """Build the objects of a group of several nodes, by name.

    Args:
        key: of the group.
        nodes: by name.
        offered: arguments for classes that take them and nodes that do not set them.

    Raises:
        InputError: naming the key.
    """
    made = {}
    for name, node in nodes.items():
        where = f"{key}.{name}"
        given = {option: offered[option] for option in accepted(where, _node(where, node), offered)}
        made[name] = build_part(key, node, where, **given)
    return made


def _node(where: str, node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping) or not re.fullmatch(r"\w+\.\w+", where):
        raise InputError(f"{where}={node!r:.80} must be a node with _target_ under a name of letters, digits and _")
    return node
