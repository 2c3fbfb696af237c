"""A checkpoint evaluated by its own command line."""

import json
from pathlib import Path

import pytest
import torch
from batches import batch_of
from commands import finish, start
from torch import nn

from bevreshape.analysis.costs import ring
from bevreshape.evaluate import Evaluation
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM, FeatureShape

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
            "data.batch_size=2",
            cwd=tmp_path,
        )
    )
    assert ended.code == 0, ended.err
    found, expected = metrics_of(tmp_path / "two"), metrics_of(trained)
    assert found == pytest.approx({key: expected[key] for key in found}, abs=0, nan_ok=True)


def test_other_data_is_brought_to_the_frame_of_the_checkpoint(
    command, trained: Path, worlds: Path, tmp_path: Path
) -> None:
    ended = command(
        "evaluate", f"checkpoint={trained}/checkpoints/best.ckpt", "data=synthetic", f"data.root={worlds}", "data.scenes.test=3",
        "data.workers=1", "data.calibration=noisy", "trainer.accelerator=cpu", "hydra.run.dir=other",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "test/iou/drivable" in metrics_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "checkpoint=FILE must be given"),
        (("checkpoint=none.ckpt",), "none.ckpt is not a file"),
        (("checkpoint={best}", "split=tset"), "did you mean test"),
        (("checkpoint={best}", "data=synthetic", "data.rig=surround"), "6 cameras"),
    ],
)
def test_nonsense_gets_a_sentence(command, trained: Path, arguments: tuple[str, ...], sentence: str) -> None:
    best = f"{trained}/checkpoints/best.ckpt"
    ended = command("evaluate", *(argument.format(best=best) for argument in arguments), "trainer.accelerator=cpu")
    assert ended.code == 1
    assert sentence in ended.err
    assert "Traceback" not in ended.err


def test_what_is_left_without_a_camera() -> None:
    """Images are read by IPM as they are, so every class's prediction is known by hand."""
    grid = BEVGrid((-4.0, 4.0), (-4.0, 4.0), 1.0)
    model = BEVModel(nn.Identity(), IPM(FeatureShape(3, 32, 48, 3), grid), nn.Identity()).eval()
    rig = ring(3, (32, 48), 2, torch.device("cpu"))
    images, target, valid = torch.randn(2, 3, 3, 32, 48), torch.rand(2, 3, 8, 8) < 0.5, torch.rand(2, 3, 8, 8) < 0.9
    batch = batch_of(images, rig, target, valid)
    classes, cameras = ("x", "y", "z"), ("c0", "c1", "c2")
    task = Evaluation(model, classes, classes, BEVIoU(classes, grid), without=cameras)
    task.test_step(batch, 0)
    for number, metric in enumerate(task.without):
        seen = [i for i in range(3) if i != number]
        left = Cameras(rig.intrinsics[:, seen], rig.ego_from_cam[:, seen], (32, 48))
        two = IPM(FeatureShape(3, 32, 48, 2), grid)
        said = two(images[:, seen], left) >= 0
        both = (said & target & valid).sum((0, 2, 3))
        either = ((said | target) & valid).sum((0, 2, 3))
        found = metric.compute()
        assert [float(found[f"iou/{name}"]) for name in classes] == pytest.approx((both / either).tolist())
        assert float(found["iou/x"]) != float(task.metric.compute()["iou/x"])
