"""A value of a device is read on the host, without a GPU by stand-ins for its events."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bevreshape.ops.readback import Readback


@pytest.mark.usefixtures("no_shape_checks")  # the value is a stand-in
def test_the_event_is_of_the_values_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device may be another one."""
    recorded = []
    monkeypatch.setattr("torch.cuda.current_stream", lambda device=None: f"stream of {device}")
    monkeypatch.setattr("torch.cuda.Event", lambda: SimpleNamespace(record=lambda *stream: recorded.append(*stream)))
    value: Any = SimpleNamespace(device=torch.device("cuda:1"), detach=lambda: torch.ones(1))
    Readback(value)
    assert recorded == ["stream of cuda:1"]


def test_a_value_of_the_processor_is_ready() -> None:
    found = Readback(torch.tensor(3.0, requires_grad=True))
    assert found.ready
    assert found.read().item() == 3.0
