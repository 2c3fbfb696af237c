"""FSDP: where it is refused; and on CPUs, that two processes train as by DDP and write the same checkpoints."""

import math
import shutil
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import without
from slurm_cluster import history_of, metrics_of
from torch import nn

from bevreshape.config.build_data import build_data
from bevreshape.config.compose import compose_training
from bevreshape.errors import InputError
from bevreshape.storage.checkpoint import read_checkpoint
from bevreshape.training import sharding
from bevreshape.training.callbacks import LastCheckpoint
from bevreshape.training.fit import train
from bevreshape.training.launch import launch_distributed
from bevreshape.training.optimizer import AdamWOneCycle, TorchOptimizer
from bevreshape.training.sharding import check_evaluated_whole, check_shardable, check_sharding

CLIP = 0.01
SETTINGS = [
    *without("data.scenes", "loader.batch_size", "trainer.max_steps", "trainer.val", "checkpoint_every"),
    "data.scenes.train=8", "data.scenes.val=3", "data.scenes.test=3", "trainer.max_steps=4",
    "trainer.val_check_interval=3", "checkpoint_every_n_steps=2", "optimizer.weight_decay=1",
    f"trainer.gradient_clip_val={CLIP}", "+trainer.enable_progress_bar=false",
]  # fmt: skip
"""Four steps, with decay and clipping that matter."""


