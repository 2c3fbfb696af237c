"""The groups of a config: what the program passes to their classes, and what it needs from their objects."""

from collections.abc import Mapping
from typing import Any

from bevreshape.config.construct import check_node, construct
from bevreshape.config.options import BatchSize, CountOrNone
from bevreshape.errors import InputError

MODEL_PARTS = ("encoder", "reshaper", "head")
"""Groups of a config that make the model."""


LOADER_KEYS = {"batch_size": BatchSize, "num_workers": CountOrNone}
"""Keys of the ``data`` group that are the datamodule's; all others are the source's."""


GIVEN: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "augment": ("grid", "camera_names", "image_mode"),
    "encoder": ("image_size", "cameras"),
    "reshaper": ("source", "grid"),
    "head": ("in_channels", "classes"),
    "loss": ("classes",),
    "optimizer": (),
    "logger": ("save_dir",),
}
"""What the program gives the class of a group, in addition to the options of the config."""


NEEDED: Mapping[str, tuple[str, ...]] = {
    "data": ("grid", "classes", "camera_names", "image_size", "prepare", "split", "make_targets"),
    "encoder": ("sources", "forward"),
    "reshaper": ("out_channels", "forward"),
    "head": ("forward",),
    "loss": ("forward",),
    "optimizer": ("build",),
}
"""What the program asks of the objects of a group; a class of another kind lacks some of it."""


ADVICE = {"out_channels": "set it to d in its __init__, the head is built for it"}
"""For what one's own class easily lacks."""


def check_nodes(cfg: Mapping[str, Any]) -> None:
    """Compare every group of a config with its class, before anything is read, built or loaded from the network.

    Raises:
        InputError: naming the key.
    """
    given = {**GIVEN, "head": (*GIVEN["head"], *(["instances"] if instance_classes(cfg) else ()))}
    for key, names in given.items():
        node = dict(cfg.get(key) or {})
        if key == "data":
            names = ("instances",) if instance_classes(cfg) else ()
            node = {name: value for name, value in node.items() if name not in LOADER_KEYS}
        if node or key not in ("augment", "logger"):
            check_node(key, node, names)


def build_part(key: str, node: Mapping[str, Any], **given: Any) -> Any:
    """The object of one node."""
    made = construct(key, node, **given)
    missing = [name for name in NEEDED.get(key, ()) if not hasattr(made, name)]
    if missing:
        raise InputError(
            f"{key}: {type(made).__name__} has no {missing[0]}, so it is no {key}; {ADVICE.get(missing[0], f'choose {key}=NAME')}"
        )
    return made


def instance_classes(cfg: Mapping[str, Any]) -> list[str]:
    """The classes whose objects' centres are learned too; data alone, and models of before, have none."""
    node = cfg.get("instances") or {}
    if not isinstance(node, Mapping):
        raise InputError(f"instances={node!r} must be a mapping, such as classes: [vehicle]")
    found = node.get("classes") or []
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise InputError(f"instances.classes={found} must be a list of classes, such as [vehicle]")
    return list(found)
