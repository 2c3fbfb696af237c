"""Train the main job on the pretended device, and on the CPU: ``python cuda_training.py SHIM OUT.json``.

Lightning's own loop runs, so that its waits are found too.
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from commands import ROOT, TINY
from cuda_cases import compare, findings
from cuda_findings import FOUND, Finding, forget_waits
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import SingleDeviceStrategy
from pretended_cuda import move, pretend
from pretended_tensor import Machine
from torch import Tensor

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_data import build_data
from bevreshape.config.build_model import build_model
from bevreshape.config.build_task import build_task
from bevreshape.config.compose import plain_config
from bevreshape.training.rig_geometry import fix_rig
from bevreshape.training.trainer import make_trainer, silence_lightning

STEPS, WARM = 6, 3
"""Optimizer steps of a run, and those whose waits do not count."""

TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 0.1, "16-mixed": 0.03}
"""Largest relative difference of a loss from the CPU's in float32; steps amplify what a fused optimizer rounds."""

FIXED = ("trainer.static_rig=true", "augment=photometric")
CASES = {
    "mlp float32": ("reshaper=mlp", "trainer.precision=32-true"),
    "mlp bfloat16": ("reshaper=mlp", "trainer.precision=bf16-mixed"),
    "mlp float16": ("reshaper=mlp", "trainer.precision=16-mixed"),
    "lift_splat bfloat16": ("reshaper=lift_splat", "trainer.precision=bf16-mixed"),
    "column_mlp float32": ("reshaper=column_mlp", "trainer.precision=32-true"),
    **{
        f"{reshaper} fixed rig": (f"reshaper={reshaper}", "trainer.precision=32-true", *FIXED)
        for reshaper in ("ipm", "bilinear", "deformable_attention", "kernel_attention", "column_attention")
    },
}
"""Overrides by case. Those of a fixed rig are the reshapers that wait, or waited, with new cameras."""

COMMON = (
    "augment=full", "data.rig=surround", "data.root=worlds", "objective=bce_focal", "trainer.accelerator=auto",
    f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}", "name=x",
)  # fmt: skip


class Recorder(Callback):
    """Keep the losses, and the findings of all steps but those of :data:`WARM`, and of all validation batches."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.kept: list[Finding] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])
        if batch_idx < WARM:
            forget_waits()
        else:
            self.keep()

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        forget_waits()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.keep()

    def keep(self) -> None:
        """Keep the findings so far."""
        self.kept += FOUND
        FOUND.clear()


def composed(*overrides: str) -> dict[str, Any]:
    """Return the composed config of a tiny run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = plain_config(compose("train", [*TINY, *COMMON, *overrides]))
    return {key: value for key, value in cfg.items() if key != "hydra"}


def fit(*overrides: str) -> Recorder:
    """Train, and return what was recorded."""
    cfg = composed(*overrides)
    data = build_data(cfg)
    spec = BEVSpec.of(data.source)
    seed_everything(cfg["seed"], verbose=False)
    task = build_task(cfg, spec, build_model(cfg, spec))
    if cfg["trainer"]["static_rig"]:
        fix_rig(task, data)
    recorder = Recorder()
    trainer = make_trainer(
        cfg["trainer"], logger=False, callbacks=[recorder], enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, datamodule=data)
    return recorder


def model_to_device(strategy: SingleDeviceStrategy) -> None:
    """Move the task to the pretended device; ``Module.to`` would keep the parameters' type."""
    if strategy.root_device.type == "cuda":
        assert strategy.model is not None
        move(strategy.model)


def case(overrides: tuple[str, ...]) -> None:
    """Train on the CPU in float32, and on the pretended device."""
    expected = fit(*overrides, "trainer.accelerator=cpu", "trainer.precision=32-true")
    with Machine():
        recorder = fit(*overrides)
    forget_waits()  # of the end
    FOUND.extend(recorder.kept)
    precision = composed(*overrides)["trainer"]["precision"]
    for number, (own, loss) in enumerate(zip(recorder.losses, expected.losses, strict=True)):
        compare(f"loss of step {number}", own, loss.double(), TOLERANCE[precision])


def main(shim: str, out: str) -> None:
    """Run all cases and write their findings."""
    pretend(Path(shim))
    silence_lightning()
    SingleDeviceStrategy.model_to_device = model_to_device  # type: ignore[method-assign]
    SingleDeviceStrategy.teardown = lambda strategy: None  # type: ignore[method-assign]
    os.chdir(tempfile.mkdtemp())
    found = {name: findings(partial(case, overrides)) for name, overrides in CASES.items()}
    Path(out).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
