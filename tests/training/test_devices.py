"""The number of devices that ``trainer.devices`` means on a machine."""

import pytest
import torch

from bevreshape.training.hardware import with_counted_devices


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [
        ("auto", "auto", 4), (-1, "gpu", 4), ("-1", "cuda", 4), ("auto", "cpu", 1), (2, "auto", 2), ("2", "gpu", "2"),
        ([1, 3], "gpu", [1, 3]),
    ],
)  # fmt: skip
def test_all_devices_are_counted(
    devices: object, accelerator: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    given = {"devices": devices, "accelerator": accelerator, "max_steps": 8}
    assert with_counted_devices(given) == {**given, "devices": expected}
    assert with_counted_devices({"max_steps": 8}) == {"max_steps": 8}
