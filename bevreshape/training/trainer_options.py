"""The ``trainer`` group: which options of Lightning's Trainer are supported, and why others are refused."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from typing_extensions import TypedDict

from bevreshape.config.options import Steps, Weight, read_value, suggest_key
from bevreshape.errors import InputError

Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp"]
"""Strategies whose processes this program starts and whose checkpoints load anywhere."""


MONITORS = {"val/iou/mean": "max", "val/loss": "min"}
"""Scores that select the best checkpoint, and the direction of improvement."""


@dataclass(frozen=True)
class Refused:
    """An option of Lightning's Trainer that is not supported here.

    Attributes:
        reason: why it is refused, and what to set instead.
        idle: values without an effect, such as Lightning's defaults, which are accepted.
    """

    reason: str
    idle: tuple[Any, ...] = (None,)


Open = Literal[-1] | Steps
"""A length; -1 means unlimited."""
Limit = Annotated[int, Ge(1), Le(1_000_000_000)] | Annotated[float, Gt(0), Le(1)] | None
"""A number of batches, or a fraction of them."""
Machine = Any
"""Checked against the machine, see :func:`~bevreshape.training.hardware.check_hardware`."""

_ONE_LENGTH = "a run's length is max_steps or max_epochs, and its learning rate is scheduled over it"
_WHOLE_SPLIT = "an epoch is the whole training split; set max_steps for a shorter run, or give the data fewer samples"

OPTIONS: Mapping[str, Any] = {
    # where
    "accelerator": Machine,
    "devices": Machine,
    "num_nodes": Steps,
    "precision": Machine,
    "strategy": Strategy,
    "sync_batchnorm": bool,
    # length
    "max_steps": Open,
    "max_epochs": Open,
    "min_steps": Refused(f"{_ONE_LENGTH}; early_stopping.patience says how soon it may stop early"),
    "min_epochs": Refused(f"{_ONE_LENGTH}; early_stopping.patience says how soon it may stop early"),
    "max_time": Refused(f"{_ONE_LENGTH}; set max_steps, which gives the same run on any machine"),
    "accumulate_grad_batches": Steps,
    "limit_train_batches": Refused(_WHOLE_SPLIT, idle=(None, 1.0)),
    "overfit_batches": Refused(_WHOLE_SPLIT, idle=(None, 0, 0.0)),
    "fast_dev_run": Refused("it skips the checkpoints that are tested; set max_steps=1", idle=(None, False, 0)),
    # validation and test
    "val_check_interval": Steps,
    "check_val_every_n_epoch": Refused("validations are counted in optimizer steps; set val_check_interval"),
    "limit_val_batches": Limit,
    "limit_test_batches": Limit,
    "limit_predict_batches": Refused("nothing is predicted here; use bevreshape.predict", idle=(None, 1.0)),
    "num_sanity_val_steps": Refused(
        "everything is built and compared before the run begins, and step 0 is no validation", idle=(None, 0)
    ),
    "inference_mode": bool,
    # the step
    "gradient_clip_val": Weight | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "deterministic": bool | Literal["warn"],
    "benchmark": bool | None,
    "detect_anomaly": bool,
    # output
    "log_every_n_steps": Steps,
    "enable_progress_bar": bool,
    "enable_model_summary": bool,
    "profiler": Literal["simple", "advanced", "pytorch"] | None,
    "logger": Refused("loggers are a group of their own; choose logger=NAME"),
    "callbacks": Refused("the command has its own; use a Lightning Trainer of your own in Python"),
    "plugins": Refused("the command has its own, which write whole checkpoints; use a Lightning Trainer of your own"),
    "enable_checkpointing": Refused("the best checkpoint is what is tested, and the last one resumes", (None, True)),
    "barebones": Refused(
        "it has neither checkpoints nor metrics; measure speed by bevreshape.benchmark", (None, False)
    ),
    "default_root_dir": Refused("a run's folder is hydra.run.dir"),
    "enable_autolog_hparams": Refused("the whole config is logged, by the command itself", idle=(None, True)),
    "model_registry": Refused("checkpoints stay in the run's folder; upload them from there"),
    # the loaders
    "use_distributed_sampler": Refused("the processes share the samples already, each once", idle=(None, False)),
    "reload_dataloaders_every_n_epochs": Refused("the order of an epoch follows from its number", idle=(None, 0)),
}
"""Every option of ``lightning.pytorch.Trainer``: the values it takes, or why it is refused."""


class EarlyStopping(TypedDict, total=False):
    """Options of early stopping."""

    patience: Steps | None
    monitor: str
    min_delta: Weight


OWN: Mapping[str, Any] = {
    "compile": bool | Literal["cuda_graphs"],
    "static_rig": bool,
    "matmul_precision": Literal["highest", "high", "medium"],
    "early_stopping": EarlyStopping | None,
}
"""Options of the group that are not Lightning's."""


def check_options(group: Mapping[str, Any]) -> None:
    """Refuse unsupported options of the ``trainer`` group and of Lightning's environment variables.

    Raises:
        InputError: when an option is refused; names the option, its value and the remedy.
    """
    known = {**OPTIONS, **OWN}
    for key, value in group.items():
        if key not in known:
            raise InputError(f"trainer.{key} is unknown; {suggest_key(f'trainer.{key}', {'trainer': known})}")
        option = known[key]
        if isinstance(option, Refused):
            if not any(type(value) is type(idle) and value == idle for idle in option.idle):  # 1 is not 1.0 here
                raise InputError(f"trainer.{key}={value!r} is refused: {option.reason}")
        else:
            read_value(f"trainer.{key}", option, value)
    for key in OPTIONS:
        name = f"PL_TRAINER_{key.upper()}"
        if name in os.environ:
            raise InputError(f"{name}={os.environ[name]} is set in the environment; unset it, and set trainer.{key}")
    if group.get("max_steps", -1) < 0 and group.get("max_epochs", -1) < 0:
        raise InputError(
            "trainer.max_steps=-1 without max_epochs has no end; set trainer.max_steps or trainer.max_epochs"
        )
    if group.get("deterministic") and group.get("benchmark"):
        raise InputError(
            f"trainer.deterministic={group['deterministic']} and trainer.benchmark=true contradict each other: the "
            "fastest kernel may differ between runs; set one of them to false"
        )
