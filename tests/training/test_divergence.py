"""A loss that is not finite ends training, with its own step and samples, also when it is looked at later."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bevreshape.errors import Divergence
from bevreshape.training import divergence
from bevreshape.training.divergence import StopOnDivergence

pytestmark = pytest.mark.usefixtures("no_shape_checks")  # trainers and batches are stand-ins


class Slow:
    """A copy that is complete only when it is waited for."""

    ready = False
    waited: ClassVar[list[float]] = []

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def read(self) -> Tensor:
        Slow.waited.append(self.value.item())
        return self.value


def run(callback: StopOnDivergence, losses: list[float]) -> None:
    """Take one step for every loss, as Lightning does."""
    for step, loss in enumerate(losses):
        trainer: Any = SimpleNamespace(global_step=step)
        batch: Any = SimpleNamespace(names=[f"sample {step}"])
        callback.on_train_batch_start(trainer, None, batch, step)  # type: ignore[arg-type]
        callback.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, batch, step)  # type: ignore[arg-type]


def test_on_a_cpu_the_next_step_is_not_begun() -> None:
    with pytest.raises(Divergence, match=r"the loss is nan at step 2, on the batch sample 2;"):
        run(StopOnDivergence(), [0.5, 0.4, torch.nan, 0.3])


def test_a_slow_copy_is_waited_for_behind_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "Readback", Slow)
    monkeypatch.setattr(Slow, "waited", [])
    callback = StopOnDivergence()
    run(callback, [4.0, 3.0, 2.0, 1.0])
    assert Slow.waited == [4.0, 3.0]  # step 2 began when step 1 was queued, and step 3 when step 2 was
    with pytest.raises(Divergence, match=r"the loss is inf at step 1, on the batch sample 1;"):
        run(StopOnDivergence(), [0.5, torch.inf, 0.4, 0.3])


def test_a_checkpoint_waits_for_all_losses_and_is_refused_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "Readback", Slow)
    callback = StopOnDivergence()
    run(callback, [0.5, torch.nan])
    for _ in range(2):
        with pytest.raises(Divergence, match="at step 1"):
            callback.on_save_checkpoint(None, None, {})  # type: ignore[arg-type]


def test_the_last_loss_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "Readback", Slow)
    callback = StopOnDivergence()
    run(callback, [0.5, torch.nan])
    with pytest.raises(Divergence, match="at step 1"):
        callback.on_train_end(None, None)  # type: ignore[arg-type]
