"""Building a Lightning task from a model and the groups ``objective``, ``metric`` and ``optimizer``."""

from collections.abc import Mapping
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.groups import build_named, build_part
from bevreshape.model import BEVModel
from bevreshape.storage.checkpoint import FORMAT
from bevreshape.storage.plain_values import check_plain
from bevreshape.training.task import BEVTask


def build_task(cfg: Mapping[str, Any], spec: BEVSpec, model: BEVModel) -> BEVTask:
    """Build the task of a model with its objectives, metrics and optimizer; checkpoints hold the model's recipe."""
    recipe = {"format": FORMAT, "config": dict(cfg), "spec": spec.to_plain()}
    check_plain(recipe, "config")  # otherwise its checkpoints would be refused
    return BEVTask(
        model,
        build_named("objective", cfg["objective"], classes=spec.classes, grid=spec.grid),
        build_named("metric", cfg["metric"], classes=spec.classes, grid=spec.grid),
        build_part("optimizer", cfg["optimizer"]),
        seed=cfg["seed"],
        recipe=recipe,
    )
