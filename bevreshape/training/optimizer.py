"""How weights are updated."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from bevreshape.config.options import OpenShare, checked


@checked
@dataclass(frozen=True)
class AdamWOneCycle:
    """AdamW (Loshchilov and Hutter 2019) on a one-cycle schedule (Smith and Topin 2018).

    Weight decay acts on matrices and kernels only, not on biases, norms, learned queries and encodings.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled, per step and learning rate.
        warmup: share of the steps in which the rate rises.
        div_factor: the first rate is ``lr / div_factor``.
        final_div_factor: the last rate is the first rate ``/ final_div_factor``.
    """

    lr: Annotated[float, Gt(0), Le(10)] = 4e-3
    weight_decay: Annotated[float, Ge(0), Le(100)] = 0.01
    warmup: OpenShare = 0.3
    div_factor: Annotated[float, Ge(1), Le(1e9)] = 10.0
    final_div_factor: Annotated[float, Ge(1), Le(1e9)] = 100.0

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
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
        )
        return optimizer, schedule

    def after(self, module: nn.Module, total_steps: int, steps: int) -> tuple[Optimizer, LRScheduler]:
        """The same after so many steps, but for the moments: all else follows from the options."""
        optimizer, schedule = self.build(module, total_steps)
        if steps > 0:
            schedule.load_state_dict(schedule.state_dict() | {"last_epoch": steps - 1, "_step_count": steps})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the optimizer has not stepped
                schedule.step()
        return optimizer, schedule
