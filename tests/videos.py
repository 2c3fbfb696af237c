"""Videos for tests, written by PyAV and read back by OpenCV."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

av = pytest.importorskip("av", reason="videos need pip install 'bevreshape[video]'")

ONE = 1 << 16
"""1 in a display matrix."""

UPRIGHT = (ONE, 0, 0, ONE)
"""(a, b, c, d): stored pixel (p, q) is shown at (a p + c q, b p + d q), but for the origin."""


def write_video(
    path: Path,
    images: Sequence[np.ndarray],
    times: Sequence[Fraction] | None = None,
    *,
    rate: int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    matrix: int | None = None,
) -> Path:
    """Write RGB images (H, W, 3) of even sizes as a video, whose container follows from the suffix.

    Args:
        path: of the file.
        images: of the frames.
        times: of the frames in seconds; by default they follow each other at ``rate``.
        rate: frames per second.
        codec: of FFmpeg.
        options: of the container.
        matrix: number of the color matrix, 1 for BT.709; none is stated by default.
    """
    height, width = images[0].shape[:2]
    base = Fraction(1, rate) if times is None else Fraction(1, 30_000)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = base
        quality = {"libx264": {"crf": "12"}, "mpeg4": {"qmin": "2", "qmax": "3"}}
        stream.options = {"g": "5", **quality.get(codec, {})}
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=None if matrix is None else matrix)
            frame.pts = number if times is None else round(times[number] / base)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, matrix: Sequence[int]) -> None:
    """Put (a, b, c, d) into the display matrix of the first track of an MP4."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4  # version and flags, three times or ids and duration, and 16 bytes of others
    start += 4 + (32 if content[start] else 20) + 16
    a, b, c, d = matrix
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def greys(count: int, size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    """Images (H, W, 3), image k of the value 40 + 5 k, so that their order and number can be checked."""
    return [np.full((*size, 3), 40 + 5 * number, np.uint8) for number in range(count)]


def read_video(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Return the RGB images of a video and their times in seconds, by OpenCV."""
    capture = cv2.VideoCapture(str(path))
    assert capture.isOpened()
    images, times = [], []
    while True:
        more, image = capture.read()
        if not more:
            break
        images.append(image[..., ::-1])
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()
    return images, times
