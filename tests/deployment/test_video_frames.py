"""Videos are predicted frame by frame, and drawn upright, unmirrored and in order."""

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from videos import ONE, UPRIGHT, read_video, turn, write_video

from bevreshape.bev_spec import BEVSpec
from bevreshape.data.video import VideoReader
from bevreshape.deployment.frames import Frames, open_input
from bevreshape.deployment.predict import predictions, write
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reporting.class_colors import COLORS
from bevreshape.reporting.drawing import GROUND, SHEET_PX, UNKNOWN

GRID = BEVGrid((2.0, 18.0), (-8.0, 8.0), 1.0)
SIZE = (192, 256)
K = np.array([[120.0, 0, 127.5], [0, 120.0, 60.0], [0, 0, 1]])
POSE = np.array([[0.0, 0, 1, 0.5], [-1, 0, 0, 0], [0, -1, 0, 6], [0, 0, 0, 1]])
BACK = np.array([[0.0, 0, -1, -0.5], [1, 0, 0, 0], [0, -1, 0, 6], [0, 0, 0, 1]])
FRAMES = 7


def block(frame: int) -> tuple[float, float, float, float]:
    """What is red in a frame: x and y from and to, in metres. It lies on the left and moves ahead."""
    return 8.0 + frame, 11.0 + frame, 1.0, 4.0


def ground(pose: np.ndarray) -> np.ndarray:
    """The (x, y) in metres that every pixel (H, W) shows, NaN above the horizon."""
    v, u = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), indexing="ij")
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(SIZE)], -1) @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = np.where(rays[..., 2] < 0, -pose[2, 3] / rays[..., 2], np.nan)
    return pose[:2, 3] + reach[..., None] * rays[..., :2]


def inside(points: np.ndarray, frame: int, margin: float = 0.0) -> np.ndarray:
    """Which points (…, 2) are in the block, at least ``margin`` metres from its edge."""
    low_x, high_x, low_y, high_y = block(frame)
    x, y = points[..., 0], points[..., 1]
    return (x > low_x + margin) & (x < high_x - margin) & (y > low_y + margin) & (y < high_y - margin)


def scene(frame: int, pose: np.ndarray = POSE) -> np.ndarray:
    """The image of a grey world with the red block on its ground."""
    image = np.full((*SIZE, 3), 120, np.uint8)
    image[inside(ground(pose), frame)] = 230, 20, 20
    return image


