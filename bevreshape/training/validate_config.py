"""Checks of a config before its run begins."""

from collections.abc import Mapping
from typing import Any

import torch

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data
from bevreshape.config.build_logger import logger_options
from bevreshape.config.build_model import build_model
from bevreshape.config.build_task import build_task
from bevreshape.config.groups import check_nodes
from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError
from bevreshape.training.hardware import check_hardware, on_gpu, process_count
from bevreshape.training.mlflow_run import check_mlflow_classes, is_mlflow
from bevreshape.training.optimizer import check_fused
from bevreshape.training.rehearsal import check_compiler, rehearse
from bevreshape.training.schedule import make_early_stop
from bevreshape.training.sharding import check_shardable, check_sharding, is_sharded
from bevreshape.training.trainer import make_trainer, silence_lightning
from bevreshape.training.trainer_options import check_options


def validate_config(cfg: Mapping[str, Any]) -> BEVDataModule:
    """Build all parts once, to report their errors before scenes are generated or processes started.

    Returns:
        The data module, not yet prepared.

    Raises:
        InputError: when a part cannot be built; names the key.
    """
    for key in ("max_steps", "val_check_interval"):
        if cfg["trainer"].get(key) is None:
            raise InputError(f"trainer.{key} is missing; leave it in the config")
    check_options(cfg["trainer"])
    logger_options(cfg)
    check_nodes(cfg)
    check_hardware(cfg["trainer"])
    check_sharding(cfg["trainer"])
    silence_lightning()
    data = build_data(cfg)
    spec = BEVSpec.of(data.source)
    if is_mlflow(cfg["logger"] or {}):
        check_mlflow_classes(spec.classes)
    model = build_model(cfg, spec)
    task = build_task(cfg, spec, model)
    check_fused(task.optimizer, cfg["trainer"])
    if is_sharded(cfg["trainer"]):
        check_shardable(model, task.optimizer)
    make_early_stop(cfg["trainer"], task)
    alone = process_count(cfg["trainer"]) == 1
    if alone:
        make_trainer(cfg["trainer"], logger=False)
    if data.batch_size == 1 and (alone or not cfg["trainer"].get("sync_batchnorm")):
        rehearse(model, spec, 1)
    if cfg["trainer"].get("compile"):
        check_compiler(torch.device("cuda" if on_gpu(cfg["trainer"]) else "cpu"))
    return data
