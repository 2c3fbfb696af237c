"""What a real CUDA device must show: ``make test-gpu``. No test of this file has run yet, for want of a GPU."""

import copy
import json
from pathlib import Path

import pytest
import torch
from commands import TINY, finish, start, without
from cuda_reshapers import GRID, RESHAPERS, SOURCE, features, rig

from bevreshape.reshapers import FixedRig, Reshaper

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

every_reshaper = pytest.mark.parametrize("cls", RESHAPERS, ids=lambda cls: cls.__name__)


def built(cls: type[Reshaper]) -> Reshaper:
    torch.manual_seed(0)
    return cls(SOURCE, GRID).eval()


@every_reshaper
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_fixed_rig_does_not_wait(cls: type[Reshaper], dtype: torch.dtype | None) -> None:
    expected = FixedRig(built(cls), rig(1))(features(2))
    fixed, x = FixedRig(built(cls), rig(1)).cuda(), features(2).cuda()
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        fixed(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = fixed(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    tolerance = 1e-3 if dtype is None else 0.1
    assert (found.cpu().float() - expected).abs().max() <= tolerance * expected.abs().max()


@every_reshaper
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_fixed_rig_compiles(cls: type[Reshaper], mode: str) -> None:
    fixed, x = FixedRig(built(cls), rig(1)).cuda(), features(2).cuda()
    compiled = torch.compile(copy.copy(fixed), mode=mode)
    with torch.no_grad():
        expected = fixed(x)
        for _ in range(3):  # graphs are recorded at the second call
            torch.compiler.cudagraph_mark_step_begin()
            found = compiled(x).clone()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        ("trainer.precision=32-true",),
        ("trainer.precision=bf16-mixed", "trainer.compile=true"),
        ("trainer.precision=bf16-mixed", "trainer.compile=cuda_graphs"),
        ("trainer.precision=16-mixed",),
        ("trainer.matmul_precision=high", "augment=full", "data.rig=surround", "reshaper=kernel_attention"),
    ],
    ids=" ".join,
)
def test_training(options: tuple[str, ...], worlds: Path, tmp_path: Path) -> None:
    arguments = (*without("trainer.accelerator"), f"data.root={worlds}", "trainer.accelerator=gpu", *options)
    ended = finish(start("train", *arguments, "hydra.run.dir=run", cwd=tmp_path))
    assert ended.code == 0, ended.err
    assert 0 <= json.loads((tmp_path / "run" / "metrics.json").read_text())["test/iou/mean"] <= 1


def test_training_is_resumed_on_a_cpu(worlds: Path, tmp_path: Path) -> None:
    arguments = (*TINY, f"data.root={worlds}", "hydra.run.dir=run")
    gpu = ("trainer.accelerator=auto", "trainer.max_steps=8")
    assert finish(start("train", *arguments, *gpu, cwd=tmp_path)).code == 0
    ended = finish(start("evaluate", "checkpoint=run/checkpoints/best.ckpt", "device=cpu", cwd=tmp_path))
    assert ended.code == 0, ended.err


def test_benchmark_prints_one_page(tmp_path: Path) -> None:
    small = ("features=[4,6]", "cells=[8,8]", "channels=8", "repeats=1", "hydra.run.dir=out")
    ended = finish(start("benchmark", "reshaper=mlp,ipm", "device=cuda", *small, cwd=tmp_path))
    assert ended.code == 0, ended.err
    assert "of the floor" in ended.out
