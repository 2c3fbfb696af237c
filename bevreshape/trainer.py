"""The ``trainer`` group: which options of Lightning's Trainer work, which are refused and why."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from bevreshape.errors import InputError, suggest

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Those whose processes this program starts and whose checkpoints load anywhere."""

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
"""What measures a run, into files ``*-profile*`` of its folder."""

MONITORS = {"val/iou/mean": "max", "val/loss": "min"}
"""What early stopping can watch, and which way it improves."""


@dataclass(frozen=True)
class Works:
    """An option that does what it says.

    Attributes:
        values: which it takes, in words.
        takes: whether it takes a value.
    """

    values: str
    takes: Callable[[Any], bool]


@dataclass(frozen=True)
class Refused:
    """An option of Lightning's Trainer that cannot do here what it says.

    Attributes:
        reason: why, and what to set instead.
        idle: values that ask for nothing, as Lightning's own defaults, and are let pass.
    """

    reason: str
    idle: tuple[Any, ...] = (None,)


def _whole(least: int) -> Works:
    return Works(f"an integer ≥ {least}", lambda value: _is_integer(value) and value >= least)


def _one_of(*values: str | None) -> Works:
    return Works(" or ".join("null" if v is None else v for v in values), lambda value: value in values)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    share = isinstance(value, float) and 0 < value <= 1
    return value is None or share or (_is_integer(value) and value >= 1)


_SWITCH = Works("true or false", lambda value: isinstance(value, bool))
_OPEN_LENGTH = Works("an integer ≥ 1, or -1 to leave it open", lambda v: _is_integer(v) and (v >= 1 or v == -1))
_LIMIT = Works("a number of batches ≥ 1, a share of them such as 0.5, or null for all", _is_limit)
_CHECKED_WITH_THE_MACHINE = Works("", lambda value: True)
_ONE_LENGTH = "a run's length is max_steps or max_epochs, and its learning rate is scheduled over it"
_WHOLE_SPLIT = "an epoch is the whole training split; set max_steps for a shorter run, or give the data fewer samples"

OPTIONS: Mapping[str, Works | Refused] = {
    # where
    "accelerator": _CHECKED_WITH_THE_MACHINE,
    "devices": _CHECKED_WITH_THE_MACHINE,
    "num_nodes": _whole(1),
    "precision": _CHECKED_WITH_THE_MACHINE,
    "strategy": _one_of(*STRATEGIES),
    "sync_batchnorm": _SWITCH,
    # how long
    "max_steps": _OPEN_LENGTH,
    "max_epochs": _OPEN_LENGTH,
    "min_steps": Refused(f"{_ONE_LENGTH}; early_stopping.patience says how soon it may stop early"),
    "min_epochs": Refused(f"{_ONE_LENGTH}; early_stopping.patience says how soon it may stop early"),
    "max_time": Refused(f"{_ONE_LENGTH}; set max_steps, which gives the same run on any machine"),
    "accumulate_grad_batches": _whole(1),
    "limit_train_batches": Refused(_WHOLE_SPLIT, idle=(None, 1.0)),
    "overfit_batches": Refused(_WHOLE_SPLIT, idle=(None, 0, 0.0)),
    "fast_dev_run": Refused("it skips the checkpoints that are tested; set max_steps=1", idle=(None, False, 0)),
    # validation and test
    "val_check_interval": _whole(1),
    "check_val_every_n_epoch": Refused("validations are counted in optimizer steps; set val_check_interval"),
    "limit_val_batches": _LIMIT,
    "limit_test_batches": _LIMIT,
    "limit_predict_batches": Refused("nothing is predicted here; use bevreshape.predict", idle=(None, 1.0)),
    "num_sanity_val_steps": Refused(
        "everything is built and compared before the run begins, and step 0 is no validation", idle=(None, 0)
    ),
    "inference_mode": _SWITCH,
    # the step
    "gradient_clip_val": Works(
        "a number ≥ 0, or null for none",
        lambda v: v is None or (isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < float("inf")),
    ),
    "gradient_clip_algorithm": _one_of("norm", "value", None),
    "deterministic": Works("true, false or warn", lambda value: isinstance(value, bool) or value == "warn"),
    "benchmark": Works("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "detect_anomaly": _SWITCH,
    # what is shown and kept
    "log_every_n_steps": _whole(1),
    "enable_progress_bar": _SWITCH,
    "enable_model_summary": _SWITCH,
    "profiler": _one_of(*PROFILERS, None),
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
"""Every option of the signature of ``lightning.pytorch.Trainer``."""

OWN = ("compile", "early_stopping")
"""Options of the group that are not Lightning's."""


def check_options(group: Mapping[str, Any]) -> None:
    """Refuse what the ``trainer`` group asks for in vain, alone or by Lightning's environment variables.

    Raises:
        InputError: naming the option, its value and what to do instead.
    """
    for key, value in group.items():
        if key in OWN:
            continue
        if key not in OPTIONS:
            raise InputError(f"trainer.{key} is unknown; {suggest(key, (*OPTIONS, *OWN))}")
        option = OPTIONS[key]
        if isinstance(option, Refused):
            if not any(type(value) is type(idle) and value == idle for idle in option.idle):  # 1 is not 1.0 here
                raise InputError(f"trainer.{key}={value!r} is refused: {option.reason}")
        elif not option.takes(value):
            raise InputError(f"trainer.{key}={value!r} must be {option.values}")
    for key in OPTIONS:
        name = f"PL_TRAINER_{key.upper()}"
        if name in os.environ:
            raise InputError(f"{name}={os.environ[name]} is set in the environment; unset it, and set trainer.{key}")
    if group.get("max_steps", -1) < 0 and group.get("max_epochs", -1) < 0:
        raise InputError(
            "trainer.max_steps=-1 leaves the length of training open; set trainer.max_steps or trainer.max_epochs"
        )
    if group.get("deterministic") and group.get("benchmark"):
        raise InputError(
            f"trainer.deterministic={group['deterministic']} and trainer.benchmark=true contradict each other: the fastest kernel "
            "is another from time to time; set one of them to false"
        )
    compiled = group.get("compile", False)
    if not isinstance(compiled, bool):
        raise InputError(f"trainer.compile={compiled!r} must be true or false")
    check_early_stopping(group.get("early_stopping") or {})


def check_early_stopping(node: Any) -> None:
    """Refuse what early stopping cannot watch or count.

    Raises:
        InputError: naming the key and its value.
    """
    where = "trainer.early_stopping"
    known: dict[str, Works] = {
        "monitor": _one_of(*MONITORS),
        "patience": Works("an integer ≥ 1, or null for none", lambda v: v is None or (_is_integer(v) and v >= 1)),
        "min_delta": Works(
            "a number ≥ 0",
            lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < float("inf"),
        ),
    }
    if not isinstance(node, Mapping):
        raise InputError(f"{where}={node!r} must be its own keys; set {where}.patience")
    for key, value in node.items():
        if key not in known:
            raise InputError(f"{where}.{key} is unknown; {suggest(str(key), known)}")
        if not known[key].takes(value):
            raise InputError(f"{where}.{key}={value!r} must be {known[key].values}")


def lightning_options(group: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """What of a checked ``trainer`` group goes to Lightning's Trainer, with what the program always sets.

    Args:
        group: as :func:`check_options` lets it pass.
        folder: where a profiler writes.
    """
    options = {key: value for key, value in group.items() if isinstance(OPTIONS.get(key), Works)}
    if options.get("profiler"):
        options["profiler"] = PROFILERS[options["profiler"]](dirpath=folder, filename="profile")
    return {"enable_model_summary": False, **options, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
