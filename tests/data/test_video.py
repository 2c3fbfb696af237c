"""Decoding of videos: every frame, in order, at its time, upright, and what is missing is said."""

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import ONE, greys, read_video, turn, write_video

from bevreshape.data.video import VideoReader
from bevreshape.errors import InputError


def values(path: Path) -> list[int]:
    """The k of :func:`videos.greys` of every frame that is read."""
    return [round((float(frame.image.mean()) - 40) / 5) for frame in VideoReader(path).frames()]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.MOV", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
    ],
)
def test_every_frame_in_order_at_its_time(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, greys(20), rate=25, codec=codec)
    reader = VideoReader(path)
    assert (reader.count, reader.rate) == (20, 25)
    frames = list(reader.frames())
    assert [frame.number for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.image.mean() for frame in frames], [40 + 5 * k for k in range(20)], atol=2)
    np.testing.assert_allclose([frame.seconds for frame in frames], [k / 25 for k in range(20)], atol=0.001)
    assert {frame.image.shape for frame in frames} == {(32, 48, 3)}


def test_every_third_frame(tmp_path: Path) -> None:
    frames = list(VideoReader(write_video(tmp_path / "a.mp4", greys(8))).frames(3))
    assert [frame.number for frame in frames] == [0, 3, 6]
    np.testing.assert_allclose([frame.image.mean() for frame in frames], [40, 55, 70], atol=2)
    np.testing.assert_allclose([frame.seconds for frame in frames], [0, 0.1, 0.2], atol=1e-4)


def test_a_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [Fraction(ms, 1000) for ms in (500, 533, 600, 607, 1000, 1900)]  # of a recording that was cut at its start
    frames = list(VideoReader(write_video(tmp_path / "a.mp4", greys(6), times)).frames())
    np.testing.assert_allclose([frame.seconds for frame in frames], [0, 0.033, 0.1, 0.107, 0.5, 1.4], atol=1e-4)


def test_the_number_of_frames_may_be_unknown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", greys(6), options={"live": "1"})
    assert VideoReader(path).count is None
    assert values(path) == list(range(6))


def corners() -> np.ndarray:
    """An image (32, 48, 3) whose four corners differ."""
    image = np.full((32, 48, 3), 128, np.uint8)
    image[:16, :24] = 220, 30, 30
    image[:16, 24:] = 30, 200, 30
    image[16:, :24] = 30, 60, 220
    return image


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((ONE, 0, 0, ONE), lambda image: image),
        ((0, ONE, -ONE, 0), lambda image: np.rot90(image, -1)),  # clockwise, as a phone held upright stores it
        ((-ONE, 0, 0, -ONE), lambda image: np.rot90(image, 2)),
        ((0, -ONE, ONE, 0), lambda image: np.rot90(image, 1)),
        ((-ONE, 0, 0, ONE), np.fliplr),
        ((0, ONE, ONE, 0), lambda image: image.swapaxes(0, 1)),
    ],
)
def test_frames_are_upright(
    tmp_path: Path, matrix: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.mp4", [corners()] * 3)
    turn(path, matrix)
    for frame in VideoReader(path).frames():
        expected = shown(corners())
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image.astype(float) - expected).mean() < 4
    assert ("its metadata turn it" in caplog.text) == (matrix != (ONE, 0, 0, ONE))
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] > 0:  # OpenCV turns too, but does not mirror
        np.testing.assert_allclose(read_video(path)[0][0].astype(float), frame.image, atol=4)


def test_a_turn_by_45_degrees_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [corners()] * 3)
    turn(path, (46341, 46341, -46341, 46341))
    with pytest.raises(InputError, match="by no multiple of 90°"):
        list(VideoReader(path).frames())


@pytest.mark.parametrize("matrix", [None, 1])
def test_colors(tmp_path: Path, matrix: int | None) -> None:
    """Read BT.709 where it is stated, otherwise BT.601, as OpenCV and FFmpeg do."""
    (frame,) = VideoReader(write_video(tmp_path / "a.mp4", [corners()], matrix=matrix)).frames()
    assert np.abs(frame.image[4:12, 4:20].astype(float) - (220, 30, 30)).max() < 5
    assert np.abs(frame.image[4:12, 28:44].astype(float) - (30, 200, 30)).max() < 5


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.mp4", {"movflags": "+faststart"}, "it has 30 frames, of which"),
        ("a.mkv", {}, "it lasts 1.0 s, but the last of its"),
        ("a.avi", {}, "it has 30 frames, of which"),
    ],
)
def test_a_cut_file_is_read_as_far_as_it_goes(
    tmp_path: Path, name: str, options: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (30, 32, 48, 3), dtype=np.uint8)
    images = [grey + part for grey, part in zip(greys(30), noise, strict=True)]
    path = write_video(tmp_path / name, images, codec="mpeg4" if name == "a.avi" else "libx264", options=options)
    content = path.read_bytes()
    whole = [frame.image for frame in VideoReader(path).frames()]
    assert len(whole) == 30
    assert not caplog.records
    path.write_bytes(content[: len(content) * 2 // 3])
    found = list(VideoReader(path).frames())
    assert 10 < len(found) < 25
    assert words in caplog.text
    for frame in found:
        nearest = min(range(30), key=lambda k: np.abs(whole[k].astype(float) - frame.image).mean())
        assert nearest == round(frame.seconds * 30)


def test_an_index_that_is_cut_off(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", greys(30))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"a\.mp4: this is no video of a known format .*index is cut off"):
        VideoReader(path)


def test_a_video_without_a_whole_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", greys(5))
    content = path.read_bytes()
    start = content.index(bytes.fromhex("1f43b675"))  # of the first cluster
    path.write_bytes(content[: start + 12])
    with pytest.raises(InputError, match="no frame of the video can be decoded"):
        list(VideoReader(path).frames())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile real.mp4\n",
        b"\xff\xd8\xff\xe0",
    ],
    ids=["empty", "text", "playlist", "list", "image"],
)
def test_a_file_that_is_no_video_and_names_no_other(tmp_path: Path, content: bytes) -> None:
    write_video(tmp_path / "real.mp4", greys(3))
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4: this is no video of a known format"):
        VideoReader(tmp_path / "a.mp4")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such video"):
        VideoReader(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="it is a folder, not a file"):
        VideoReader(tmp_path)


def test_sound_alone(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="holds no video that can be decoded"):
        VideoReader(tmp_path / "a.mp4")


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'bevreshape\[video\]'"):
        VideoReader(tmp_path / "a.mp4")
