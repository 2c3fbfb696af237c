"""Decode videos frame by frame, upright, as players show them. It needs PyAV, the extra ``video``."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bevreshape.data.image_io import MAX_MEGAPIXELS
from bevreshape.errors import InputError
from bevreshape.storage.files import open_regular

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Suffixes of video files, in lower case."""

_FORMATS = "mov,mp4,matroska,webm,avi"
"""FFmpeg's names of the containers that are read. Others, such as playlists, may name further files and addresses."""

_USUAL_RATE = Fraction(25)


class VideoFrame(NamedTuple):
    """Hold a decoded frame.

    Attributes:
        image: (H, W, 3) uint8, RGB, upright.
        number: position in the video, from 0.
        seconds: since the first frame.
        grey: whether it is stored with one channel.
    """

    image: np.ndarray
    number: int
    seconds: float
    grey: bool


def import_av() -> Any:
    """Import PyAV.

    Raises:
        InputError: when it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"videos are read and written by PyAV, which cannot be imported ({error}); pip install 'bevreshape[video]'"
        ) from None
    return av


class VideoReader:
    """Decode the first video stream of a file.

    A rotation in the metadata, as phones store it, is applied. Frames that are damaged or cut off are left out.

    Args:
        path: of the file.

    Attributes:
        rate: mean number of frames per second, 25 if it is unknown.

    Raises:
        InputError: when the file is missing, no video of a known format, or PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._av = import_av()
        try:
            open_regular(path).close()
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such video") from None
        except OSError as error:
            raise InputError(f"{path}: the video cannot be read ({error.strerror})") from None
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        try:
            self._container = self._av.open(str(path.resolve()), options=options)
        except self._av.FFmpegError as error:
            raise InputError(
                f"{path}: this is no video of a known format ({', '.join(VIDEO_SUFFIXES)}), or its index is cut off "
                f"({error.strerror}); copy it again, or convert it"
            ) from None
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self._container.close()
            raise InputError(f"{path}: the file holds no video that can be decoded; convert it, for example to H.264")
        self._stream.codec_context.options = {"max_pixels": str(MAX_MEGAPIXELS * 10**6)}
        self._stream.codec_context.thread_type = "SLICE"  # threads per frame lose intact frames before a damaged one
        # a stream must not be asked once its file is closed
        self.rate = self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE
        self._stated = self._stream.frames
        self._duration = self._read_duration()
        self._packets = self._damaged = 0

    @property
    def count(self) -> int | None:
        """Return the number of frames, as the file states or from its duration; ``None`` if both are unknown."""
        if self._stated:
            return self._stated
        return None if self._duration is None else round(self._duration * self.rate)

    def frames(self, every: int = 1) -> Iterator[VideoFrame]:
        """Yield every n-th frame, the first included.

        A file that is damaged or cut off is reported in the log at the end.

        Raises:
            InputError: when no frame can be decoded, or one has another rotation than a multiple of 90°.
        """
        number, first, longest, seconds = -1, None, 0.0, 0.0
        with self._container:
            for number, frame in enumerate(self._intact()):
                time = None if frame.pts is None else frame.pts * frame.time_base
                first = time if first is None else first
                now = float(number / self.rate if time is None else time - first)
                longest, seconds = max(longest, now - seconds), now
                if number == 0 and any(self._turn(frame)):
                    log.warning("%s: its metadata turn it, so its frames are read as players show them", self.path)
                if number % every == 0:
                    grey = frame.format.name.startswith(("gray", "ya"))
                    yield VideoFrame(self._upright(frame), number, seconds, grey)
        if number < 0:
            raise InputError(f"{self.path}: no frame of the video can be decoded; copy it again, or convert it")
        self._report(number + 1, seconds + 2 * longest)

    def _intact(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError:
                packet = None
            if packet is not None and packet.is_corrupt:  # cut off
                self._damaged += 1
                continue
            self._packets += packet is not None and packet.size > 0
            try:
                frames = self._stream.decode(packet)
            except EOFError:  # what was buffered is out already
                return
            except self._av.FFmpegError:
                frames = []
                self._damaged += 1
            for frame in frames:
                if frame.is_corrupt:
                    self._damaged += 1
                else:
                    yield frame
            if packet is None:
                return

    def _upright(self, frame: Any) -> np.ndarray:
        """Return the RGB image of a frame as its display matrix turns it."""
        swapped, rows, columns = self._turn(frame)
        image = frame.to_ndarray(format="rgb24")
        image = image.swapaxes(0, 1) if swapped else image
        return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])

    def _turn(self, frame: Any) -> tuple[bool, bool, bool]:
        """Return whether to swap rows and columns of a frame, and then to reverse the rows, and the columns.

        Raises:
            InputError: when its display matrix turns it by no multiple of 90°.
        """
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return False, False, False
        # pixel (p, q) is shown at (x, y) = (a p + c q, b p + d q), but for the origin
        (a, b), (c, d) = np.frombuffer(bytes(matrix)[:36], "=i4").reshape(3, 3)[:2, :2].astype(float)
        straight, swapped = min(abs(a), abs(d)), min(abs(b), abs(c))
        if max(abs(b), abs(c)) <= 0.01 * straight:
            return False, bool(d < 0), bool(a < 0)
        if max(abs(a), abs(d)) <= 0.01 * swapped:
            return True, bool(b < 0), bool(c < 0)
        raise InputError(f"{self.path}: its metadata turn it by no multiple of 90°; convert it, for example by ffmpeg")

    def _read_duration(self) -> Fraction | None:
        """Return the duration of the stream in seconds, if it is known."""
        if self._stream.duration:
            return self._stream.duration * self._stream.time_base
        stated = self._stream.metadata.get("DURATION", "")  # of Matroska, such as 00:01:02.345000000
        try:
            hours, minutes, seconds = map(Fraction, stated.split(":"))
        except ValueError:
            alone = len(self._container.streams) == 1
            return Fraction(self._container.duration, 10**6) if alone and self._container.duration else None
        return 3600 * hours + 60 * minutes + seconds

    def _report(self, found: int, until: float) -> None:
        """Log that frames are missing.

        Args:
            found: number of decoded frames.
            until: latest time in seconds at which an uncut video ends.
        """
        stated, duration = self._stated, self._duration
        if stated and self._packets < stated:
            log.warning(
                "%s: it has %d frames, of which %d can be decoded; it is cut off or damaged", self.path, stated, found
            )
        elif self._damaged:
            log.warning("%s: %d frames are damaged and left out, %d can be decoded", self.path, self._damaged, found)
        elif not stated and duration is not None and until < duration:
            log.warning(
                "%s: it lasts %.1f s, but the last of its %d frames is earlier; it is cut off",
                self.path,
                duration,
                found,
            )
