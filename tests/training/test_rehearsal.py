"""A training step before a run begins."""

from pathlib import Path

import pytest
import torch
from batches import outputs_of
from commands import TINY, finish, start, without
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.build_model import build_model
from bevreshape.config.compose import compose_training
from bevreshape.errors import Divergence, InputError
from bevreshape.geometry import BEVGrid
from bevreshape.model import Outputs
from bevreshape.training.failures import explain_failure
from bevreshape.training.rehearsal import rehearse
from bevreshape.training.strategy import choose_strategy

pytestmark = pytest.mark.slow

SPEC = BEVSpec(BEVGrid((0, 32), (-16, 16), 2.0), ("a", "b"), ("front",), (32, 64))
SMALL = ("encoder.channels=8", "head.segmentation.channels=8", "head.segmentation.blocks=1", "trainer.accelerator=cpu")


def test_unused_branches_are_found() -> None:
    """HRNet's fusion into branches that were cut off; the network of the main job has none."""
    found = rehearse(
        build_model(compose_training([*SMALL, "encoder.name=hrnet_w18_small"]), SPEC), SPEC, 2, backward=True
    )
    assert found
    assert all(name.startswith("encoder.trunk.") for name in found)
    assert rehearse(build_model(compose_training([*SMALL]), SPEC), SPEC, 2, backward=True) == []


@pytest.mark.parametrize(
    ("overrides", "strategy"),
    [
        (("encoder.name=hrnet_w18_small", "trainer.devices=2"), "ddp_find_unused_parameters_true"),
        (
            ("encoder.name=hrnet_w18_small", "trainer.devices=2", "trainer.strategy=ddp"),
            "ddp_find_unused_parameters_true",
        ),
        (("encoder.name=hrnet_w18_small",), "auto"),
        (("trainer.devices=2", "trainer.strategy=ddp"), "ddp"),
        (
            ("trainer.devices=2", "trainer.strategy=ddp_find_unused_parameters_false"),
            "ddp_find_unused_parameters_false",
        ),
    ],
)
def test_processes_do_not_wait_for_unused_parameters(overrides: tuple[str, ...], strategy: str) -> None:
    assert choose_strategy(compose_training([*SMALL, *overrides]), SPEC) == strategy


def test_two_processes_train_hrnet_with_accumulated_batches(worlds: Path, tmp_path: Path) -> None:
    arguments = without("trainer.max_steps", "trainer.val", "loader.batch_size", "data.scenes.train")
    process = start(
        "train", *arguments, f"data.root={worlds}", "loader.batch_size=2", "data.scenes.train=9",
        "encoder.name=hrnet_w18_small", "trainer.devices=2",
        "trainer.max_steps=3", "trainer.val_check_interval=2", "trainer.accumulate_grad_batches=2", "hydra.run.dir=run",
        cwd=tmp_path,
    )  # fmt: skip
    ended = finish(process)  # an epoch of 9 scenes is one step
    assert ended.code == 0, ended.err
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["2", "1"], ["3", "2"]]


def test_missing_compiler_is_found_before_the_run(
    command, worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(function: object, **options: object) -> object:
        def call(*given: object) -> None:
            raise InvalidCxxCompiler

        return call

    monkeypatch.setattr("torch.compile", failing)
    ended = command("train", *TINY, f"data.root={worlds}", "trainer.compile=true", "hydra.run.dir=run")
    assert ended.code == 1
    assert "error: trainer.compile=true: torch" in ended.err
    assert "No working C++ compiler" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()


class Single(nn.Module):
    """Features of one pixel, normalised by ``layer``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.encoder, self.norm = nn.AdaptiveAvgPool2d(1), layer

    def forward(self, image: torch.Tensor, cameras: object) -> Outputs:
        return outputs_of(self.norm(self.encoder(image.flatten(0, 1))))


def test_a_single_value_is_not_normalised() -> None:
    with pytest.raises(InputError, match=r"loader\.batch_size=1: norm normalises over a single value per channel"):
        rehearse(Single(nn.BatchNorm2d(3)), SPEC, 1)
    assert rehearse(Single(nn.BatchNorm2d(3)), SPEC, 2) == []


def test_command_refuses_a_single_value_before_it_writes(command, worlds: Path, tmp_path: Path) -> None:
    arguments = [*without("data.image_size", "loader.batch_size", "data.grid"), f"data.root={worlds}"]
    ended = command(
        "train", *arguments, "data.image_size=[32,32]", "encoder.strides=[32]", "loader.batch_size=1",
        "data.grid.cell_m=2",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert (ended.code, "single value per channel" in ended.err) == (1, True), ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "group", "words", "kind"),
    [
        ("put_ does not have a deterministic "
         "implementation", {"deterministic": True}, "trainer.deterministic=false", InputError),
        ("Function 'SqrtBackward0' returned nan values in its 0th "
         "output.", {"detect_anomaly": True}, "SqrtBackward0", Divergence),
        ("Expected to have finished reduction in the prior "
         "iteration", {}, "ddp_find_unused_parameters_true", InputError),
    ],
)  # fmt: skip
def test_failures_in_training_are_explained_in_one_line(error: str, group: dict, words: str, kind: type) -> None:
    found = explain_failure(RuntimeError(error), group)
    assert type(found) is kind
    assert words in str(found)
    assert explain_failure(RuntimeError("shapes do not match"), group) is None


def test_an_anomaly_is_reported_with_its_function(command, worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(loss: object, outputs: Outputs, batch: object) -> torch.Tensor:
        return (outputs.heads["segmentation"] * 0).sqrt().sum() * 0  # finite, with a gradient of NaN

    monkeypatch.setattr("bevreshape.objectives.WeightedSum.forward", poisoned)
    ended = command("train", *TINY, f"data.root={worlds}", "+trainer.detect_anomaly=true")
    assert ended.code == 3, ended.err
    assert "error: training: Function 'SqrtBackward0' returned nan values" in ended.err
