"""Optimizers and learning rate schedules."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, runtime_checkable

from annotated_types import Ge, Gt, Le
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from bevreshape.config.options import OpenShare, checked
from bevreshape.errors import InputError

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Options of torch's schedules that give their number of steps."""


@runtime_checkable
class OptimizerSchedule(Protocol):
    """Factory of an optimizer and its schedule."""

    def build(self, module: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """Build the optimizer of a module's trainable parameters, and its schedule, which steps once per step."""


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices and kernels with weight decay, all others without."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decayed if name.endswith("weight") and parameter.ndim > 1 else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def total_steps(trainer: Trainer) -> int:
    """Return the optimizer steps of a whole run."""
    return trainer.max_steps if trainer.max_steps > 0 else int(trainer.estimated_stepping_batches)


@dataclass(frozen=True)
class TorchOptimizer:
    """Build any optimizer of ``torch.optim`` with any of its schedules.

    Weight decay acts as in :class:`AdamWOneCycle`.

    Attributes:
        optimizer: maps parameter groups to an optimizer, such as ``partial(torch.optim.SGD, lr=0.1)``.
        scheduler: maps the optimizer to a schedule. A schedule whose number of steps is not set gets that of the run.
            ``None``: a constant rate.
    """

    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler] | None = None

    def build(self, module: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimizer of a module's trainable parameters, and its schedule over ``total_steps``."""
        options = inspect.signature(self.optimizer).parameters
        decay = options["weight_decay"].default if "weight_decay" in options else 0.0
        groups = parameter_groups(module, decay)
        if "weight_decay" not in options:
            groups = [{"params": group["params"]} for group in groups]
        optimizer = self.optimizer(groups)
        if self.scheduler is None:
            return optimizer, ConstantLR(optimizer, factor=1.0)
        set_ = getattr(self.scheduler, "keywords", {})
        free = [name for name in inspect.signature(self.scheduler).parameters if name in LENGTHS and name not in set_]
        return optimizer, self.scheduler(optimizer, **dict.fromkeys(free, total_steps))


@checked
@dataclass(frozen=True)
class AdamWOneCycle:
    """AdamW (Loshchilov and Hutter 2019) on a one-cycle schedule (Smith and Topin 2018).

    Weight decay acts on matrices and kernels only, not on biases, norms, learned queries and encodings.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled, per step and learning rate.
        pct_start: fraction of the steps in which the rate rises.
        div_factor: the first rate is ``lr / div_factor``.
        final_div_factor: the last rate is the first rate ``/ final_div_factor``.
        fused: update all parameters by one kernel. ``None``: on a GPU, unless gradients are clipped in mixed
            precision, which Lightning refuses for fused optimizers.
    """

    lr: Annotated[float, Gt(0), Le(10)] = 4e-3
    weight_decay: Annotated[float, Ge(0), Le(100)] = 0.01
    pct_start: OpenShare = 0.3
    div_factor: Annotated[float, Ge(1), Le(1e9)] = 10.0
    final_div_factor: Annotated[float, Ge(1), Le(1e9)] = 100.0
    fused: bool | None = None

    def build(self, module: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimizer of a module's trainable parameters, and its schedule over ``total_steps``."""
        groups = parameter_groups(module, self.weight_decay)
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        fused = (True if on_gpu else None) if self.fused is None else self.fused
        optimizer = AdamW(groups, lr=self.lr, fused=fused)
        schedule = OneCycleLR(
            optimizer,
            max_lr=self.lr,
            total_steps=total_steps,
            pct_start=self.pct_start,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
        )
        return optimizer, schedule

    def after(self, module: nn.Module, total_steps: int, steps: int) -> tuple[Optimizer, LRScheduler]:
        """Return optimizer and schedule as they are after ``steps`` steps, except the moments."""
        optimizer, schedule = self.build(module, total_steps)
        if steps > 0:
            schedule.load_state_dict(schedule.state_dict() | {"last_epoch": steps - 1, "_step_count": steps})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the optimizer has not stepped
                schedule.step()
        return optimizer, schedule


def without_fusion(optimizer: OptimizerSchedule) -> OptimizerSchedule:
    """Return an :class:`AdamWOneCycle` that is not fused by default; others as they are."""
    unset = isinstance(optimizer, AdamWOneCycle) and optimizer.fused is None
    return replace(optimizer, fused=False) if unset else optimizer  # type: ignore[type-var]


def clips_mixed(precision: Any, clip: float | int | None) -> bool:
    """Return whether gradients are clipped in mixed precision; then Lightning refuses a fused optimizer."""
    return str(precision).endswith("-mixed") and bool(clip)


def check_fused(optimizer: OptimizerSchedule, trainer: Mapping[str, Any]) -> None:
    """Refuse a fused optimizer where Lightning does.

    Raises:
        InputError: when gradients are clipped in mixed precision.
    """
    clip, precision = trainer.get("gradient_clip_val"), trainer.get("precision")
    key, fused = "optimizer.fused", getattr(optimizer, "fused", None)
    if isinstance(optimizer, TorchOptimizer):
        key, fused = "optimizer.optimizer.fused", getattr(optimizer.optimizer, "keywords", {}).get("fused")
    if fused and clips_mixed(precision, clip):
        raise InputError(
            f"{key}=true: with trainer.precision={precision} Lightning does not clip gradients of a fused "
            f"optimizer (trainer.gradient_clip_val={clip}); set {key}=null, trainer.precision=32-true or "
            "trainer.gradient_clip_val=null"
        )
