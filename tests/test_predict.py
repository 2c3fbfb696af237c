"""Prediction from a checkpoint on pictures that stand alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bevreshape.build import load_model
from bevreshape.geometry import Cameras

CAMERA = {
    "name": "front",
    "image_size": [64, 128],
    "intrinsics": [[80.0, 0, 63.5], [0, 80.0, 31.5], [0, 0, 1]],
    "ego_from_cam": [[0, 0, 1, 1.2], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]],
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 128, 3), dtype=np.uint8)
    for number, picture in enumerate(noise):
        Image.fromarray(picture).save(folder / "images" / f"frame{number}.png")
    (folder / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [CAMERA]}))
    return folder


def test_every_picture_gets_its_three_files(command, trained: Path, pictures: Path, tmp_path: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    ended = command(
        "predict",
        f"checkpoint={best}",
        f"input={pictures}",
        "out=out",
        "batch_size=2",
        "loader_workers=0",
        "device=cpu",
    )
    assert ended.code == 0, ended.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"frame{number}{end}" for number in range(5) for end in (".npz", "_bev.png", "_overlay.png")
    )
    with np.load(tmp_path / "out" / "frame3.npz") as arrays:
        assert list(arrays["classes"]) == ["drivable", "lane", "crossing", "vehicle"]
        assert arrays["probabilities"].shape == (4, 16, 16)
        assert arrays["valid"].shape == (16, 16)
        found = torch.from_numpy(arrays["probabilities"]).float()

    model, _, _ = load_model(str(best))
    stored = Image.open(pictures / "images" / "frame3.png").resize((64, 32), Image.Resampling.BOX)
    image = torch.from_numpy(np.array(stored)).permute(2, 0, 1)[None, None].float() / 255
    intrinsics = torch.tensor([[40.0, 0, 31.5], [0, 40.0, 15.5], [0, 0, 1]])[None, None]
    pose = torch.tensor(CAMERA["ego_from_cam"])[None, None]
    with torch.no_grad():
        expected = model(image, Cameras(intrinsics, pose, (32, 64)))[0].sigmoid()
    # another antialiasing filter than the reader's: alike, not equal
    assert (found - expected).abs().mean() < 0.03


def test_one_picture_with_its_calibration(command, trained: Path, pictures: Path, tmp_path: Path) -> None:
    ended = command(
        "predict", f"checkpoint={trained}/checkpoints/best.ckpt", f"input={pictures}/images/frame1.png",
        f"calibration={pictures}/calibration.json", "out=one", "loader_workers=0",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert (tmp_path / "one" / "frame1_bev.png").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intrinsics": [[0, 0, 63.5], [0, 80.0, 31.5], [0, 0, 1]]}, "singular"),
        ({"ego_from_cam": [[0, 0, 1, 1.2], [1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]]}, "mirrored"),
        ({"ego_from_cam": [[0, 0, 1, 1200], [-1, 0, 0, 0], [0, -1, 0, 1600], [0, 0, 0, 1]]}, "metres"),
        ({"image_size": [640, 1280]}, "64"),
        ({"ego_from_cam": [[0, 0, -1, 1.2], [1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]]}, "sees"),
    ],
)
def test_calibration_that_cannot_be_is_refused(
    command, trained: Path, pictures: Path, change: dict[str, object], words: str
) -> None:
    (pictures / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [{**CAMERA, **change}]}))
    ended = command("predict", f"checkpoint={trained}/checkpoints/best.ckpt", f"input={pictures}", "loader_workers=0")
    assert ended.code == 1
    assert words in ended.err
    assert "Traceback" not in ended.err


def test_a_bad_picture_stops_with_its_name_and_keeps_the_others(
    command, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    broken = pictures / "images" / "frame4.png"
    broken.write_bytes(broken.read_bytes()[:200])
    ended = command(
        "predict",
        f"checkpoint={trained}/checkpoints/best.ckpt",
        f"input={pictures}",
        "batch_size=1",
        "loader_workers=0",
    )
    assert ended.code == 1
    assert "frame4.png" in ended.err
    assert "Traceback" not in ended.err
    assert (tmp_path / "predictions" / "frame3.npz").exists()
