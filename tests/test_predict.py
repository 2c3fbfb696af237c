"""Prediction from a checkpoint on images that stand alone."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import CAMERA
from PIL import Image

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.load_model import load_model
from bevreshape.data.sources.folder.dataset import open_frames
from bevreshape.deployment.predict import overlay
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reporting.class_colors import class_palette

pytestmark = pytest.mark.slow

CLASSES = ("road", "lane")
GRID = BEVGrid((1.0, 9.0), (-4.0, 4.0), 0.5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 128, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(folder / "images" / f"frame{number}.png")
    (folder / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [CAMERA]}))
    return folder


def test_every_image_gets_its_three_files(command, trained: Path, images: Path, tmp_path: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    ended = command(
        "predict",
        f"checkpoint={best}",
        f"input={images}",
        "out=out",
        "batch_size=2",
        "num_workers=0",
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

    with Image.open(tmp_path / "out" / "frame3_overlay.png") as drawn:
        assert drawn.size == (128, 64)  # as it was given
    model, _, _ = load_model(str(best))
    stored = Image.open(images / "images" / "frame3.png").resize((64, 32), Image.Resampling.BOX)
    image = torch.from_numpy(np.array(stored)).permute(2, 0, 1)[None, None].float() / 255
    intrinsics = torch.tensor([[40.0, 0, 31.5], [0, 40.0, 15.5], [0, 0, 1]])[None, None]
    pose = torch.tensor(CAMERA["ego_from_cam"])[None, None]
    with torch.no_grad():
        expected = model(image, Cameras(intrinsics, pose, (32, 64))).heads["segmentation"][0].sigmoid()
    # another antialiasing filter than the reader's: alike, not equal
    assert (found - expected).abs().mean() < 0.03


def test_one_image_with_its_calibration(command, trained: Path, images: Path, tmp_path: Path) -> None:
    ended = command(
        "predict", f"checkpoint={trained}/checkpoints/best.ckpt", f"input={images}/images/frame1.png",
        f"calibration={images}/calibration.json", "out=one", "num_workers=0",
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
        ({"ego_from_cam": [[0, 0, -1, 1.2], [1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]]}, "never observes"),
    ],
)
def test_invalid_calibration_is_refused(
    command, trained: Path, images: Path, change: dict[str, object], words: str
) -> None:
    (images / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [{**CAMERA, **change}]}))
    ended = command("predict", f"checkpoint={trained}/checkpoints/best.ckpt", f"input={images}", "num_workers=0")
    assert ended.code == 1
    assert words in ended.err
    assert "Traceback" not in ended.err


def test_a_bad_image_stops_with_its_name_and_keeps_the_others(
    command, trained: Path, images: Path, tmp_path: Path
) -> None:
    broken = images / "images" / "frame4.png"
    broken.write_bytes(broken.read_bytes()[:200])
    ended = command(
        "predict",
        f"checkpoint={trained}/checkpoints/best.ckpt",
        f"input={images}",
        "batch_size=1",
        "num_workers=0",
    )
    assert ended.code == 1
    assert "frame4.png" in ended.err
    assert "Traceback" not in ended.err
    assert (tmp_path / "predictions" / "frame3.npz").exists()


def painted_by_hand(image: np.ndarray, bev: np.ndarray, rays: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Half of the class's color on every pixel whose ray, solved for by OpenCV, meets a cell of ``GRID``, one by
    one."""
    colors = [*class_palette(CLASSES).values()]
    painted = image.astype(float)
    for v, u in np.ndindex(*image.shape[:2]):
        x, y, z = pose[:3, :3] @ rays[v, u]
        if not np.isfinite(z) or z >= 0:
            continue
        reach = pose[2, 3] / -z
        row = (GRID.forward_m[1] - (pose[0, 3] + reach * x)) // GRID.cell_m
        col = (GRID.left_m[1] - (pose[1, 3] + reach * y)) // GRID.cell_m
        if 0 <= row < GRID.rows and 0 <= col < GRID.cols:
            for plane, color in zip(bev, colors, strict=True):
                if plane[int(row), int(col)]:
                    painted[v, u] = (image[v, u] + np.array(color, float)) / 2
    return painted


