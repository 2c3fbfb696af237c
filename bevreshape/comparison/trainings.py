"""Trainings of a comparison: their configs, and what may differ without another result."""

import copy
from collections.abc import Mapping
from typing import Any

from bevreshape.comparison.budget import Budget
from bevreshape.config.construct import TARGET, locate
from bevreshape.errors import InputError
from bevreshape.reporting.runs import counts, flattened
from bevreshape.reshapers import Reshaper
from bevreshape.training.loggers import is_wandb
from bevreshape.training.mlflow_run import is_mlflow

SHARED = ("data", "loader", "augment", "encoder", "head", "objective", "metric", "optimizer", "trainer")
"""Groups of the config that all trainings share."""

NEVER = 1_000_000_000
"""An interval that no training reaches."""


def rate_key(optimizer: Mapping[str, Any]) -> str:
    """Return the config key of the learning rate.

    Raises:
        InputError: when the optimizer has none.
    """
    for key, node in (("optimizer", optimizer), ("optimizer.optimizer", optimizer.get("optimizer"))):
        if isinstance(node, Mapping) and "lr" in node:
            return f"{key}.lr"
    raise InputError("optimizer has no option lr, which a comparison tunes; choose optimizer=adamw_onecycle")


def declared_options(node: Mapping[str, Any]) -> dict[str, tuple[object, ...]]:
    """Return the values that a reshaper declares as worth tuning and its config does not have, by config key."""
    found = locate(str(node.get(TARGET)))
    options = found.worth_tuning if isinstance(found, type) and issubclass(found, Reshaper) else {}
    return {
        f"reshaper.{option}": tuple(value for value in values if value != node.get(option))
        for option, values in options.items()
    }


def training_config(
    settings: Mapping[str, Any], name: str, values: Mapping[str, object], steps: int, seed: int, *, judged: bool
) -> dict[str, Any]:
    """Return the config of ``bevreshape.train`` for one training.

    Args:
        settings: of the command.
        name: of the view transformer.
        values: tuned values by config key.
        steps: of training.
        seed: of the training.
        judged: validate several times, and log curves and images; otherwise validate at the end alone.
    """
    config = {group: copy.deepcopy(settings[group]) for group in SHARED}
    config["reshaper"] = copy.deepcopy(settings["reshapers"][name])
    for key, value in values.items():
        set_value(config, key, value)
    validations = Budget.read(settings["budget"]).validations if judged else 1
    config["trainer"] |= {
        "max_steps": steps, "max_epochs": -1, "val_check_interval": max(1, steps // validations),
        "enable_progress_bar": False,
    }  # fmt: skip
    if early := config["trainer"].get("early_stopping"):
        config["trainer"]["early_stopping"] = {**early, "patience": None}  # the same budget for everyone
    logger = copy.deepcopy(settings["logger"]) if judged else None
    title = f"{name}-seed{seed}"
    if logger and is_wandb(logger):
        logger |= {"group": settings["name"], "name": title}
    elif logger and is_mlflow(logger):
        logger |= {"tags": {**(logger.get("tags") or {}), "group": settings["name"]}, "run_name": title}
    return config | {
        "logger": logger, "seed": seed, "name": title,
        "checkpoint_every_n_steps": settings["checkpoint_every_n_steps"],
        "log_images": dict(settings["log_images"]) if judged else {"every_n_validations": NEVER, "num_samples": 1},
    }  # fmt: skip


def set_value(config: dict[str, Any], key: str, value: object) -> None:
    """Set the value of a dotted key."""
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value


def _counts(key: str) -> bool:
    """Return whether another value makes another result: also of the devices, which multiply the batch."""
    return counts(key) or key in ("trainer.devices", "trainer.num_nodes")


def made_with(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return everything that the result of a training depends on, apart from steps, seed and tuned values, by key."""
    config = {group: settings[group] for group in SHARED} | {"reshaper": settings["reshapers"][name]}
    decided = ("trainer.max_steps", "trainer.max_epochs", "trainer.val_check_interval", rate_key(settings["optimizer"]))
    return {key: value for key, value in flattened(config).items() if _counts(key) and key not in decided}
