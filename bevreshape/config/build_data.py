"""Building the datamodule from the groups ``data``, ``loader`` and ``augment``."""

import inspect
from collections.abc import Mapping
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.construct import locate
from bevreshape.config.groups import build_part
from bevreshape.config.options import Seed, read_value
from bevreshape.config.settings import Loader
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError


def build_data(cfg: Mapping[str, Any]) -> BEVDataModule:
    """Build the datamodule of ``cfg.data``, ``cfg.loader`` and ``cfg.augment``, shuffled by ``cfg.seed``."""
    seed = read_value("seed", Seed, cfg["seed"])
    loader = read_value("loader", Loader, cfg["loader"])
    source = build_part("data", cfg["data"])
    augment = cfg.get("augment")
    if augment:
        fitting = {"image_mode": source.image_mode} if getattr(source, "image_mode", "rgb") != "rgb" else {}
        augment = build_part("augment", augment, grid=source.grid, camera_names=source.camera_names, **fitting)
        if getattr(augment, "flip_p", 0) > 0 and getattr(source, "raster", "exact") != "exact":
            raise InputError(
                f"augment.flip_p={augment.flip_p}: data.raster={source.raster} draws half a cell to one side, so the "
                "labels of a mirrored image would be shifted by a cell; set augment.flip_p=0 or "
                "data.raster=exact"
            )
    return BEVDataModule(source, **loader, augment=augment or None, seed=seed)


def build_data_for(cfg: Mapping[str, Any], spec: BEVSpec) -> BEVDataModule:
    """Build the datamodule with the grid, image size and image mode of a trained model.

    Raises:
        InputError: when the class of ``cfg.data`` has another grid or image size and no option for it.
    """
    data = cfg["data"]
    options = inspect.signature(locate(str(data.get("_target_")))).parameters
    node: dict[str, Any] = {
        "grid": {
            "_target_": "bevreshape.geometry.BEVGrid",
            "forward_m": list(spec.grid.forward_m),
            "left_m": list(spec.grid.left_m),
            "cell_m": spec.grid.cell_m,
        },
        "image_size": list(spec.image_size),
    }
    if "image_mode" in data or spec.image_mode != "rgb":
        node["image_mode"] = spec.image_mode
    takes_all = any(option.kind is option.VAR_KEYWORD for option in options.values())
    node = {key: value for key, value in node.items() if key in options or takes_all or key == "image_mode"}
    found = build_data({**cfg, "data": {**data, **node}})
    for key in ("grid", "image_size"):
        own, wanted = getattr(found.source, key), getattr(spec, key)
        if key not in node and own != wanted and not (key == "image_size" and tuple(own) == wanted):
            raise InputError(
                f"data: {data['_target_']} takes no {key} and has {own}, but the model was trained for {wanted}; give "
                f"its __init__ the option {key}"
            )
    return found
