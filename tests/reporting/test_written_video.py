"""Writing of videos: every image, in order, at its time, in a file that is whole or absent."""

import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT
from videos import greys, read_video

import bevreshape.reporting.video as module
from bevreshape.errors import InputError
from bevreshape.reporting.video import open_video
from bevreshape.storage.files import remove_abandoned

av = pytest.importorskip("av", reason="videos need pip install 'bevreshape[video]'")


def halves(left: tuple[int, int, int], right: tuple[int, int, int], size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) of two colors."""
    image = np.full((*size, 3), right, np.uint8)
    image[:, : size[1] // 2] = left
    return image


@pytest.mark.parametrize("size", [(40, 64), (41, 67)])
def test_images_times_and_colors(tmp_path: Path, size: tuple[int, int]) -> None:
    images = [halves((10 * k, 200 - 10 * k, 60), (92, 106, 158), size) for k in range(12)]
    times = [0.04 * k if k < 6 else 0.2 + 0.5 * (k - 5) for k in range(12)]  # two rates
    path = tmp_path / "new" / "a.mp4"
    with open_video(path, Fraction(25)) as write:
        for image, seconds in zip(images, times, strict=True):
            write(image, seconds)
    found, seen_at = read_video(path)
    assert len(found) == 12
    np.testing.assert_allclose(seen_at, times, atol=0.001)
    for image, given in zip(found, images, strict=True):
        assert image.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        for columns in (slice(2, 28), slice(36, 62)):
            assert np.abs(image[2:38, columns].astype(float) - given[2:38, columns]).max() < 9
        if size[0] % 2:
            assert image[-1].mean() > 180  # white below and on the right
            assert image[:, -1].mean() > 180
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 12)
        assert float(stream.duration * stream.time_base) == pytest.approx(times[-1] + 1 / 25, abs=0.001)
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30_000, 1001), Fraction(24_000, 1001), Fraction(60)])
def test_usual_rates_are_exact(tmp_path: Path, rate: Fraction) -> None:
    with open_video(tmp_path / "a.mp4", rate) as write:
        for number, image in enumerate(greys(10)):
            write(image, float(number / rate))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_equal_times_lose_no_image(tmp_path: Path) -> None:
    with open_video(tmp_path / "a.mp4", Fraction(30)) as write:
        for image, seconds in zip(greys(4), (0.0, 0.1, 0.1, 0.05), strict=True):
            write(image, seconds)
    found, _ = read_video(tmp_path / "a.mp4")
    np.testing.assert_allclose([image.mean() for image in found], [40, 45, 50, 55], atol=2)


def test_an_image_of_another_size_is_fitted(tmp_path: Path) -> None:
    with open_video(tmp_path / "a.mp4", Fraction(30)) as write:
        write(np.zeros((40, 80, 3), np.uint8), 0.0)
        write(np.zeros((80, 80, 3), np.uint8), 0.1)
    second = read_video(tmp_path / "a.mp4")[0][1]
    assert second.shape == (40, 80, 3)
    assert second[:, :16].mean() > 240
    assert second[:, 24:56].mean() < 15


def test_another_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CODECS", module._CODECS[1:])
    with open_video(tmp_path / "a.mp4", Fraction(30_000, 1001)) as write:
        for number, image in enumerate(greys(10, (64, 96))):
            write(image, number * 1.001 / 30)
    found, times = read_video(tmp_path / "a.mp4")
    np.testing.assert_allclose([image.mean() for image in found], [40 + 5 * k for k in range(10)], atol=3)
    np.testing.assert_allclose(times, [k * 1.001 / 30 for k in range(10)], atol=0.001)


def test_an_error_keeps_the_old_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def half() -> None:
        with open_video(path, Fraction(30)) as write:
            for image in greys(40):
                write(image, 0.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_an_error_of_the_images_keeps_its_message(tmp_path: Path) -> None:
    def wrong() -> None:
        with open_video(tmp_path / "a.mp4", Fraction(30)):
            try:
                (tmp_path / "missing").read_bytes()
            except OSError:
                raise InputError("an image is missing") from None

    with pytest.raises(InputError, match=r"^an image is missing$"):
        wrong()


def test_a_full_disk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 128, 128, 3), dtype=np.uint8)
    (tmp_path / "a.mp4").write_bytes(b"old")

    def write_all() -> None:
        with open_video(tmp_path / "a.mp4", Fraction(30)) as write:
            for number, image in enumerate(noise):
                write(image, number / 30)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*a\.mp4: it would be larger than files may be"):
            write_all()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_file_instead_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*a\.mp4"), open_video(tmp_path / "out/a.mp4", Fraction(30)):
        pass


@pytest.mark.slow
def test_a_killed_process_leaves_no_video(tmp_path: Path) -> None:
    code = (
        "import sys; from fractions import Fraction; from pathlib import Path; import numpy as np\n"
        "from bevreshape.reporting.video import open_video\n"
        "with open_video(Path('a.mp4'), Fraction(30)) as write:\n"
        "    for k in range(100): write(np.full((64, 64, 3), k, np.uint8), k / 30)\n"
        "    print(flush=True); sys.stdin.read()\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.mp4.")
    assert left.suffix == ".part"
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())
