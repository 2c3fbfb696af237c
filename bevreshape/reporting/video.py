"""Write RGB images as an H.264 video. It needs PyAV, the extra ``video``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from bevreshape.data.video import import_av
from bevreshape.reporting.class_colors import RGBImage
from bevreshape.reporting.drawing import PAPER
from bevreshape.storage.files import explained_errors, whole_file

_CODECS = ("libx264", "libopenh264", "mpeg4")
"""Encoders, the first that PyAV was built with is taken; its wheels have libx264."""

_TIME_BASE = Fraction(1, 60_000)
"""Seconds; the usual frame rates, 24 to 60 and 30000/1001, are exact, and MPEG-4 allows no shorter one."""

_BT709 = 1
_LIMITED_RANGE = 1


class WriteImage(Protocol):
    """Add an image to a video."""

    def __call__(self, image: RGBImage, seconds: float) -> None:
        """Add an image that is shown from ``seconds`` on, later than the one before."""


@contextmanager
def open_video(path: Path, rate: Fraction) -> Iterator[WriteImage]:
    """Write an MP4 that is complete or absent, and create its folder if needed.

    All images get the size of the first one, made even; others are fitted into it.

    Args:
        path: of the file.
        rate: frames per second, to encode by; the last image is shown for one frame.

    Raises:
        InputError: when PyAV is not installed, the disk is full or the folder cannot be written; the old file, if any,
            is untouched.
    """
    av = import_av()
    with ExitStack() as stack:
        with explained_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(whole_file(path))
            container = av.open(file, "w", format="mp4")
        encoder = _Encoder(av, container, rate)

        def write(image: RGBImage, seconds: float) -> None:
            with explained_errors(path):
                encoder.write(image, seconds)

        try:
            yield write
            with explained_errors(path):
                encoder.flush()
                container.close()
        except BaseException:
            for part in (container, file):  # they write what is left, perhaps to a full disk
                with suppress(Exception):
                    part.close()
            raise
        with explained_errors(path):
            stack.close()


class _Encoder:
    def __init__(self, av: Any, container: Any, rate: Fraction) -> None:
        self._av, self._container = av, container
        codec = next(codec for codec in _CODECS if codec in av.codecs_available)
        self._stream = container.add_stream(
            codec, rate=min(max(rate, Fraction(1)), Fraction(240)).limit_denominator(1001)
        )
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "fast", "bf": "0"} if codec == "libx264" else {}
        context = self._stream.codec_context
        context.time_base, context.color_range = _TIME_BASE, _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if codec != "libx264":
            context.bit_rate = 8_000_000
        self._size: tuple[int, int] | None = None  # width, height
        self._last = -1

    def write(self, image: RGBImage, seconds: float) -> None:
        height, width = image.shape[:2]
        if self._size is None:
            self._size = self._stream.width, self._stream.height = width + width % 2, height + height % 2
        if (width, height) != self._size:
            image = np.asarray(_fitted(Image.fromarray(image), self._size))
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        self._last = max(round(seconds / _TIME_BASE), self._last + 1)  # encoders refuse equal times
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._mux(frame)

    def flush(self) -> None:
        self._mux(None)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image on a sheet of ``size``: as it is where it lacks a row or column, else scaled."""
    if (image.width + image.width % 2, image.height + image.height % 2) != size:
        return ImageOps.pad(image, size, color=PAPER)
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(image)
    return sheet
