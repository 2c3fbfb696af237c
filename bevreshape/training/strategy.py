"""The strategy that combines the gradients of several processes."""

from collections.abc import Mapping
from typing import Any

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_model import build_model
from bevreshape.training.hardware import process_count
from bevreshape.training.rehearsal import rehearse
from bevreshape.training.sharding import find_blocks, is_sharded
from bevreshape.training.sharding_strategy import ShardingStrategy


def choose_strategy(cfg: Mapping[str, Any], spec: BEVSpec) -> str | ShardingStrategy:
    """Return the strategy of the ``trainer`` group, or DDP with unused parameters if some get no gradient.

    Encoders may have unused branches. Plain DDP would wait for their gradients forever; FSDP does not.
    """
    trainer = cfg["trainer"]
    if is_sharded(trainer):
        return ShardingStrategy(find_blocks(build_model(cfg, spec), spec))
    asked = str(trainer.get("strategy", "auto"))
    if process_count(trainer) * trainer.get("num_nodes", 1) == 1 or asked not in ("auto", "ddp"):
        return asked
    unused = rehearse(build_model(cfg, spec), spec, 2, backward=True)
    return "ddp_find_unused_parameters_true" if unused else asked
