"""Loggers of a run, read back from their files, and one-line messages for unsupported options of W&B."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from commands import Command, without
from torch import nn
from wandb_file import records

from bevreshape.config.build_logger import make_logger
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.model import BEVModel
from bevreshape.reshapers import MLP, FeatureShape
from bevreshape.training.callbacks import History
from bevreshape.training.loggers import describe_model, snake_case

WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "name": "a", "project": "b", "mode": None}
VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC")


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(autouse=True)
def no_run_of_another_test() -> None:
    """A W&B run that another test of this process left open would be taken for this one's."""
    wandb.finish()


def test_wandb_has_curves_costs_names_tags_and_the_best_scores(command: Command, worlds: Path, tmp_path: Path) -> None:
    options = [
        "logger=wandb",
        "logger.mode=offline",
        "logger.tags=[first,mlp]",
        "logger.notes=a try",
        "hydra.run.dir=run",
    ]
    ended = command(
        "train",
        *without("logger"),
        f"data.root={worlds}",
        *options,
        "trainer.log_every_n_steps=1",
        "optimizer.lr=0.02",
    )
    assert ended.code == 0, ended.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = SimpleNamespace(run=None, config={}, history=[], summary={})
    for record in records(tmp_path / "run"):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= values(record.run.config.update)
        elif kind == "config":
            found.config |= values(record.config.update)
        elif kind == "history":
            found.history.append(values(record.history.item))
        elif kind == "summary":
            found.summary |= values(record.summary.update)
    assert [*found.run.tags] == ["first", "mlp"]
    assert (found.run.notes, found.run.job_type, found.run.run_group) == ("a try", "train", "synthetic")
    # the rate of every step by OneCycle's formula: 30 % of 8 steps up, the rest down, cosines
    rates = [row["train/learning_rate"] for row in found.history if "train/learning_rate" in row]

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    top, low, last = 0.02, 0.002, 0.00002
    peak = 0.3 * 8 - 1
    expected = [
        cosine(low, top, i / peak) if i <= peak else cosine(top, last, (i - peak) / (7 - peak)) for i in range(8)
    ]
    assert rates == pytest.approx(expected)
    assert found.config["model"]["reshaper"] == "mlp"
    assert found.config["reshaper"]["_target_"].endswith("MLP")
    assert set(found.config["model"]["parameters"]) == {"encoder", "reshaper", "head"}
    assert found.config["model"]["mflop"]["model"] > found.config["model"]["mflop"]["reshaper"] > 0
    known = {key: value for key, value in metrics.items() if value is not None}
    assert {key: found.summary[key] for key in known} == pytest.approx(known)
    images = {key.removesuffix("/_type") for row in found.history for key in row if key.endswith("/_type")}
    assert images == {"val/predictions", "test/predictions"}


def test_csv_and_tensorboard_have_the_rate_and_the_costs_too(command: Command, worlds: Path, tmp_path: Path) -> None:
    arguments = [*without("logger"), f"data.root={worlds}", "logger=csv", "trainer.log_every_n_steps=2"]
    ended = command("train", *arguments, "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "run" / "csv").iterdir()
    assert "train/learning_rate" in (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    hyperparameters = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert hyperparameters["model"]["reshaper"] == "mlp"


def test_costs_of_a_model_are_those_of_its_products() -> None:
    source, grid = FeatureShape(4, 6, 8, 1, 4, 1.5), BEVGrid((0.0, 4.0), (-2.0, 2.0), 1.0)
    encoder = nn.Conv2d(3, 4, 4, 4, bias=False)
    images = SimpleNamespace(forward=lambda x: encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    class Encoder(nn.Module):
        sources = (source,)

        def __init__(self) -> None:
            super().__init__()
            self.conv = encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return images.forward(x)

    model = BEVModel(Encoder(), MLP(source, grid, activation="none"), {"segmentation": nn.Conv2d(4, 2, 1)}).train()
    state = torch.get_rng_state()
    found = describe_model(model, (24, 32))
    assert found["reshaper"] == "mlp"
    assert found["parameters"] == {"encoder": 4 * 3 * 16, "reshaper": 16 * 48 + 16, "head": 4 * 2 + 2}
    reshaper = 2 * 16 * 48 * 4  # a multiply-add for each cell, token and channel
    assert found["mflop"]["reshaper"] == pytest.approx(reshaper / 1e6)
    whole = reshaper + 2 * 6 * 8 * 4 * 48 + 2 * 16 * 4 * 2
    assert found["mflop"]["model"] == pytest.approx(whole / 1e6)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state), "or a run with a logger would train otherwise than one without"


@pytest.mark.parametrize(
    ("mode", "variable", "disabled"),
    [(None, "disabled", True), ("disabled", None, True), ("offline", "disabled", False), (None, "dryrun", False)],
)
def test_the_mode_is_the_options_else_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, variable: str | None, disabled: bool
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    begun: list[Any] = []
    monkeypatch.setattr("bevreshape.config.build_logger.begin", begun.append)
    logger = make_logger({"logger": {**WANDB, "mode": mode}}, tmp_path)
    assert (logger is False) == disabled
    assert [one._wandb_init["mode"] for one in begun] == ([] if disabled else ["offline"])


@pytest.mark.parametrize(
    ("options", "variables", "words"),
    [
        ({"mode": "ofline"}, {}, "logger.mode=ofline is unknown; did you mean offline"),
        ({}, {"WANDB_MODE": "off"}, "the environment's WANDB_MODE=off is unknown"),
        ({"log_model": True, "mode": "offline"}, {}, "an offline run cannot upload checkpoints"),
        ({"log_model": True}, {}, "you are not logged in to W&B"),
        ({"log_model": "all"}, {"WANDB_MODE": "dryrun"}, "WANDB_MODE=dryrun"),
        ({"log_model": "best"}, {}, "must be true, false or all"),
        ({"tags": "first"}, {}, "logger.tags='first' must be a list of words"),
        ({"tags": ["x" * 65]}, {}, "at most 64 characters"),
        ({"notes": 5}, {}, "logger.notes=5 must be a string"),
        ({"mode": "online"}, {}, "W&B cannot begin a run"),
        ({"nonsense": 1}, {"WANDB_MODE": "offline"}, "nonsense"),
    ],
)
def test_impossible_wandb_settings_are_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        make_logger({"logger": {**WANDB, **options}}, tmp_path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_interrupted_run_is_summarized_by_its_best_validation(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    assert history.best() == {}
    history.rows = [
        {"step": s, "val/iou/mean": v, "val/loss": "", "train/loss": 1.0} for s, v in ((1, "0.2"), (2, 0.5), (3, 0.4))
    ]
    assert history.best() == {"val/iou/mean": 0.5}


def test_names_in_words() -> None:
    names = ["MLP", "IPM", "CrossAttention", "ColumnMLP", "MLPAttention", "LiftSplat", "Mine"]
    assert [snake_case(name) for name in names] == [
        "mlp", "ipm", "cross_attention", "column_mlp", "mlp_attention", "lift_splat", "mine"
    ]  # fmt: skip
