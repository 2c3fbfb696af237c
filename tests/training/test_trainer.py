"""Every option of Lightning's Trainer takes effect, or is refused before anything runs."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from commands import TINY, without
from lightning.pytorch import Trainer
from test_schedule import Case, Dots

from bevreshape.data.datamodule import BEVDataModule
from bevreshape.errors import InputError
from bevreshape.training.schedule import resolve_schedule
from bevreshape.training.task import BEVTask
from bevreshape.training.trainer import make_trainer
from bevreshape.training.trainer_options import OPTIONS, Refused, Strategy, check_options

REFUSED: dict[str, Any] = {
    "min_steps": 2,
    "min_epochs": 2,
    "max_time": "00:00:01:00",
    "limit_train_batches": 1,
    "overfit_batches": 1,
    "fast_dev_run": True,
    "check_val_every_n_epoch": 1,
    "limit_predict_batches": 1,
    "num_sanity_val_steps": 2,
    "logger": True,
    "callbacks": [],
    "plugins": [],
    "enable_checkpointing": False,
    "barebones": True,
    "default_root_dir": "elsewhere",
    "enable_autolog_hparams": False,
    "model_registry": "mine",
    "use_distributed_sampler": True,
    "reload_dataloaders_every_n_epochs": 1,
}


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """The Trainer sets switches of the process."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_the_table_is_the_signature_of_the_installed_trainer() -> None:
    """A new version's new option must be tried, and entered with what was found."""
    assert set(inspect.signature(Trainer).parameters) == set(OPTIONS)


def test_every_refused_option_is_tested() -> None:
    assert {key for key, option in OPTIONS.items() if isinstance(option, Refused)} == set(REFUSED)


@pytest.mark.parametrize("key", REFUSED)
def test_refused_with_the_reason_unless_idle(key: str) -> None:
    option = OPTIONS[key]
    assert isinstance(option, Refused)
    group = {"accelerator": "cpu", "max_steps": 1, "val_check_interval": 1}
    with pytest.raises(InputError, match=rf"trainer\.{key}=.* is refused: "):
        check_options(group | {key: REFUSED[key]})
    for idle in option.idle:
        make_trainer(group | {key: idle}, logger=False)


@pytest.mark.parametrize(
    "argument", ["+trainer.fast_dev_run=true", "+trainer.limit_test_batches=0", "+trainer.plugins=[a]"]
)
def test_command_refuses_before_it_writes(command, worlds: Path, tmp_path: Path, argument: str) -> None:
    ended = command("train", *TINY, f"data.root={worlds}", argument, "hydra.run.dir=run")
    assert ended.code == 1
    assert f"error: {argument.lstrip('+').partition('=')[0]}=" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_steps", 0), ("max_steps", "many"), ("max_epochs", -2), ("accumulate_grad_batches", 0),
        ("accumulate_grad_batches", True),
        ("val_check_interval", 0.5), ("val_check_interval", "00:00:01:00"), ("strategy", "fsdp_cpu_offload"),
        ("strategy", "ddp_spawn"),
        ("limit_val_batches", 0), ("limit_val_batches", 0.0), ("limit_val_batches", 1.5), ("limit_test_batches", -1),
        ("limit_test_batches", True), ("gradient_clip_val", -1.0), ("gradient_clip_val", "none"),
        ("gradient_clip_algorithm", "max"),
        ("deterministic", "yes"), ("benchmark", 1), ("detect_anomaly", "no"), ("profiler", "fast"),
        ("log_every_n_steps", 0),
        ("enable_progress_bar", None), ("num_nodes", 0), ("sync_batchnorm", 1), ("inference_mode", 0),
        ("enable_model_summary", 2),
        ("compile", "yes"), ("matmul_precision", "low"), ("early_stopping", 3), ("early_stopping", {"patience": 0}),
        ("early_stopping", {"patience": 1.5}),
        ("early_stopping", {"monitor": 3}), ("early_stopping", {"min_delta": -1}),
        ("early_stopping", {"patienc": 1}),
        ("max_step", 3),
    ],
)  # fmt: skip
def test_wrong_values_are_a_one_line_error(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^trainer\.{key}"):
        check_options({"max_steps": 1, "val_check_interval": 1} | {key: value})


def test_determinism_and_the_fastest_kernel_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"trainer\.deterministic=warn and trainer\.benchmark=true contradict"):
        check_options({"max_steps": 1, "deterministic": "warn", "benchmark": True})


@pytest.mark.usefixtures("torch_as_before")
def test_deterministic_may_warn_alone() -> None:
    make_trainer({"accelerator": "cpu", "max_steps": 1, "deterministic": "warn"}, logger=False)
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_environment_variables_of_lightning_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
    with pytest.raises(InputError, match=r"PL_TRAINER_LIMIT_TRAIN_BATCHES=0\.5 is set in the environment; unset it"):
        check_options({"max_steps": 1})