@pytest.mark.parametrize(
    ("group", "gpus", "words"),
    [
        ({"devices": 2, "accelerator": "cpu"}, 2, r"accelerator=cpu trains on a CPU here; set trainer\.strategy=ddp"),
        ({"devices": 2, "accelerator": "auto"}, 0, r"accelerator=auto trains on a CPU here"),
        ({"devices": 1}, 2, r"trainer\.devices=1 is one; set trainer\.devices=2 or more"),
        (
            {"devices": 2, "compile": True},
            2,
            r"^trainer\.compile=True: trainer\.strategy=fsdp .*set trainer\.compile=f",
        ),
        ({"devices": 2, "compile": "cuda_graphs"}, 2, r"^trainer\.compile=cuda_graphs: .*set trainer\.compile=false"),
        ({"devices": 2, "static_rig": True}, 2, r"^trainer\.static_rig=True: .*set trainer\.static_rig=false"),
        ({"devices": 2, "inference_mode": True}, 2, r"^trainer\.inference_mode=True: .*set trainer\.inference_mode=f"),
        ({"devices": 2, "precision": "16-mixed"}, 2, r"^trainer\.precision=16-mixed: .*set trainer\.precision=bf16-m"),
    ],
)
def test_refused_by_one_line(group: dict[str, Any], gpus: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(InputError, match=words):
        check_sharding({**group, "strategy": "fsdp"})
    check_sharding({**group, "strategy": "ddp"})


def test_accepted_on_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for precision in ("32-true", "bf16-mixed"):
        check_sharding({"devices": 2, "strategy": "fsdp", "compile": False, "precision": precision})
    check_sharding({"devices": 1, "num_nodes": 2, "strategy": "fsdp"})


def test_command_refuses_it_on_a_cpu_before_it_writes(command, worlds: Path, tmp_path: Path) -> None:
    arguments = [*SETTINGS, f"data.root={worlds}", "trainer.devices=2", "trainer.strategy=fsdp", "hydra.run.dir=run"]
    ended = command("train", *arguments)
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "trainer.accelerator=cpu trains on a CPU here; set trainer.strategy=ddp" in ended.err
    assert not (tmp_path / "run").exists()


def test_evaluation_is_not_sharded() -> None:
    check_evaluated_whole({"strategy": "ddp"})
    with pytest.raises(InputError, match=r"trainer\.strategy=fsdp is for training.*set trainer\.strategy=auto"):
        check_evaluated_whole({"strategy": "fsdp"})


def test_models_and_optimizers_without_rows_to_share_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for optimizer in (AdamWOneCycle(), TorchOptimizer(torch.optim.SGD), TorchOptimizer(partial(torch.optim.Adam))):
        check_shardable(model, optimizer)
    with pytest.raises(InputError, match=r"^optimizer\.optimizer=Adafactor: .*such as AdamW"):
        check_shardable(model, TorchOptimizer(partial(torch.optim.Adafactor, lr=0.1)))
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(InputError, match=r"the parameter scale has the shape \(\), .*the shape \(1,\)"):
        check_shardable(model, AdamWOneCycle())


def train_in_turn(folder: Path, configs: Mapping[str, dict[str, Any]]) -> None:
    """Train by DDP, by FSDP, and by FSDP from the checkpoint that DDP wrote in its second step; in each process.

    The blocks of this network are small, and gathered one at a time nevertheless.
    """
    sharding.BLOCK_PARAMETERS = 5000
    save = LastCheckpoint.save

    def keep(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == 2 and trainer.is_global_zero:
            shutil.copy(self.path, self.path.with_name("second.ckpt"))

    LastCheckpoint.save = keep  # type: ignore[method-assign]  # this process ends with its runs
    for name in ("ddp", "fsdp"):
        train(configs[name], folder / name)
    train(configs["fsdp"], folder / "resumed", resumed=True)


@pytest.fixture(scope="module")
def runs(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of three runs ``ddp``, ``fsdp`` and ``resumed``, each of the same two processes."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip(f"gloo of torch {torch.__version__} does not scatter sums, which FSDP needs; use 2.8 or later")
    folder = tmp_path_factory.mktemp("sharded")
    arguments = [*SETTINGS, f"data.root={worlds}", "loader.batch_size=2", "trainer.devices=2"]
    configs = {name: compose_training([*arguments, f"trainer.strategy={name}"]) for name in ("ddp", "fsdp")}
    build_data(configs["ddp"]).prepare_data()
    begun = folder / "resumed" / "checkpoints"
    begun.mkdir(parents=True)
    (begun / "last.ckpt").symlink_to(folder / "ddp" / "checkpoints" / "second.ckpt")
    launch_distributed(2, train_in_turn, folder, configs)
    return folder


def values_of(checkpoint: Any, prefix: str = "") -> dict[str, Any]:
    """Return ``{"a.0": value}`` for ``{"a": [value]}``."""
    inner = checkpoint if isinstance(checkpoint, dict) else dict(enumerate(checkpoint))
    flat: dict[str, Any] = {}
    for key, value in inner.items():
        nested = isinstance(value, dict | list | tuple)
        flat |= values_of(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"), [("fsdp", "second"), ("fsdp", "last"), ("fsdp", "best"), ("resumed", "last")]
)
def test_checkpoints_are_those_of_ddp(runs: Path, name: str, file: str) -> None:
    """In keys, shapes, weights, running statistics, moments and rates, also after the resume of a checkpoint of DDP."""
    found, expected = (
        torch.load(runs / own / "checkpoints" / f"{file}.ckpt", weights_only=True) for own in (name, "ddp")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        ours, theirs = values_of(found[part]), values_of(expected[part])
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert type(ours[key]) is torch.Tensor
                torch.testing.assert_close(ours[key], value, msg=lambda text, key=key: f"{key}: {text}")
            else:
                assert ours[key] == value, key


@pytest.mark.slow
def test_gradients_were_clipped_by_their_norm(runs: Path) -> None:
    """A first moment is a mean of clipped gradients."""
    saved = read_checkpoint(runs / "fsdp" / "checkpoints" / "second.ckpt")["optimizer_states"][0]["state"].values()
    norm = math.sqrt(sum(own["exp_avg"].double().square().sum().item() for own in saved))
    assert 0.1 * CLIP < norm / (1 - 0.9**2) <= CLIP * 1.001


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "resumed"])
def test_metrics_are_those_of_ddp(runs: Path, name: str) -> None:
    close = partial(pytest.approx, rel=1e-4, abs=1e-5, nan_ok=True)
    assert metrics_of(runs / name) == close(metrics_of(runs / "ddp"))
    ours, theirs = history_of(runs / name), history_of(runs / "ddp")
    assert [close(row) for row in theirs[-len(ours) :]] == ours
    assert sorted(path.name for path in (runs / name / "images").iterdir())[0] == "test_0.png"


@pytest.mark.slow
def test_one_process_evaluates_it(command, runs: Path, tmp_path: Path) -> None:
    best = runs / "fsdp" / "checkpoints" / "best.ckpt"
    arguments = ("trainer.accelerator=cpu", "loader.num_workers=0", "hydra.run.dir=one")
    ended = command("evaluate", f"checkpoint={best}", *arguments)
    assert ended.code == 0, ended.err
    found = metrics_of(tmp_path / "one")
    trained = {key: value for key, value in metrics_of(runs / "fsdp").items() if key.startswith("test/iou/")}
    assert trained
    assert {key: found[key] for key in trained} == pytest.approx(trained, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_one_process_resumes_it(runs: Path, tmp_path: Path) -> None:
    """A checkpoint of another number of processes is refused elsewhere; so its config is edited."""
    checkpoint = torch.load(runs / "fsdp" / "checkpoints" / "second.ckpt", weights_only=True)
    config = deepcopy(checkpoint["bevreshape"]["config"])
    config["trainer"] |= {"devices": 1, "strategy": "auto"}
    config["loader"]["batch_size"] = 4
    checkpoint["bevreshape"]["config"] = config
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    train(config, tmp_path, resumed=True, tested=False)
    ended = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert ended["global_step"] == 4
    assert {own["step"].item() for own in ended["optimizer_states"][0]["state"].values()} == {4}
