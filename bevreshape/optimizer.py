"""How weights are updated."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from bevreshape.errors import InputError


@dataclass(frozen=True)
class AdamWOneCycle:
    """AdamW (Loshchilov and Hutter 2019) on a one-cycle schedule (Smith and Topin 2018).

    Weight decay acts on matrices and kernels only, not on biases, norms, learned queries and encodings.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled, per step and learning rate.
        warmup: share of the steps in which the rate rises.
        div_start: the first rate is ``lr / div_start``.
        div_final: the last rate is the first rate ``/ div_final``.
    """

    lr: float | int = 4e-3
    weight_decay: float | int = 0.01
    warmup: float | int = 0.3
    div_start: float | int = 10.0
    div_final: float | int = 100.0

    def __post_init__(self) -> None:
        for key in ("lr", "div_start", "div_final"):
            value = getattr(self, key)
            if not isinstance(value, float | int) or not value > 0:
                raise InputError(f"optimizer.{key}={value!r} must be a positive number")
        if not isinstance(self.weight_decay, float | int) or self.weight_decay < 0:
            raise InputError(f"optimizer.weight_decay={self.weight_decay!r} must be a number, 0 or more")
        if not isinstance(self.warmup, float | int) or not 0 < self.warmup < 1:
            raise InputError(f"optimizer.warmup={self.warmup!r} must lie between 0 and 1, a share of the steps")

    def build(self, module: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimizer of a module's trainable parameters, and its schedule over ``total_steps``."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (decayed if name.endswith("weight") and parameter.ndim > 1 else others).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.lr)
        schedule = OneCycleLR(
            optimizer,
            max_lr=self.lr,
            total_steps=total_steps,
            pct_start=self.warmup,
            div_factor=self.div_start,
            final_div_factor=self.div_final,
        )
        return optimizer, schedule
