"""``predict`` on videos, and on folders of images that become a video, by its command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import CAMERA
from PIL import Image
from videos import greys, read_video, write_video

pytestmark = pytest.mark.slow


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    """The argument that names the calibration of a front camera."""
    (tmp_path / "calibration.json").write_text(json.dumps({"version": 1, "cameras": [CAMERA]}))
    return f"calibration={tmp_path / 'calibration.json'}"


def sky(images: list[np.ndarray]) -> list[float]:
    """The brightness of the upper left corner of drawn frames, where no class is painted."""
    return [float(image[10:100, 10:100].mean()) for image in images]


def test_a_video_becomes_a_video(command, trained: Path, tmp_path: Path, calibration: str) -> None:
    best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    write_video(tmp_path / "drive.mp4", greys(11, (64, 128)), rate=15)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "drive_bev.mp4").write_bytes(b"old")
    ended = command("predict", best, "input=drive.mp4", calibration, "batch_size=4", "device=cpu")
    assert ended.code == 0, ended.err
    assert ended.out == "11 frames · predictions/drive_bev.mp4\n"
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["drive_bev.mp4"]
    images, times = read_video(tmp_path / "predictions" / "drive_bev.mp4")
    np.testing.assert_allclose(sky(images), [40 + 5 * k for k in range(11)], atol=3)
    np.testing.assert_allclose(times, [k / 15 for k in range(11)], atol=0.001)

    ended = command(
        "predict",
        best,
        "input=drive.mp4",
        calibration,
        "every=5",
        "frames=true",
        "video=false",
        "out=files",
        "device=cpu",
    )
    assert (ended.code, ended.out) == (0, "3 frames · files\n"), ended.err
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [
        f"drive_{number:06d}{end}" for number in (0, 5, 10) for end in (".npz", "_bev.png", "_overlay.png")
    ]


def test_a_folder_becomes_a_video(command, trained: Path, tmp_path: Path, calibration: str) -> None:
    (tmp_path / "mine").mkdir()
    for number, image in enumerate(greys(6, (64, 128))):
        Image.fromarray(image).save(tmp_path / "mine" / f"{number:03d}.png")
    best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    given = (best, "input=mine", calibration, "video=true", "fps=4", "num_workers=0", "device=cpu")
    ended = command("predict", *given)
    assert (ended.code, ended.out) == (0, "6 frames · predictions\n"), ended.err
    images, times = read_video(tmp_path / "predictions" / "mine_bev.mp4")
    np.testing.assert_allclose(sky(images), [40 + 5 * k for k in range(6)], atol=3)
    np.testing.assert_allclose(times, [k / 4 for k in range(6)], atol=0.001)
    assert len(list((tmp_path / "predictions").glob("*.npz"))) == 6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("input=text.mp4",), "text.mp4: this is no video of a known format"),
        (("input=missing.mp4",), "missing.mp4: there is no such folder, image or video"),
        (("input=drive.mp4", "video=false"), "frames and video are both off, so that nothing would be written"),
        (("input=drive.mp4", "every=0"), "every=0 must be"),
        (("input=drive.mp4", "fps=0"), "fps=0 must be"),
        (("input=drive.mp4", "out=calibration.json"), "cannot write calibration.json/drive_bev.mp4"),
    ],
)
def test_refusals(command, trained: Path, tmp_path: Path, calibration: str, given: tuple[str, ...], words: str) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "drive.mp4", greys(2, (64, 128)))
    before = {path.name for path in tmp_path.iterdir()}
    ended = command("predict", f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", calibration, "device=cpu", *given)
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert words in ended.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_without_pyav(
    command, trained: Path, tmp_path: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose video cannot be written is refused before anything is."""
    (tmp_path / "mine").mkdir()
    Image.fromarray(greys(1, (64, 128))[0]).save(tmp_path / "mine" / "a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    ended = command("predict", best, "input=mine", calibration, "video=true", "num_workers=0", "device=cpu")
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "pip install 'bevreshape[video]'" in ended.err
    assert not (tmp_path / "predictions").exists()
