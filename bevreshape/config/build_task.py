"""From a model and the groups ``loss`` and ``optimizer`` to a Lightning task."""

from collections.abc import Mapping
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.groups import build_part, instance_classes
from bevreshape.config.stored import check_plain
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.objectives.losses import InstanceLoss
from bevreshape.storage.checkpoint import FORMAT
from bevreshape.training.task import BEVTask


def build_task(cfg: Mapping[str, Any], spec: BEVSpec, model: BEVModel) -> BEVTask:
    """A model with its loss, metric and optimizer; its checkpoints carry what rebuilds it."""
    recipe = {"format": FORMAT, "config": dict(cfg), "spec": spec.to_plain()}
    check_plain(recipe, "config")  # or the checkpoint that holds it would be refused
    return BEVTask(
        model,
        build_part("loss", cfg["loss"], classes=spec.classes),
        BEVIoU(spec.classes, spec.grid),
        build_part("optimizer", cfg["optimizer"]),
        seed=cfg["seed"],
        recipe=recipe,
        instance_loss=InstanceLoss(
            [spec.classes.index(name) for name in instance_classes(cfg)],
            cfg["instances"]["center"],
            cfg["instances"]["offset"],
        )
        if instance_classes(cfg)
        else None,
    )
