"""Building a Lightning task from a model and the groups ``objective``, ``metric`` and ``optimizer``."""

from collections.abc import Mapping, Sequence
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.groups import build_named, build_part
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics import BEVMetric
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
        build_metrics(cfg["metric"], spec.classes, spec.grid),
        build_part("optimizer", cfg["optimizer"]),
        seed=cfg["seed"],
        recipe=recipe,
    )


def build_metrics(nodes: Mapping[str, Any], classes: Sequence[str], grid: BEVGrid) -> dict[str, BEVMetric]:
    """Build the metrics of a config by name.

    Raises:
        InputError: when a class is no :class:`~bevreshape.metrics.BEVMetric`.
    """
    metrics = build_named("metric", nodes, classes=classes, grid=grid)
    for name, metric in metrics.items():
        if not isinstance(metric, BEVMetric):
            raise InputError(
                f"metric.{name}: {type(metric).__name__} is no BEVMetric; derive it from bevreshape.metrics.BEVMetric, "
                "whose update takes (outputs, batch)"
            )
    return metrics
