"""A checkpoint evaluated by its own command line."""

import json
from pathlib import Path

import pytest
import torch
from batches import batch_of
from commands import finish, start
from torch import nn

from bevreshape.analysis.costs import ring
from bevreshape.analysis.evaluation import Evaluation
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM, FeatureShape
from bevreshape.training.evaluate import select_classes, variants

pytestmark = pytest.mark.slow


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def test_evaluation_repeats_the_test_of_the_run(command, trained: Path, tmp_path: Path) -> None:
    ended = command(
        "evaluate", f"checkpoint={trained}/checkpoints/best.ckpt", "hydra.run.dir=one", "trainer.accelerator=cpu"
    )
    assert ended.code == 0, ended.err
    found, expected = metrics_of(tmp_path / "one"), metrics_of(trained)
    assert found == pytest.approx({key: expected[key] for key in found}, abs=0, nan_ok=True)
    assert "drivable" in ended.out


def test_two_processes_count_every_sample_once(trained: Path, tmp_path: Path) -> None:
    ended = finish(
        start(
            "evaluate",
            f"checkpoint={trained}/checkpoints/best.ckpt",
            "hydra.run.dir=two",
            "trainer.accelerator=cpu",
            "trainer.devices=2",
            "trainer.strategy=ddp",
            "loader.batch_size=2",
            cwd=tmp_path,
        )
    )
    assert ended.code == 0, ended.err
    found, expected = metrics_of(tmp_path / "two"), metrics_of(trained)
    assert found == pytest.approx({key: expected[key] for key in found}, abs=0, nan_ok=True)


def test_other_data_uses_the_spec_of_the_checkpoint(command, trained: Path, worlds: Path, tmp_path: Path) -> None:
    ended = command(
        "evaluate", f"checkpoint={trained}/checkpoints/best.ckpt", "data=synthetic", f"data.root={worlds}",
        "data.scenes.test=3",
        "data.generation_workers=1", "data.calibration=noisy", "trainer.accelerator=cpu", "hydra.run.dir=other",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "test/iou/drivable" in metrics_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "checkpoint=FILE must be given"),
        (("checkpoint=none.ckpt",), "none.ckpt is not a file"),
        (("checkpoint={best}", "split=tset"), "did you mean test"),
        (("checkpoint={best}", "data=synthetic", "data.rig=surround"), "6 cameras"),
    ],
)
def test_error_message(command, trained: Path, arguments: tuple[str, ...], message: str) -> None:
    best = f"{trained}/checkpoints/best.ckpt"
    ended = command("evaluate", *(argument.format(best=best) for argument in arguments), "trainer.accelerator=cpu")
    assert ended.code == 1
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_drop_each_camera() -> None:
    """Images are read by IPM as they are, so every class's prediction is known by hand."""
    grid = BEVGrid((-4.0, 4.0), (-4.0, 4.0), 1.0)
    model = BEVModel(nn.Identity(), IPM(FeatureShape(3, 32, 48, 3), grid), {"segmentation": nn.Identity()}).eval()
    rig = ring(3, (32, 48), 2, torch.device("cpu"))
    images, target, valid = torch.randn(2, 3, 3, 32, 48), torch.rand(2, 3, 8, 8) < 0.5, torch.rand(2, 3, 8, 8) < 0.9
    batch = batch_of(images, rig, target, valid)
    classes, cameras = ("x", "y", "z"), ("c0", "c1", "c2")
    task = Evaluation(model, {"iou": BEVIoU(classes, grid)}, variants(classes, classes, cameras))
    task.test_step(batch, 0)
    results = task.compute()
    for number, camera in enumerate(cameras):
        seen = [i for i in range(3) if i != number]
        left = Cameras(rig.intrinsics[:, seen], rig.ego_from_cam[:, seen], (32, 48))
        two = IPM(FeatureShape(3, 32, 48, 2), grid)
        said = two(images[:, seen], left) >= 0
        both = (said & target & valid).sum((0, 2, 3))
        either = ((said | target) & valid).sum((0, 2, 3))
        found = results[camera]
        assert [found[f"iou/{name}"] for name in classes] == pytest.approx((both / either).tolist())
        assert found["iou/x"] != results[""]["iou/x"]


def test_classes_are_compared_by_name() -> None:
    """A model of y, z and x on labels of x and y: channels are matched, those of one side are left out."""
    grid = BEVGrid((-4.0, 4.0), (-4.0, 4.0), 1.0)
    model = BEVModel(nn.Identity(), IPM(FeatureShape(3, 32, 48, 1), grid), {"segmentation": nn.Identity()}).eval()
    rig, images = ring(1, (32, 48), 2, torch.device("cpu")), torch.randn(2, 1, 3, 32, 48)
    batch = batch_of(images, rig, torch.rand(2, 2, 8, 8) < 0.5)
    metric = BEVIoU(("y", "x"), grid)
    task = Evaluation(
        select_classes(model, ("y", "z", "x"), ("y", "x")), {"iou": metric}, variants(("x", "y"), ("y", "x"), ())
    )
    task.test_step(batch, 0)
    found, said = task.compute()[""], model(images, rig).heads["segmentation"] >= 0
    for name, predicted, labelled in (("y", 0, 1), ("x", 2, 0)):
        there = batch.targets["segmentation"].value[:, labelled]
        iou = (said[:, predicted] & there).sum() / (said[:, predicted] | there).sum()
        assert found[f"iou/{name}"] == pytest.approx(iou.item())