class FindRed(torch.nn.Module):
    """A class is where any camera sees red, read at the centre of every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, images: torch.Tensor, cameras: object) -> SimpleNamespace:
        b, n, _, height, width = images.shape
        logits = torch.full((b, 1, *GRID.shape), -10.0)
        for i, camera, row, col in np.ndindex(b, n, *GRID.shape):
            at = np.array([GRID.forward_m[1] - (row + 0.5), GRID.left_m[1] - (col + 0.5), 0, 1])
            pose, k = (part[i, camera].double().numpy() for part in (cameras.ego_from_cam, cameras.intrinsics))
            x, y, z = k @ (np.linalg.inv(pose) @ at)[:3]
            if z > 0 and 0 <= round(x / z) < width and 0 <= round(y / z) < height:
                red, green, _ = images[i, camera, :, round(y / z), round(x / z)]
                logits[i, 0, row, col] = max(logits[i, 0, row, col], self.scale.item() * (red - green - 0.4))
        return SimpleNamespace(heads={"segmentation": logits})


def write_calibration(path: Path, **poses: np.ndarray) -> Path:
    """Write the calibration of these cameras."""
    cameras = [
        {"name": name, "image_size": [*SIZE], "intrinsics": K.tolist(), "ego_from_cam": pose.tolist()}
        for name, pose in poses.items()
    ]
    path.write_text(json.dumps({"version": 1, "cameras": cameras}))
    return path


def spec_of(*cameras: str) -> BEVSpec:
    """What the stand-in of a model is built for."""
    return BEVSpec(GRID, ("thing",), cameras, (96, 128))


def drive(folder: Path, matrix: tuple[int, ...] = UPRIGHT) -> Path:
    """Write a video of the block, stored turned by the inverse of the display matrix."""
    images = [scene(frame) for frame in range(FRAMES)]
    if matrix[0] == 0:
        images = [np.ascontiguousarray(np.rot90(image)) for image in images]  # shown turned back, clockwise
    elif matrix[0] < 0:
        images = [np.ascontiguousarray(image[::-1, ::-1]) for image in images]
    path = write_video(folder / "drive.mp4", images, rate=20)
    if matrix != UPRIGHT:
        turn(path, matrix)
    return path


def near(found: np.ndarray, color: tuple[float, ...], tolerance: float = 25) -> np.ndarray:
    """Which pixels (…, 3) have a color; the chroma of a video is coarse."""
    return np.abs(found.astype(float) - color).max(-1) < tolerance


def check_sheet(sheet: np.ndarray, frame: int) -> None:
    """Compare image and bird's-eye view of one drawn frame with the block's metres."""
    cell = SHEET_PX // GRID.rows
    width = round(SIZE[1] * SHEET_PX / SIZE[0])
    view = sheet[: cell * GRID.rows, width + 6 :][cell // 2 :: cell, cell // 2 :: cell][: GRID.rows, : GRID.cols]
    rows, cols = np.meshgrid(np.arange(GRID.rows), np.arange(GRID.cols), indexing="ij")
    centers = np.stack([GRID.forward_m[1] - (rows + 0.5), GRID.left_m[1] - (cols + 0.5)], -1)
    assert near(view[inside(centers, frame, 0.4)], COLORS[0]).all()
    outside = ~inside(centers, frame, -1.5) & ~near(view, UNKNOWN)
    assert outside.sum() > 50
    assert near(view[outside], GROUND).all()

    points = ground(POSE)
    # every pixel of the image is a square of the sheet
    v, u = (np.round((np.arange(side) + 0.5) * SHEET_PX / SIZE[0] - 0.5).astype(int) for side in SIZE)
    shown = sheet[v][:, u]
    mixed = (np.array((230, 20, 20)) + COLORS[0]) / 2
    assert near(shown[inside(points, frame, 0.5)], tuple(mixed), 45).all()
    assert inside(points, frame, 0.5).sum() > 20
    away = ~inside(points, frame, -2)
    assert near(shown[away], (120, 120, 120)).all()


@pytest.mark.parametrize("matrix", [UPRIGHT, (0, ONE, -ONE, 0), (-ONE, 0, 0, -ONE)], ids=["upright", "90", "180"])
def test_the_drawn_video(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = drive(tmp_path, matrix)
    spec = spec_of("front")
    frames = open_input(path, spec, calibration=write_calibration(tmp_path / "calibration.json", front=POSE))
    predicted = predictions(FindRed(), spec, frames, batch_size=4)
    assert write(predicted, spec, frames, None, tmp_path / "out" / "drive_bev.mp4") == FRAMES
    images, times = read_video(tmp_path / "out" / "drive_bev.mp4")
    assert len(images) == FRAMES
    np.testing.assert_allclose(times, [frame / 20 for frame in range(FRAMES)], atol=0.001)
    assert {image.shape[0] % 2 + image.shape[1] % 2 for image in images} == {0}
    for number, image in enumerate(images):
        check_sheet(image, number)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["drive_bev.mp4"]


def test_files_of_every_second_frame(tmp_path: Path) -> None:
    spec = spec_of("front")
    calibration = write_calibration(tmp_path / "calibration.json", front=POSE)
    frames = open_input(drive(tmp_path), spec, calibration=calibration, every=2)
    assert (frames.count, frames.rate) == (4, 10)
    assert write(predictions(FindRed(), spec, frames), spec, frames, tmp_path / "out", None) == 4
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"drive_{number:06d}{end}" for number in (0, 2, 4, 6) for end in ("_bev.png", "_overlay.png", ".npz")
    }
    for number in (0, 6):
        with np.load(tmp_path / "out" / f"drive_{number:06d}.npz") as arrays:
            row, col = np.argwhere(arrays["probabilities"][0] > 0.5).mean(0)
        assert row == pytest.approx(GRID.forward_m[1] - 9.5 - number - 0.5, abs=0.6)
        assert col == pytest.approx(GRID.left_m[1] - 2.5 - 0.5, abs=0.6)


def names_of(frames: Frames) -> list[str]:
    """The names of all frames."""
    return [name for batch, _ in frames.batches(2) for name in batch.names]


def two_cameras(folder: Path, back_rate: int = 20, back_count: int = FRAMES) -> Path:
    """A folder with a video of the block ahead, and one of the camera behind, which sees none."""
    folder.mkdir()
    write_calibration(folder / "calibration.json", back=BACK, front=POSE)
    write_video(folder / "front.mp4", [scene(frame) for frame in range(FRAMES)], rate=20)
    write_video(folder / "back.mkv", [scene(frame, BACK) for frame in range(back_count)], rate=back_rate)
    return folder


def test_a_folder_of_videos(tmp_path: Path) -> None:
    spec = spec_of("front", "back")
    frames = open_input(two_cameras(tmp_path / "monday"), spec)
    assert (frames.name, frames.count) == ("monday", FRAMES)
    for number, prediction in enumerate(predictions(FindRed(), spec, frames)):
        assert prediction.name == f"monday_{number:06d}"
        assert [near(image, (230, 20, 20), 60).any() for image in prediction.images] == [True, False]
        found = (prediction.probabilities[0] > 0.5).numpy()
        assert np.argwhere(found).mean(0)[0] == pytest.approx(GRID.forward_m[1] - 9.5 - number - 0.5, abs=0.6)


def test_the_shortest_video_ends_the_drive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = open_input(two_cameras(tmp_path / "monday", back_count=5), spec_of("front", "back"))
    assert frames.count == 5
    assert names_of(frames) == [f"monday_{number:06d}" for number in range(5)]
    assert "back.mkv ends at frame 5, before the other cameras" in caplog.text


def test_one_camera_of_two(tmp_path: Path) -> None:
    folder = two_cameras(tmp_path / "monday")
    (folder / "back.mkv").unlink()
    assert len(names_of(open_input(folder, spec_of("front")))) == FRAMES


def test_videos_of_different_rates_are_refused(tmp_path: Path) -> None:
    frames = open_input(two_cameras(tmp_path / "monday", back_rate=15), spec_of("front", "back"))
    with pytest.raises(InputError, match=r"front\.mp4: its frame \d is 0\.\d+ s after the first one.*back\.mkv 0\."):
        names_of(frames)


def test_a_video_for_each_camera(tmp_path: Path) -> None:
    folder, spec = two_cameras(tmp_path / "monday"), spec_of("front", "back")
    calibration = folder / "calibration.json"
    with pytest.raises(InputError, match=r"a video shows one camera, but .* has 2; pass a folder with back\.mp4, fr"):
        open_input(folder / "front.mp4", spec, calibration=calibration)
    (folder / "back.avi").write_bytes(b"")
    with pytest.raises(InputError, match=r"camera 'back' has two videos, back\.avi and back\.mkv"):
        open_input(folder, spec)
    (folder / "back.avi").unlink()
    (folder / "back.mkv").unlink()
    with pytest.raises(InputError, match=r"no video of camera 'back'; .* must hold back\.mp4, front\.mp4"):
        open_input(folder, spec)
    (folder / "front.mp4").rename(folder / "drive.mp4")
    with pytest.raises(InputError, match=r"drive\.mp4 is named like no camera of .*calibration\.json; rename it"):
        open_input(folder, spec)


def test_a_file_that_is_neither(tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_bytes(b"x")
    calibration = write_calibration(tmp_path / "calibration.json", front=POSE)
    with pytest.raises(InputError, match=r"a\.ts: this is no image .* and no video .*; convert it"):
        open_input(tmp_path / "a.ts", spec_of("front"), calibration=calibration)


def test_a_video_of_another_size(tmp_path: Path) -> None:
    calibration = write_calibration(tmp_path / "calibration.json", front=POSE)
    path = write_video(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 2)
    with pytest.raises(InputError, match=r"a\.mp4: it is 64×64 .* but .*calibration\.json is for 192×256"):
        names_of(open_input(path, spec_of("front"), calibration=calibration))


def test_memory_does_not_grow_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode a batch only after the one before is written."""
    decoded, drawn, ahead = 0, 0, []
    original = VideoReader.frames

    def counted(reader: VideoReader, every: int = 1):
        nonlocal decoded
        for frame in original(reader, every):
            decoded += 1
            yield frame

    monkeypatch.setattr(VideoReader, "frames", counted)
    spec = spec_of("front")
    calibration = write_calibration(tmp_path / "calibration.json", front=POSE)
    path = write_video(tmp_path / "a.mp4", [scene(0)] * 20)
    frames = open_input(path, spec, calibration=calibration)
    for _ in predictions(FindRed(), spec, frames, batch_size=3):
        drawn += 1
        ahead.append(decoded - drawn)
    assert drawn == 20
    assert max(ahead) < 3


