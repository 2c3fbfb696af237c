"""From the groups ``data`` and ``augment`` to a datamodule."""

from collections.abc import Mapping
from typing import Any

from bevreshape.config.groups import build_part
from bevreshape.config.options import Seed, read_value
from bevreshape.config.settings import Loader
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError


def build_data(cfg: Mapping[str, Any]) -> BEVDataModule:
    """The datamodule of ``cfg.data``, ``cfg.loader`` and ``cfg.augment``, ordered by ``cfg.seed``."""
    seed = read_value("seed", Seed, cfg["seed"])
    loader = read_value("loader", Loader, cfg["loader"])
    source = build_part("data", cfg["data"])
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
