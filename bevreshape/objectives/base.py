"""Define objectives and their inputs: the outputs of a head, and the target of the same task."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from bevreshape.data.batch import BEVBatch
from bevreshape.data.targets import Target
from bevreshape.errors import InputError, suggest
from bevreshape.model import Outputs


@runtime_checkable
class Objective(Protocol):
    """Return a term of the loss, which is the sum of all objectives."""

    def __call__(self, outputs: Outputs, batch: BEVBatch) -> Tensor:
        """A scalar."""


def compared(outputs: Outputs, batch: BEVBatch, task: str) -> tuple[Tensor, Target]:
    """Return the output of the head ``task`` and the target of that name.

    Raises:
        InputError: when there is no such head or target.
    """
    if task not in outputs.heads:
        raise InputError(
            f"there is no head {task!r}; {suggest(task, outputs.heads)}; add one by head=[…,NAME], or leave out what "
            "reads it"
        )
    if task not in batch.targets:
        raise InputError(
            f"batches have no target {task!r}; {suggest(task, batch.targets)}; choose data that makes it, or leave out "
            "the objective that reads it"
        )
    return outputs.heads[task], batch.targets[task]


def scalar(name: str, objective: object, loss: Any) -> Tensor:
    """Return what an objective has returned.

    Raises:
        InputError: when it is no scalar tensor; names the objective.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.80}"
        raise InputError(
            f"objective.{name}: {type(objective).__name__} returns {found}; return a scalar tensor, such as the mean "
            "over valid cells"
        )
    return loss
