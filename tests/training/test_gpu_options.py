"""Options for a GPU: their checks, and that nothing changes on a CPU."""

from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bevreshape.errors import InputError
from bevreshape.training.hardware import check_hardware, matmul_precision
from bevreshape.training.optimizer import AdamWOneCycle, TorchOptimizer, check_fused, without_fusion


@pytest.mark.parametrize(
    ("gpus", "accelerator", "expected"), [(0, "auto", "highest"), (1, "cpu", "highest"), (1, "auto", "high")]
)
def test_matmul_precision_is_that_of_a_gpu_alone(monkeypatch, gpus: int, accelerator: str, expected: str) -> None:
    """Also after an error it is as before."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with suppress(KeyError), matmul_precision({"accelerator": accelerator, "matmul_precision": "high"}):
        assert torch.get_float32_matmul_precision() == expected
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_cuda_graphs_need_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(
        InputError, match=r"trainer\.compile=cuda_graphs needs a GPU; set trainer\.compile=true or false"
    ):
        check_hardware({"compile": "cuda_graphs"})


def test_adamw_is_not_fused_on_a_cpu_unless_wished() -> None:
    for wished, expected in ((None, None), (True, True), (False, False)):
        optimizer, _ = AdamWOneCycle(fused=wished).build(nn.Linear(2, 2), 10)
        assert {group["fused"] for group in optimizer.param_groups} == {expected}


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_clipped_mixed_precision_does_without_fusion(precision: str) -> None:
    clipped: dict[str, Any] = {"precision": precision, "gradient_clip_val": 5.0}
    assert without_fusion(AdamWOneCycle()) == AdamWOneCycle(fused=False)
    other = TorchOptimizer(torch.optim.SGD)
    assert without_fusion(other) is other
    check_fused(AdamWOneCycle(), clipped)
    check_fused(AdamWOneCycle(fused=True), clipped | {"gradient_clip_val": None})
    check_fused(AdamWOneCycle(fused=True), clipped | {"precision": "32-true"})
    with pytest.raises(InputError, match=r"optimizer\.fused=true.*gradient_clip_val=5\.0.*set optimizer\.fused=null"):
        check_fused(AdamWOneCycle(fused=True), clipped)
    check_fused(TorchOptimizer(partial(torch.optim.Adam, fused=False)), clipped)
    with pytest.raises(InputError, match=r"optimizer\.optimizer\.fused=true.*set optimizer\.optimizer\.fused=null"):
        check_fused(TorchOptimizer(partial(torch.optim.Adam, fused=True)), clipped)
