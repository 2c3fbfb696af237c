"""Read images and label images from files; refuse those that would mislead a network or a calibration."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import DistortionModel, pinhole_intrinsics
from bevreshape.geometry.cameras import resize_intrinsics, shift_intrinsics
from bevreshape.geometry.distortion import source_pixels
from bevreshape.geometry.ipm import sample
from bevreshape.storage.files import open_regular
from bevreshape.storage.store_path import DataPath

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Suffixes of image files, in lower case."""

MAX_MEGAPIXELS = 64
"""Size limit of an image, checked in its header; decoding a larger one could fill the memory."""

OnCorruptImage = Literal["raise", "mask"]
"""Treatment of an unreadable image in a data set: raise an error, or mask its camera."""


ImageMode = Literal["rgb", "grey"]
"""Channels of an image: three colors, or one grey channel repeated three times for the encoder."""


class CorruptImageError(InputError):
    """Report that an image's file is missing, or is not a complete JPEG or PNG."""


_ORIENTATION = 0x0112  # EXIF
_MODES = {
    "L": "grey",
    "LA": "grey",
    "1": "black and white",
    "CMYK": "CMYK",
    "YCCK": "CMYK",
}


def read_image(
    path: DataPath, image_size: tuple[int, int] | None = None, image_mode: str = "rgb"
) -> UInt8[Tensor, "3 H W"]:
    """Decode a JPEG or PNG into RGB, with exactly the stored pixels.

    A palette and a fully opaque alpha channel are resolved without loss.

    As ``grey`` a single channel is read exactly, and colors become their luma (ITU-R 601); all three channels are
    equal.

    Args:
        path: of the file.
        image_size: (H, W) that :func:`resize_and_crop` will produce. A JPEG of twice, four or eight times that size is
            then decoded at a half, a quarter or an eighth of its size, where that divides both sides, which is much
            faster.
        image_mode: one of :data:`ImageMode`.

    Raises:
        InputError: when the file is missing, empty, truncated, not an image, larger than ``MAX_MEGAPIXELS``, 16-bit,
            grey in mode ``rgb``, CMYK, transparent, or stored rotated (the calibration is for pixels as stored).
    """
    image, _, orientation = _decode(path, image_size)
    if image.mode == "P" or (image.mode == "RGB" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode == "L" and "transparency" in image.info:
        image = image.convert("LA")
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{path}: the image is transparent in places; save it without an alpha channel")
        image = image.convert(image.mode[:-1])
    if image.mode not in (("RGB", "L") if image_mode == "grey" else ("RGB",)):
        grey = "; train with data.image_mode=grey, or" if image.mode == "L" else ";"
        raise InputError(
            f"{path}: the image is {_MODES.get(image.mode, image.mode)}, not RGB{grey} save it with three channels of "
            "8 bits"
        )
    if orientation != 1:
        raise InputError(
            f"{path}: its EXIF orientation is {orientation}, so viewers turn it, but a calibration is for "
            "the stored pixels; store it upright (orientation 1)"
        )
    if image_mode == "grey":
        return torch.from_numpy(np.array(image.convert("L"))).expand(3, -1, -1).contiguous()
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_or_mask(read: Callable[[], Tensor], on_corrupt_image: str | None) -> Tensor | None:
    """Return the image of ``read``, or ``None`` where it is damaged and to be masked, which is logged.

    Args:
        read: returns an image.
        on_corrupt_image: one of :data:`OnCorruptImage`; ``None`` refuses without a hint at this option.

    Raises:
        InputError: as ``read``.
    """
    try:
        return read()
    except CorruptImageError as error:
        if on_corrupt_image == "mask":
            log.warning("%s; its camera is masked", error)
            return None
        if on_corrupt_image == "raise":
            raise CorruptImageError(f"{error}; data.on_corrupt_image=mask continues without this camera") from None
        raise


def read_label_image(path: DataPath) -> UInt8[Tensor, "H W"]:
    """Decode a PNG of one integer a pixel, such as class ids, exactly as stored.

    A palette PNG gives its indices, and grey of 1, 2 or 4 bits is not stretched to 0..255.

    Raises:
        InputError: when the file is missing, empty, truncated, not a PNG, too large, or has other pixels.
    """
    image, stored, _ = _decode(path)
    if image.format != "PNG":
        raise InputError(f"{path}: labels must be PNG, this is {image.format}, which changes the ids; save it as PNG")
    if stored not in _STRETCHED:
        raise InputError(
            f"{path}: the pixels are {stored}, but labels are single-channel class ids of at most 8 bits; convert the "
            "colors to ids first"
        )
    return torch.from_numpy(np.array(image).astype(np.uint8) // _STRETCHED[stored])


def read_image_size(path: DataPath) -> tuple[int, int]:
    """Return (H, W) in pixels, from the header alone.

    Raises:
        InputError: as :func:`read_image`, as far as the header shows.
    """
    with _opened(path) as image:
        return image.height, image.width


def resize_and_crop(
    image: UInt8[Tensor, "3 h w"],
    intrinsics: Tensor,
    dst_size: tuple[int, int],
    distortion: DistortionModel | None = None,
) -> tuple[UInt8[Tensor, "3 H W"], Tensor]:
    """Resize and crop an image to the network's size, and adapt its intrinsics (3, 3).

    The image is resized, antialiased, until it covers ``dst_size``. Excess height is cut off the top, where the sky is,
    and excess width off both sides. With a distortion model it is undistorted in the same step, and the intrinsics are
    those of its pinhole image.
    """
    old_size = (image.shape[1], image.shape[2])
    if distortion is not None:
        fitted = resize_and_crop_intrinsics(intrinsics, old_size, dst_size)
        return _fit_distorted(image, distortion, fitted, dst_size), fitted
    new_size, top, left = _fit(old_size, dst_size)
    if new_size != old_size:
        image = F.interpolate(image[None], new_size, mode="bilinear", antialias=True)[0]
    window = image[:, top : top + dst_size[0], left : left + dst_size[1]].contiguous()
    return window, resize_and_crop_intrinsics(intrinsics, old_size, dst_size)


def resize_and_crop_intrinsics(intrinsics: Tensor, src_size: tuple[int, int], dst_size: tuple[int, int]) -> Tensor:
    """Return the intrinsics (..., 3, 3) after :func:`resize_and_crop` of an image of ``src_size`` (H, W)."""
    new_size, top, left = _fit(src_size, dst_size)
    scale_v, scale_u = (new / old for new, old in zip(new_size, src_size, strict=True))
    return shift_intrinsics(resize_intrinsics(intrinsics, scale_u, scale_v), -left, -top)


def reduction(src_size: tuple[int, int], dst_size: tuple[int, int]) -> int:
    """Return the factor 1, 2, 4 or 8 by which a JPEG may be decoded smaller without falling below its final size."""
    (high, wide), _, _ = _fit(src_size, dst_size)
    factors = (factor for factor in (8, 4, 2) if not any(side % factor for side in src_size))
    return next((f for f in factors if src_size[0] >= f * high and src_size[1] >= f * wide), 1)


def undistort(image: UInt8[Tensor, "3 H W"], distortion: DistortionModel) -> UInt8[Tensor, "3 H W"]:
    """Return the pinhole image of a stored one, bilinear; its intrinsics are ``distortion.pinhole_intrinsics``."""
    return resize_and_crop(image, pinhole_intrinsics(distortion), distortion.image_size, distortion)[0]


def undistort_labels(labels: UInt8[Tensor, "H W"], distortion: DistortionModel) -> UInt8[Tensor, "H W"]:
    """Return the pinhole label image of a stored one, by the nearest pixel."""
    return labels.flatten()[_nearest(distortion)].reshape(labels.shape)


def _fit_distorted(
    image: Tensor, distortion: DistortionModel, intrinsics: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Sample the pinhole image of a stored one.

    The stored image is first shrunk, antialiased, to about the density of the samples. Each pixel is the mean of two by
    two samples, or one sample where the image is hardly shrunk.
    """
    ratio = min(old / new for old, new in zip(distortion.image_size, image_size, strict=True))
    over = 1 if ratio < 1.25 else 2
    if ratio > over:
        height, width = (round(side * over / ratio) for side in distortion.image_size)
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    pixels = _sources(
        distortion, (image.shape[1], image.shape[2]), image_size, over, tuple(intrinsics.flatten().tolist())
    )
    read = sample(image[None, None].float(), pixels[None, None])[0]  # 1 3 over·H over·W
    return F.avg_pool2d(read, over)[0].round().byte()


@lru_cache(maxsize=16)
def _sources(
    distortion: DistortionModel,
    size: tuple[int, int],
    image_size: tuple[int, int],
    over: int,
    intrinsics: tuple[float, ...],
) -> Tensor:
    """Return ``over`` by ``over`` points of every pixel in the stored image, resized to ``size``: float32 (…, 2)."""
    finer = resize_intrinsics(torch.tensor(intrinsics, dtype=torch.float64).reshape(3, 3), over, over)
    pixels = source_pixels(distortion, finer, (image_size[0] * over, image_size[1] * over))
    scale = torch.tensor([size[1] / distortion.image_size[1], size[0] / distortion.image_size[0]], dtype=torch.float64)
    return (scale * (pixels + 0.5) - 0.5).float()


@lru_cache(maxsize=16)
def _nearest(distortion: DistortionModel) -> Tensor:
    """Return, for every pixel of the pinhole image, row by row, the index of the stored one."""
    height, width = distortion.image_size
    u, v = (
        source_pixels(distortion, pinhole_intrinsics(distortion), distortion.image_size)
        .round()
        .int()
        .flatten(0, 1)
        .unbind(-1)
    )
    return v.clamp(0, height - 1) * width + u.clamp(0, width - 1)


def _fit(src_size: tuple[int, int], dst_size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    scale = max(new / old for new, old in zip(dst_size, src_size, strict=True))
    height, width = (max(new, round(old * scale)) for new, old in zip(dst_size, src_size, strict=True))
    return (height, width), height - dst_size[0], (width - dst_size[1]) // 2


class _Decoded(NamedTuple):
    """Hold the content of an image file.

    Attributes:
        image: its pixels.
        stored: how a pixel is stored, in Pillow's words: ``L;2`` is grey of two bits, which Pillow stretches to 0..255.
        orientation: EXIF's, 1 for upright.
    """

    image: Image.Image
    stored: str
    orientation: Any


_STRETCHED = {"1": 1, "L;2": 85, "L;4": 17, "L": 1, "P;1": 1, "P;2": 1, "P;4": 1, "P": 1}
"""Storage of labels, and the factor by which Pillow enlarges their values."""


@contextmanager
def _opened(path: DataPath, *, whole: bool = False) -> Iterator[Image.Image]:
    """Open an image and check its header.

    With ``whole`` the checksums of a PNG are verified too; Pillow skips them when it decodes.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise CorruptImageError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CorruptImageError(f"{path}: the file cannot be read ({error.strerror})") from None
    with file:
        if not file.read(1):
            raise CorruptImageError(f"{path}: the file is empty; copy it again")
        image = _header(file, path)
        if whole and image.format == "PNG":
            try:
                image.verify()
            except Exception as error:  # Pillow's parsers raise various errors for damaged files
                raise _unreadable(path, error) from None
            file.seek(0)
            image = _header(file, path)
        yield image


def _header(file: BufferedReader, path: DataPath) -> Image.Image:
    too_large = f"more than {MAX_MEGAPIXELS} million pixels; scale it down, and its intrinsics along"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings that do not concern pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=("JPEG", "PNG"))
            stored = _stored(image)
    except UnidentifiedImageError:
        raise CorruptImageError(
            f"{path}: this is not a JPEG or PNG image, or its header is damaged; convert it"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{path}: the image has {too_large}") from None
    except Exception as error:  # as above
        raise _unreadable(path, error) from None
    if image.width * image.height > MAX_MEGAPIXELS * 10**6:
        raise InputError(f"{path}: the image is {image.width}×{image.height}, {too_large}")
    if "16" in stored:  # Pillow would silently drop the low byte of colors
        raise InputError(
            f"{path}: the image has 16 bits a channel; save it with 8 bits a channel, all images by the same scale"
        )
    return image


def _decode(path: DataPath, image_size: tuple[int, int] | None = None) -> _Decoded:
    with _opened(path, whole=True) as image:
        stored = _stored(image)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if image_size is not None and image.format in ("JPEG", "MPO"):
                    factor = reduction((image.height, image.width), image_size)
                    image.draft(None, (image.width // factor, image.height // factor))
                image.load()
                return _Decoded(image, stored, image.getexif().get(_ORIENTATION, 1))
        except Exception as error:  # as above
            raise _unreadable(path, error) from None


def _stored(image: Image.Image) -> str:
    """Return Pillow's raw mode of an image that is opened and not yet loaded."""
    arguments: Any = image.tile[0][3]  # type: ignore[attr-defined]  # of ImageFile
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _unreadable(path: DataPath, error: Exception) -> InputError:
    if "MAX_TEXT" in str(error):  # Pillow limits the unpacked size of texts in a PNG
        return InputError(f"{path}: the image holds a text that is too large ({error}); save it without its metadata")
    return CorruptImageError(f"{path}: the image is truncated or damaged ({error}); copy it again")