SEEN: dict[str, Any] = {}
"""Switches recorded in the steps of a run."""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Record the switches and the number of batches of training and validation."""
    SEEN.clear()
    step = BEVTask.step

    def watching(task: BEVTask, batch: Any, stage: str) -> Any:
        stage = stage if task.trainer.state.fn == "fit" or stage != "val" else "validate"
        SEEN[f"{stage} batches"] = SEEN.get(f"{stage} batches", 0) + 1
        SEEN[f"{stage} anomaly"] = torch.is_anomaly_enabled()
        SEEN[f"{stage} inference"] = torch.is_inference_mode_enabled()
        SEEN["deterministic"] = torch.are_deterministic_algorithms_enabled()
        SEEN["benchmark"] = torch.backends.cudnn.benchmark
        return step(task, batch, stage.replace("validate", "val"))

    monkeypatch.setattr(BEVTask, "step", watching)
    return SEEN


@pytest.mark.usefixtures("torch_as_before")
def test_options_take_effect(command, worlds: Path, tmp_path: Path, watched: dict[str, Any]) -> None:
    arguments = [*without("trainer.max_steps", "trainer.val_check"), f"data.root={worlds}"]
    arguments += ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.scenes.val=20", "data.scenes.test=20"]
    ended = command(
        "train", *arguments, "hydra.run.dir=one", "+trainer.limit_val_batches=2", "+trainer.limit_test_batches=0.7",
        "+trainer.detect_anomaly=true", "+trainer.inference_mode=false", "+trainer.benchmark=false",
        "trainer.deterministic=true",
        "+trainer.enable_progress_bar=false", "+trainer.enable_model_summary=true", "+trainer.profiler=simple",
        "+trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.001", "trainer.log_every_n_steps=1",
        "+trainer.num_nodes=1", "+trainer.sync_batchnorm=true",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert watched == {  # anomalies are Lightning's to detect in a fit
        "train batches": 2, "train anomaly": True, "train inference": False,
        "val batches": 2, "val anomaly": True, "val inference": False,
        "validate batches": 2, "validate anomaly": False, "validate inference": False,
        "test batches": 3, "test anomaly": False, "test inference": False,
        "deterministic": True, "benchmark": False,
    }  # fmt: skip
    assert "step      2: val IoU" not in ended.err, "the progress line was not wanted"
    assert "Total params" in ended.out, "the summary was wanted"
    assert list((tmp_path / "one").glob("*profile*.txt"))
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["fit/steps"] == 2


@pytest.mark.usefixtures("torch_as_before")
def test_defaults_and_opposite_values(command, worlds: Path, watched: dict[str, Any]) -> None:
    arguments = [*without("trainer.max_steps", "trainer.val_check"), f"data.root={worlds}", "trainer.max_steps=1"]
    ended = command(
        "train", *arguments, "trainer.val_check_interval=2", "hydra.run.dir=two", "+trainer.limit_val_batches=null",
        "+trainer.limit_test_batches=1.0", "+trainer.detect_anomaly=false", "+trainer.benchmark=true",
        "trainer.deterministic=false",
        "+trainer.enable_progress_bar=true", "+trainer.profiler=advanced", "+trainer.gradient_clip_algorithm=norm",
        "trainer.gradient_clip_val=null", "trainer.precision=bf16-mixed", "trainer.devices=auto",
        "trainer.strategy=auto",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert watched["train batches"] == 1
    assert watched["val batches"] == watched["test batches"] == 2
    assert not watched["train anomaly"]
    assert watched["test inference"]
    assert (watched["deterministic"], watched["benchmark"]) == (False, True)
    assert "step      1: val IoU" in ended.err


@pytest.mark.parametrize("strategy", sorted({*get_args(Strategy)} - {"fsdp"}))  # it has a class of its own
def test_strategies_are_lightning_s(strategy: str) -> None:
    group = {"accelerator": "cpu", "devices": 2, "max_steps": 1, "strategy": strategy}
    assert type(make_trainer(group, logger=False).strategy).__name__ == "DDPStrategy"


def test_every_working_option_is_tried() -> None:
    """By one of the tests above or of ``test_schedule``, found by the text."""
    text = Path(__file__).read_text(encoding="utf-8") + Path(inspect.getfile(Case)).read_text(encoding="utf-8")
    working = [key for key, option in OPTIONS.items() if not isinstance(option, Refused)]
    assert [key for key in working if f"trainer.{key}=" not in text and f'"{key}": self' not in text] == ["accelerator"]


@pytest.mark.parametrize("limit", [None, 1, 7, 0.5, 1.0])
def test_limits_with_a_batch_are_accepted(limit: float | None) -> None:
    group = Case(4, steps=1).group | {"limit_val_batches": limit, "limit_test_batches": limit}
    assert resolve_schedule(group, BEVDataModule(Dots(4, val=4), batch_size=2))["limit_val_batches"] == limit


def test_limits_without_a_batch_are_refused() -> None:
    group = Case(4, steps=1).group | {"limit_test_batches": 0.4}
    with pytest.raises(InputError, match=r"trainer\.limit_test_batches=0\.4 of 2 batches is none"):
        resolve_schedule(group, BEVDataModule(Dots(4, val=4), batch_size=2))
