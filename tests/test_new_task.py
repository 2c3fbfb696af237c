"""A task that bevreshape does not know, heights of vehicles in the synthetic world, added from outside by YAML
alone."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
from commands import ROOT, finish, start, without
from torch import Tensor

from bevreshape.config.load_model import load_model
from bevreshape.data.batch import collate
from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.geometry import BEVGrid

PACKAGE = '''
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from bevreshape.data.sources.synthetic import SyntheticSource
from bevreshape.data.targets import BEVTarget
from bevreshape.metrics import BEVMetric


class Scenes:
    """Scenes with the height of what stands in every cell."""

    def __init__(self, scenes, grid):
        self.scenes, self.grid = scenes, grid

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        sample = self.scenes[index]
        x, y = self.grid.centers(dtype=torch.float64).unbind(-1)
        height = np.zeros(self.grid.shape, np.float32)
        for car in self.scenes.world.scene(index).vehicles:
            top = max(solid.top_m for solid in car.solids)
            height = np.where(car.covers(x.numpy(), y.numpy()), np.maximum(height, np.float32(top)), height)
        target = BEVTarget(torch.from_numpy(height)[None], sample.targets["segmentation"].valid[:1])
        return replace(sample, targets={**sample.targets, "height": target})


class Streets(SyntheticSource):
    def split(self, name):
        return Scenes(super().split(name), self.grid)


class HeightHead(nn.Module):
    def __init__(self, in_channels, upsample=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 1, 1), nn.Upsample(scale_factor=upsample), nn.Softplus())

    def forward(self, bev):
        return self.layers(bev)


class L1(nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def forward(self, outputs, batch):
        target = batch.targets["height"]
        return self.weight * (outputs.heads["height"] - target.value).abs()[target.valid].mean()


class MeanError(BEVMetric):
    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cells", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs, batch):
        target = batch.targets["height"]
        off = (outputs.heads["height"] - target.value).abs()
        self.total += off[target.valid].double().sum()
        self.cells += target.valid.sum()

    def compute(self):
        return {"height/mean_error_m": (self.total / self.cells).float()}
'''

YAML = {
    "data/streets": "defaults: [synthetic]\n_target_: heights.Streets\n",
    "head/height": "height: {_target_: heights.HeightHead, upsample: 2}\n",
    "objective/height": "height: {_target_: heights.L1, weight: 0.5}\n",
    "metric/height": "height: {_target_: heights.MeanError}\n",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The package and its YAML files, and what finds the package."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/heights.py").write_text(PACKAGE)
    for name, text in YAML.items():
        path = tmp_path / f"my_conf/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"PYTHONPATH": os.pathsep.join((str(tmp_path / "package"), str(ROOT)))}


def test_a_height_map_is_learned_and_measured(
    worlds: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [
        "data=streets",
        "head=[conv,height]",
        "objective=[bce_dice,height]",
        "metric=[iou,height]",
        "augment=full",
    ]
    run = ["--config-dir", "my_conf", *choices, *without("none"), f"data.root={worlds}", "hydra.run.dir=run"]
    ended = finish(start("train", *run, cwd=tmp_path, environment=environment))
    assert ended.code == 0, ended.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"test/iou/mean", "test/height/mean_error_m", "val/height/mean_error_m"} <= set(metrics)
    *_, heading, _, row = table_lines(ended.out)
    assert heading == ["mean error m"]
    assert row == ["height", f"{metrics['test/height/mean_error_m']:.3f}"]
    with (tmp_path / "run/history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["train/height_loss"]) > 0 for row in rows)

    best = "checkpoint=run/checkpoints/best.ckpt"
    refused = finish(start("evaluate", best, "trainer.accelerator=cpu", cwd=tmp_path, environment=environment))
    assert (refused.code, "wants to call heights.Streets" in refused.err) == (1, True), refused.err
    given = [best, "trust=[heights]", "trainer.accelerator=cpu", "hydra.run.dir=again"]
    ended = finish(start("evaluate", *given, cwd=tmp_path, environment=environment))
    assert ended.code == 0, ended.err
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    assert again["test/height/mean_error_m"] == pytest.approx(metrics["test/height/mean_error_m"], rel=1e-6)

    monkeypatch.syspath_prepend(tmp_path / "package")
    model, spec, config = load_model(str(tmp_path / "run/checkpoints/best.ckpt"), ["heights"])
    assert metrics["test/height/mean_error_m"] == pytest.approx(mean_error(model, config, spec.grid), rel=1e-4)


def test_a_height_map_alone_is_judged_by_its_loss(worlds: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    choices = ["data=streets", "head=height", "objective=height", "metric=[height]"]
    tiny = [argument for argument in without("none") if not argument.startswith("head.")]
    run = ["--config-dir", "my_conf", *choices, *tiny, f"data.root={worlds}", "hydra.run.dir=run"]
    ended = finish(start("train", *run, cwd=tmp_path, environment=environment))
    assert ended.code == 0, ended.err
    with (tmp_path / "run/history.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["val/loss"] == pytest.approx(min(losses), rel=1e-4)
    assert "test/height/mean_error_m" in metrics
    assert "height" in ended.out
    assert "IoU" not in ended.out
    best = ["checkpoint=run/checkpoints/best.ckpt", "trust=[heights]"]
    ended = finish(start("evaluate", *best, "trainer.accelerator=cpu", cwd=tmp_path, environment=environment))
    assert ended.code == 0, ended.err
    refused = finish(start("export", *best, cwd=tmp_path, environment=environment))
    assert (refused.code, "its heads are height" in refused.err) == (1, True), refused.err
    early = finish(
        start("train", *run[:-1], "trainer.early_stopping.patience=1", cwd=tmp_path, environment=environment)
    )
    assert (early.code, "but no metric gives it" in early.err) == (1, True), early.err


def table_lines(out: str) -> list[list[str]]:
    """The cells of every line of the printed tables."""
    lines = [line for line in out.splitlines() if line and line[0] in "┃│├┡"]
    return [[cell for cell in map(str.strip, re.split("[┃│]", line)) if cell] for line in lines]


@torch.no_grad()
def mean_error(model: torch.nn.Module, config: dict, grid: BEVGrid) -> float:
    """In metres over the valid cells of the test split, cell by cell."""
    import heights

    node = {key: value for key, value in config["data"].items() if key not in ("_target_", "grid")}
    source: SyntheticSource = heights.Streets(grid, **node)
    split, off, cells = source.split("test"), 0.0, 0
    for index in range(len(split)):
        batch = collate([split[index]])
        found: Tensor = model(batch.images.float() / 255, batch.cameras).heads["height"]
        target = batch.targets["height"]
        for said, true, valid in zip(*(x.flatten().tolist() for x in (found, target.value, target.valid)), strict=True):
            off += abs(said - true) * valid
            cells += valid
    assert cells > 0
    return off / cells
