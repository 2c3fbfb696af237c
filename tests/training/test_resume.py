"""The training state of a checkpoint must match the run's config and number of steps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from bevreshape.config.resume import resume_arguments
from bevreshape.errors import InputError
from bevreshape.storage.run_folder import difference
from bevreshape.training.callbacks import BestCheckpoint
from bevreshape.training.optimizer import AdamWOneCycle


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 19, 20])
def test_state_after_steps_is_that_of_stepping(steps: int) -> None:
    net, options = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), AdamWOneCycle(lr=0.1, pct_start=0.4, div_factor=3)
    optimizer, schedule = options.build(net, 20)
    for _ in range(steps):
        net(torch.rand(4, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    own, own_schedule = options.after(net, 20, steps)
    assert own_schedule.state_dict() == schedule.state_dict()
    assert own.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def setting(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value at a path of a checkpoint."""

    def do(checkpoint: dict[str, Any]) -> None:
        node = checkpoint
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return do


def of_callback(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value into what a callback saved."""

    def do(checkpoint: dict[str, Any]) -> None:
        next(state for of, state in checkpoint["callbacks"].items() if of.startswith(name))[key] = value

    return do


SCHEDULE, GROUP, STATE = (
    ("lr_schedulers", 0),
    ("optimizer_states", 0, "param_groups", 0),
    ("optimizer_states", 0, "state"),
)

WRONG = {
    "method of the schedule": (
        setting(*SCHEDULE, "step", value="x"),
        "lr_schedulers.step is 'x' but must be 'absent'",
    ),
    "another length": (setting(*SCHEDULE, "total_steps", value=10**9), "lr_schedulers.total_steps is 1000000000"),
    "schedule of nothing": (setting(*SCHEDULE, value={}), "lr_schedulers.total_steps is 'absent' but must be 8"),
    "schedule at another step": (setting(*SCHEDULE, "last_epoch", value=1), "lr_schedulers.last_epoch is 1"),
    "rate that is no number": (setting(*GROUP, "lr", value=float("nan")), "param_groups[0].lr is nan"),
    "rate that is a text": (setting(*GROUP, "lr", value="x"), "param_groups[0].lr is 'x'"),
    "peak of the rate": (setting(*GROUP, "max_lr", value=1e3), "max_lr is 1000.0 but must be 0.004"),
    "growth instead of decay": (setting(*GROUP, "weight_decay", value=-1.0), "weight_decay is -1.0"),
    "betas that are a text": (setting(*GROUP, "betas", value="x"), "betas is 'x'"),
    "up instead of down": (setting(*GROUP, "maximize", value=True), "maximize is True but must be False"),
    "no moments": (setting(*STATE, value={}), "state is empty after 8 steps"),
    "moments of no parameter": (setting(*STATE, 10**6, value={}), "not moments by the indices of"),
    "moment of another shape": (setting(*STATE, 0, "exp_avg", value=torch.zeros(3)), "exp_avg is (3,), where"),
    "moment that is a text": (setting(*STATE, 0, "exp_avg", value="x"), "exp_avg is 'x', where"),
    "step before the first": (setting(*STATE, 0, "step", value=torch.tensor(-1.0)), "step is -1 after 8 steps"),
    "callbacks of nothing": (setting("callbacks", value={}), "callbacks: seconds of History is missing"),
    "seconds that are a text": (of_callback("History", "seconds", "x"), "callbacks: seconds of History is 'x'"),
    "count that is none": (of_callback("ImageLogger", "validations", None), "validations of ImageLogger is None"),
    "best that is no score": (
        of_callback("BestCheckpoint", "best_k_models", {"a": "x"}),
        "best_k_models of BestCheckpoint",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_state_is_not_resumed(command, trained: Path, tmp_path: Path, case: str) -> None:
    change, words = WRONG[case]
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    given = path.read_bytes()
    ended = command("train", f"resume={run}")
    assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
    assert words in ended.err
    assert "so start a new run" in ended.err
    assert path.read_bytes() == given


@pytest.mark.parametrize("name", ["..", "beside.ckpt", "/elsewhere/beside.ckpt", "best-v1.ckpt"])
def test_only_best_ckpt_is_replaced_by_a_better_one(trained: Path, tmp_path: Path, name: str) -> None:
    callbacks = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    state = next(state for of, state in callbacks.items() if of.startswith("BestCheckpoint"))
    best = BestCheckpoint(tmp_path)
    best.load_state_dict({**state, "best_model_path": name, "kth_best_model_path": name, "best_k_models": {name: 0.5}})
    assert {*best.best_k_models, best.best_model_path, best.kth_best_model_path} == {str(tmp_path / "best.ckpt")}


@pytest.mark.parametrize("name", ["back\\slash", 'a "b" = c'])
def test_run_resumes_in_its_own_folder_whatever_its_name(command, trained: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / name))
    (run / "metrics.json").unlink()
    quote = "'" if '"' in name else '"'
    ended = command("train", f"resume={quote}{run}{quote}")
    assert ended.code == 0, ended.err
    assert (run / "metrics.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_run_in_a_folder_that_hydra_would_resolve_is_refused(command, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "${oc.env:HOME}"))
    ended = command("train", f"resume='{run}'")
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "where Hydra would resolve '${'; rename that folder" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


OTHERS = (
    "trainer.accelerator=cpu", "data.root=elsewhere", "+data.prepared=s3://bucket/x", "loader.num_workers=1",
    "checkpoint_every_n_steps=3", "log_images.num_samples=1", "trainer.log_every_n_steps=7", "logger.project=x",
    "trainer.enable_progress_bar=false", "data.generation_workers=1", "trust=[theirs]",
)  # fmt: skip


@pytest.mark.parametrize("argument", OTHERS)
def test_what_says_where_and_how_it_runs_may_be_another(trained: Path, argument: str) -> None:
    assert resume_arguments("train", [f"resume={trained}", argument])[0] == "resumed"


@pytest.mark.parametrize(
    "argument", ["seed=1", "data.rooted=x", "trainer.devices=2", "loader.batch_size=2", "data=kitti"]
)
def test_what_would_make_another_run_is_refused(trained: Path, argument: str) -> None:
    with pytest.raises(InputError, match=r"a run resumes as it began, only .*data\.root.* may change"):
        resume_arguments("train", [f"resume={trained}", argument])


def test_a_run_resumes_with_its_data_elsewhere(command, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "metrics.json").unlink()
    root = yaml.safe_load((run / "config.yaml").read_text())["data"]["root"]
    shutil.copytree(root, tmp_path / "moved")
    ended = command(
        "train", f"resume={run}", f"data.root={tmp_path / 'moved'}", "loader.num_workers=1", "trainer.accelerator=cpu"
    )
    assert ended.code == 0, ended.err
    assert (run / "metrics.json").is_file()


def test_what_only_concerns_monitoring_may_be_another() -> None:
    begun = {"seed": 1, "checkpoint_every_n_steps": 5, "log_images": {"num_samples": 1}, "trainer": {"devices": 1}}
    given = {"seed": 1, "checkpoint_every_n_steps": 9, "log_images": {"num_samples": 4}}
    assert difference(begun, {**given, "trainer": {"devices": 1, "log_every_n_steps": 7}}) is None
    assert difference(begun, {**given, "trainer": {"devices": 2}}) == ("trainer.devices", 1, 2)


@pytest.mark.parametrize(("begun", "given"), [("none", "csv"), ("csv", "none")])
def test_logger_of_a_run_may_be_another(tmp_path: Path, begun: str, given: str) -> None:
    groups = {"none": {}, "csv": {"_target_": "lightning.pytorch.loggers.CSVLogger"}}
    assert difference({"seed": 1, "logger": groups[begun]}, {"seed": 1, "logger": groups[given]}) is None
    assert difference({"seed": 1, "logger": groups[begun]}, {"seed": 2, "logger": groups[given]}) == ("seed", 1, 2)
