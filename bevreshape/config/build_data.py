"""From the groups ``data`` and ``augment`` to a datamodule."""

import inspect
from collections.abc import Mapping
from typing import Any

from bevreshape.config.construct import locate
from bevreshape.config.groups import LOADER_KEYS, build_part, instance_classes
from bevreshape.config.options import Seed, read_value
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError


def build_data(cfg: Mapping[str, Any]) -> BEVDataModule:
    """The datamodule of ``cfg.data`` and ``cfg.augment``, ordered by ``cfg.seed``."""
    seed = read_value("seed", Seed, cfg["seed"])
    node = dict(cfg["data"])
    missing = [key for key in LOADER_KEYS if key not in node]
    if missing:
        raise InputError(f"data has no {missing[0]}; set data.{missing[0]}=NUMBER")
    loader = {key: read_value(f"data.{key}", hint, node.pop(key)) for key, hint in LOADER_KEYS.items()}
    instances = instance_classes(cfg)
    if instances and "instances" not in inspect.signature(locate(str(node.get("_target_")))).parameters:
        raise InputError(
            f"instances.classes={instances}: {node['_target_']} does not tell objects apart; choose data=nuscenes, or set "
            "instances.classes=[]"
        )
    source = build_part("data", node, **({"instances": instances} if instances else {}))
    augment = cfg.get("augment")
    if augment:
        fitting = {"image_mode": source.image_mode} if getattr(source, "image_mode", "rgb") != "rgb" else {}
        augment = build_part("augment", augment, grid=source.grid, camera_names=source.camera_names, **fitting)
        if getattr(augment, "flip_p", 0) > 0 and getattr(source, "raster", "exact") != "exact":
            raise InputError(
                f"augment.flip_p={augment.flip_p}: data.raster={source.raster} draws half a cell to one side, so a mirrored "
                "image would be trained on another truth, a cell off; set augment.flip_p=0 or data.raster=exact"
            )
    return BEVDataModule(source, **loader, augment=augment or None, seed=seed)