@pytest.mark.parametrize("model", [None, "opencv", "fisheye"])
def test_overlays_follow_the_distortion_of_the_stored_image(tmp_path: Path, model: str | None) -> None:
    size, k = (120, 160), np.array([[90.0, 0, 82.0], [0, 88.0, 57.0], [0, 0, 1]])
    coefficients = {None: (), "opencv": (-0.2, 0.04, 0.002, -0.001), "fisheye": (0.05, -0.02, 0.004, -0.001)}[model]
    down = np.deg2rad(25)
    pose = np.eye(4)
    pose[:3, :3] = [[0, -np.sin(down), np.cos(down)], [-1, 0, 0], [0, -np.cos(down), -np.sin(down)]]
    pose[:3, 3] = 0.5, -0.3, 1.6
    camera = {"name": "front", "image_size": [*size], "intrinsics": k.tolist(), "ego_from_cam": pose.tolist()}
    if model is not None:
        camera["distortion"] = {"model": model, "coefficients": [*coefficients]}
    (tmp_path / "images").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    (tmp_path / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [camera]}))
    bev = np.random.default_rng(1).random((2, *GRID.shape)) < 0.3
    spec = BEVSpec(GRID, CLASSES, ("front",), (60, 80))
    rig = open_frames(tmp_path, (60, 80)).calibration.of("a")
    found = overlay([image], rig, [0], torch.from_numpy(bev), spec)

    pixels = np.stack(np.meshgrid(*(np.arange(float(side)) for side in reversed(size))), -1).reshape(-1, 1, 2)
    if model == "fisheye":
        points = cv2.fisheye.undistortPoints(pixels, k, np.array(coefficients))
    else:
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        points = cv2.undistortPoints(pixels, k, np.array(coefficients or (0.0,) * 4), criteria=criteria)
    rays = np.concatenate([points.reshape(*size, 2), np.ones((*size, 1))], -1)
    expected = painted_by_hand(image, bev, rays, pose)
    assert found.shape == image.shape
    legend = np.abs(found.astype(float) - expected).max(-1) > 1
    legend[:40, :] = False  # where the legend may be
    assert legend.mean() < 0.002  # edges of cells, to a part of a pixel
    assert (np.abs(expected - image).max(-1) > 1)[40:].mean() > 0.2
    for color in class_palette(CLASSES).values():
        assert (found[:40] == color).all(-1).any()


def test_output_that_is_nan_is_not_written(command, trained: Path, images: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    for key, value in checkpoint["state_dict"].items():
        if key.endswith("running_var"):
            value.fill_(-1.0)  # finite, as all weights must be, but no variance
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    ended = command("predict", "checkpoint=bad.ckpt", f"input={images}", "out=out", "num_workers=0", "device=cpu")
    assert (ended.code, "Traceback" in ended.err) == (3, False)
    assert "the network's output is NaN in 1024 cells of frame 'frame0'" in ended.err
    assert not (tmp_path / "out").exists()


def test_drawings_do_not_become_frames(command, trained: Path, images: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in (images / "images").iterdir())
    best = trained / "checkpoints" / "best.ckpt"
    ended = command("predict", f"checkpoint={best}", f"input={images}", "out=mine/../mine/images", "device=cpu")
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "is the folder of the images" in ended.err
    assert sorted(path.name for path in (images / "images").iterdir()) == before


@pytest.mark.parametrize("device", ["meta", "gpu", "hpu", "cuda:99", "cpu:x"])
def test_unavailable_device(command, trained: Path, images: Path, device: str) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    ended = command("predict", f"checkpoint={best}", f"input={images}", f"device='{device}'")
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert f"device={device} is not available here" in ended.err
