"""Real trainings, tiny: what they leave, how they resume, and instruments on models whose answers are known."""

from pathlib import Path

import pytest
import torch
from batches import batch_of
from commands import without
from torch import nn

from bevreshape.console import log_to_stderr
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import TrainingInterrupted
from bevreshape.experiments import task_training
from bevreshape.experiments.task_instruments import Inspected, costs, inspect
from bevreshape.experiments.task_plan import TaskPlan, TaskSetting, Training, angles
from bevreshape.experiments.task_training import TaskOutcome
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM, MLP, CrossAttention, FeatureShape, Reshaper
from bevreshape.training.recorded import Trained
from bevreshape.training.task import BEVTask

GRID = BEVGrid((2.0, 10.0), (-4.0, 4.0), 1.0)
SOURCE = FeatureShape(3, 4, 8, stride=4, offset_px=1.5)


def given(worlds: Path, setting: TaskSetting) -> list[str]:
    special = ("data.batch", "data.loader", "trainer.max", "trainer.val", "images", "logger", "checkpoint")
    arguments = (*without(*special), f"data.root={worlds}", "checkpoint_every_n_steps=1")
    plan = TaskPlan(arguments, 4, (1, 3), 3, (0.01,), 2, 0, (0.0, 2.0), (0.0,), 5.0, 0.2, 2)
    return plan.given(Training(setting, 0.01, 3, 0))


@pytest.fixture(scope="module")
def arguments(worlds: Path) -> list[str]:
    return given(worlds, TaskSetting("attention", pose=True, sigma_deg=2.0, permuted=True))


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return task_training.run(arguments, tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_a_training_is_measured_as_it_was_trained(arguments: list[str], whole: Trained) -> None:
    unseen = {"own": angles(2.0), "angles": angles(20.0)}
    found = task_training.judge(arguments, whole.folder, unseen, 3)  # which is read and not done again
    assert [step for step, _ in found.curve] == [1, 2, 3]
    assert found.iou["mean"] == whole.metrics["test/iou/mean"]
    assert found.unseen["own"] == pytest.approx(found.iou["mean"], abs=1e-6)
    assert found.unseen["angles"] != found.unseen["own"]
    assert found.inspected is not None
    assert 0 <= found.inspected.image_share <= 1
    assert whole.config["encoder"]["_target_"].endswith("PermutedEncoder")
    assert TaskOutcome.from_plain(found.to_plain()).to_plain() == found.to_plain()


def test_a_training_that_was_killed_resumes(
    arguments: list[str], whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(BEVTask, "on_validation_epoch_end", die)  # the first, after a step
        with pytest.raises(Killed):
            task_training.run(arguments, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    log_to_stderr()  # as the command does
    again = task_training.run(arguments, tmp_path)
    assert "resumes from" in (tmp_path / "train.log").read_text()
    assert again.curve == whole.curve
    assert again.metrics["test/iou/mean"] == whole.metrics["test/iou/mean"]


def test_a_stop_says_how_to_resume_the_study(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise TrainingInterrupted("stopped; resume with resume=FOLDER")

    monkeypatch.setattr("bevreshape.training.recorded.train", stop)
    with pytest.raises(TrainingInterrupted, match="the same command resumes the study"):
        task_training.run(arguments, tmp_path)


class Patches(nn.Module):
    """Features that are means of patches of the images."""

    sources = (SOURCE,)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(image.flatten(0, 1), 4).unflatten(0, image.shape[:2])


def batches() -> list[BEVBatch]:
    """Random images and labels, under one camera."""
    generator = torch.Generator().manual_seed(0)
    pose = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]]).expand(3, 1, 4, 4)
    intrinsics = torch.tensor([[16.0, 0, 15.5], [0, 16, 7.5], [0, 0, 1]]).expand(3, 1, 3, 3)
    return [
        batch_of(
            torch.rand(3, 1, 3, 16, 32, generator=generator),
            Cameras(intrinsics, pose, (16, 32)),
            torch.rand(3, 1, 8, 8, generator=generator) > 0.5,
        )
        for _ in range(2)
    ]


def inspected(reshaper: Reshaper) -> Inspected:
    return inspect(model(reshaper), batches(), BEVIoU(("a",), GRID), 4)


def model(reshaper: Reshaper) -> BEVModel:
    return BEVModel(Patches(), reshaper, {"segmentation": nn.Conv2d(reshaper.out_channels, 1, 1)}).eval()


def test_a_linear_mapping_does_not_follow_the_image() -> None:
    torch.manual_seed(0)
    for reshaper in (MLP(SOURCE, GRID, activation="none"), IPM(SOURCE, GRID)):
        found = inspected(reshaper)
        assert (found.spread_of_a, found.spread_of_jacobian, found.spread_of_jacobian_held) == (0, 0, 0)
        assert found.image_share > 0


def test_the_mlps_activation_shows_in_the_jacobian_alone() -> None:
    torch.manual_seed(0)
    found = inspected(MLP(SOURCE, GRID, activation="gelu"))
    assert found.spread_of_a == 0
    assert found.spread_of_jacobian == found.spread_of_jacobian_held > 0


def test_an_attention_that_looks_by_place_alone_does_not_follow_the_image() -> None:
    torch.manual_seed(0)
    reshaper = CrossAttention(SOURCE, GRID, dim=12, heads=3, attention_only=True, token_encoding="none")
    follows = inspected(reshaper)
    with torch.no_grad():
        reshaper.attention.to_k.weight.zero_()
    still = inspected(reshaper)
    assert follows.spread_of_a > 0
    assert follows.spread_of_jacobian > follows.spread_of_jacobian_held
    assert still.spread_of_a == 0
    assert still.spread_of_jacobian == pytest.approx(0, abs=1e-6)


def test_costs_are_those_counted_by_hand() -> None:
    found = costs(model(MLP(SOURCE, GRID, activation="none")), batches()[0])
    assert found["reshaper_parameters"] == 32 * 64 + 64
    assert found["reshaper_flops"] == 2 * 32 * 64 * 3
    assert found["parameters"] == found["reshaper_parameters"] + 3 + 1
    assert found["flops"] == found["reshaper_flops"] + 2 * 64 * 3
