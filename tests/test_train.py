"""The main job by its command line: its run folder, resuming and stopping."""

import csv
import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from commands import DIVERGING, ROOT, TINY, finish, start, without
from PIL import Image

from bevreshape.config.load_model import load_model
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.training.task import BEVTask

pytestmark = pytest.mark.slow


def losses(run: Path) -> dict[int, str]:
    """Training loss by step, as text, of the last logger version in a run's folder."""
    found: dict[int, str] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        with path.open(newline="") as file:
            found |= {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}
    return found


def test_run_folder(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    for key in ("test/iou/drivable", "test/iou/lane", "test/iou/mean", "fit/seconds", "fit/samples_per_second"):
        assert isinstance(metrics[key], float), key
    assert metrics["fit/steps"] == 8
    assert 0 < metrics["test/iou/mean"] < 1
    seconds = 8 * 4 / metrics["fit/samples_per_second"]
    assert metrics["fit/seconds"] == pytest.approx(
        seconds, rel=1e-3, abs=0.006
    )  # four digits of one, hundredths of the other
    with (trained / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "8"]
    assert float(rows[-1]["val/iou/mean"]) >= 0
    for name in ("test_0", "val_step000004_0", "val_step000008_0"):
        with Image.open(trained / "images" / f"{name}.png") as image:
            assert image.size[0] > 100
    assert "reshaper:" in (trained / "config.yaml").read_text()
    assert "${" not in (trained / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_holds_plain_values_and_rebuilds_the_model(trained: Path, name: str) -> None:
    path = trained / "checkpoints" / f"{name}.ckpt"
    torch.load(path, weights_only=True)
    model, frame, config = load_model(str(path))
    assert frame.classes == ("drivable", "lane", "crossing", "vehicle")
    assert config["reshaper"]["_target_"] == "bevreshape.reshapers.MLP"
    eye = torch.eye(4).expand(1, 1, 4, 4)
    outputs = model(torch.rand(1, 1, 3, 32, 64), Cameras(eye[..., :3, :3], eye, (32, 64)))
    assert outputs.heads["segmentation"].shape == (1, 4, 16, 16)


@pytest.mark.parametrize("reshaper", sorted(p.stem for p in (ROOT / "conf" / "reshaper").glob("*.yaml")))
def test_six_cameras_and_every_reshaper(command, worlds: Path, reshaper: str) -> None:
    arguments = without("data.scenes", "trainer.max_steps")
    scenes = [f"data.scenes.{split}=4" for split in ("train", "val", "test")]
    ended = command(
        "train", *arguments, *scenes, f"data.root={worlds}", "data.rig=surround", "trainer.max_steps=1",
        f"reshaper={reshaper}", "data.grid.forward_m=[-20,20]",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "test" in ended.out


@pytest.mark.parametrize("reshaper", ["cross_view_attention", "column_mlp"])
def test_several_feature_scales(command, worlds: Path, reshaper: str) -> None:
    arguments = [*without("trainer.max_steps"), "trainer.max_steps=1", f"data.root={worlds}", f"reshaper={reshaper}"]
    ended = command("train", *arguments, "encoder.strides=[4,16]")
    assert ended.code == 0, ended.err


def test_run_killed_in_mid_epoch_resumes_bit_for_bit(worlds: Path, tmp_path: Path) -> None:
    arguments = [
        *without("logger", "loader.num_workers", "trainer.max_steps"),
        f"data.root={worlds}", "loader.num_workers=2", "trainer.max_steps=30", "logger=csv",
        "+logger.flush_logs_every_n_steps=1",
        "trainer.log_every_n_steps=1", "augment=photometric", "reshaper=cross_attention",
    ]  # fmt: skip
    whole = start("train", *arguments, "hydra.run.dir=whole", cwd=tmp_path)
    assert finish(whole).code == 0
    expected = losses(tmp_path / "whole")
    assert sorted(expected) == list(range(30))

    killed = start("train", *arguments, "hydra.run.dir=killed", cwd=tmp_path)
    log = tmp_path / "killed" / "csv" / "version_0" / "metrics.csv"
    while killed.poll() is None and not (log.exists() and log.read_text().count("\n") > 5):
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    finish(killed)
    done = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < done < 30, "the kill came too early or too late to show anything"

    resumed = finish(start("train", "resume=killed", cwd=tmp_path))
    assert resumed.code == 0, resumed.err
    later = losses(tmp_path / "killed")
    assert {step: later[step] for step in range(done, 30)} == {step: expected[step] for step in range(done, 30)}
    first = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    second = json.loads((tmp_path / "killed" / "metrics.json").read_text())
    assert {k: v for k, v in first.items() if not k.startswith("fit/")} == pytest.approx(
        {k: v for k, v in second.items() if not k.startswith("fit/")}, abs=0, nan_ok=True
    )
    with (tmp_path / "killed" / "history.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    with (tmp_path / "whole" / "history.csv").open(newline="") as file:
        assert steps == [int(row["step"]) for row in csv.DictReader(file)]


def test_ctrl_c_saves_and_prints_how_to_resume(worlds: Path, tmp_path: Path) -> None:
    arguments = without("trainer.max_steps", "trainer.val", "checkpoint_every")
    process = start(
        "train", *arguments, f"data.root={worlds}", "trainer.max_steps=100000", "trainer.val_check_interval=100000",
        "checkpoint_every_n_steps=3", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.02)
    before = torch.load(last, weights_only=True)["global_step"]
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    assert "resume with resume=" in ended.err
    assert "Traceback" not in ended.err
    assert torch.load(last, weights_only=True)["global_step"] > before


def test_resume_refuses_other_settings(command, trained: Path) -> None:
    ended = command("train", f"resume={trained}", "trainer.max_steps=99")
    assert (ended.code, "a run resumes as it began" in ended.err) == (1, True)
    ended = command("train", "resume=nowhere")
    assert (ended.code, "no config.yaml" in ended.err) == (1, True)
    for argument in ("-m", "--config-name=other", "~seed"):
        ended = command("train", f"resume={trained}", argument)
        assert (ended.code, f"{argument}: a run resumes alone" in ended.err) == (1, True), ended.err


def test_a_finished_run_is_only_tested_again(command, trained: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(trained, tmp_path / "copied")
    before = json.loads((copied / "metrics.json").read_text())
    ended = command("train", "resume=copied")
    assert ended.code == 0, ended.err
    assert "training is finished after 8 steps; only its test is run" in ended.err
    after = json.loads((copied / "metrics.json").read_text())
    assert after == pytest.approx(before, abs=0, nan_ok=True)


def test_lock_that_is_a_link_is_not_followed(command, worlds: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("all of it")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    ended = command("train", *TINY, f"data.root={worlds}", "hydra.run.dir=run")
    assert (ended.code, ".lock is a link" in ended.err) == (1, True), ended.err
    assert (tmp_path / "precious").read_text() == "all of it"


def test_file_system_without_locks(command, worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    ended = command("train", *TINY, f"data.root={worlds}", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    assert "run cannot be locked (No locks available); start no second process there" in ended.err


def test_resume_refuses_another_config_than_the_checkpoints(command, trained: Path, tmp_path: Path) -> None:
    """The weights would fit, and the run would be another one."""
    copied = shutil.copytree(trained, tmp_path / "copied")
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace("\nseed: 0\n", "\nseed: 1\n"))
    ended = command("train", "resume=copied")
    assert ended.code == 1
    assert "last.ckpt was saved with seed=0 but its run's config has seed=1" in ended.err


def test_nan_stops_with_the_batch(command, worlds: Path) -> None:
    ended = command("train", *TINY, f"data.root={worlds}", *DIVERGING)
    assert ended.code == 3  # so that a study knows it from other errors
    assert "the loss is" in ended.err
    assert "batch train-" in ended.err or "batch train" in ended.err


def test_epochs_resume_in_mid_epoch(worlds: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        *without("logger", "trainer.max_steps"), f"data.root={worlds}", "trainer.max_epochs=3", "logger=csv",
        "trainer.log_every_n_steps=1", "+logger.flush_logs_every_n_steps=1", "checkpoint_every_n_steps=4",
    ]  # fmt: skip
    assert command("train", *arguments, "hydra.run.dir=whole").code == 0
    expected = losses(tmp_path / "whole")
    assert sorted(expected) == list(range(18)), "24 scenes in batches of 4, three times"

    def power_cut(task: BEVTask, batch: object, batch_idx: int) -> None:
        if task.global_step == 9:
            raise InputError("the power is cut")

    with monkeypatch.context() as patch:
        patch.setattr(BEVTask, "on_train_batch_start", power_cut)
        assert "the power is cut" in command("train", *arguments, "hydra.run.dir=stopped").err
    assert torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 8
    (tmp_path / "stopped").rename(tmp_path / "moved")
    assert command("train", "resume=moved").code == 0
    later = losses(tmp_path / "moved")
    assert {step: later[step] for step in range(8, 18)} == {step: expected[step] for step in range(8, 18)}
    best = [torch.load(tmp_path / run / "checkpoints" / "best.ckpt", weights_only=True) for run in ("whole", "moved")]
    assert best[0]["global_step"] == best[1]["global_step"]
    scores = [next(v for k, v in last["callbacks"].items() if k.startswith("BestCheckpoint")) for last in best]
    assert scores[0]["best_model_score"] == scores[1]["best_model_score"]


def test_ctrl_c_in_two_processes(worlds: Path, tmp_path: Path) -> None:
    arguments = without("trainer.max_steps", "trainer.val", "checkpoint_every")
    process = start(
        "train", *arguments, f"data.root={worlds}", "trainer.max_steps=100000", "trainer.val_check_interval=100000",
        "checkpoint_every_n_steps=10", "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130, ended.err
    assert "resume with resume=" in ended.err
    assert "Traceback" not in ended.err
    torch.load(last, weights_only=True)