def test_grey_videos(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "gray"
        frame = av.VideoFrame.from_ndarray(np.full(SIZE, 77, np.uint8), format="gray")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    calibration = write_calibration(tmp_path / "calibration.json", front=POSE)
    spec = spec_of("front")
    with pytest.raises(InputError, match=r"the video is grey, not RGB; train with data\.image_mode=grey"):
        names_of(open_input(path, spec, calibration=calibration))
    frames = open_input(path, BEVSpec(GRID, ("thing",), ("front",), (96, 128), "grey"), calibration=calibration)
    ((batch, _),) = frames.batches(1)
    assert (batch.images == 77).all()


def test_frames_with_a_calibration_each(tmp_path: Path) -> None:
    """A calibration of single frames names them as predict does."""
    calibration = write_calibration(tmp_path / "calibration.json", front=POSE)
    content = json.loads(calibration.read_text())
    higher = POSE.copy()
    higher[2, 3] = 7
    content["frames"] = {"drive_000001": {"front": {"ego_from_cam": higher.tolist()}}}
    calibration.write_text(json.dumps(content))
    frames = open_input(drive(tmp_path), spec_of("front"), calibration=calibration)
    heights = [float(h) for batch, _ in frames.batches(4) for h in batch.cameras.ego_from_cam[:, 0, 2, 3]]
    assert heights == [6, 7, *[6] * (FRAMES - 2)]
