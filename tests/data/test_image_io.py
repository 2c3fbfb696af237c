import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bevreshape.data.image_io import (
    read_image,
    read_image_size,
    read_label_image,
    reduction,
    resize_and_crop,
    undistort,
    undistort_labels,
)
from bevreshape.errors import InputError
from bevreshape.geometry import DistortionModel, pinhole_intrinsics

RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column of a pass, and the steps between its rows and columns (PNG specification, 8.2)."""


def written_png(
    path: Path,
    samples: np.ndarray,
    depth: int,
    color: int,
    *extra: bytes,
    interlaced: bool = False,
    behind: bytes = b"",
) -> Path:
    """Write a PNG byte by byte: (rows, cols, channels) samples of ``depth`` bits, most significant bit first."""

    def packed(part: np.ndarray) -> bytes:
        lines = []
        for row in part:
            bits = "".join(f"{int(value):0{depth}b}" for value in row.ravel())
            bits += "0" * (-len(bits) % 8)
            lines.append(b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)))
        return b"".join(lines)

    passes = [samples[r::dr, c::dc] for r, c, dr, dc in ADAM7] if interlaced else [samples]
    content = b"".join(packed(part) for part in passes if part.size)
    height, width = samples.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))
    body = chunk(b"IDAT", zlib.compress(content)) + behind + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body)
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """Write a PNG with a valid header only."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0")
    tail = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + tail)
    return path


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def test_a_png_is_read_exactly(tmp_path: Path) -> None:
    read = read_image(saved(tmp_path / "a.png", RGB))
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read.permute(1, 2, 0).numpy(), RGB)


def test_a_jpeg_is_rgb_as_opencv_reads_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", np.kron(RGB, np.ones((8, 8, 1), np.uint8)), quality=95)
    expected = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)
    assert np.abs(read_image(path).permute(1, 2, 0).numpy() - expected).max() <= 2
    assert read_image_size(path) == expected.shape[:2]


def test_palettes_and_opaque_alpha_are_resolved(tmp_path: Path) -> None:
    few = (RGB // 128) * 255
    palette = Image.fromarray(few).quantize(8)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "p.png").permute(1, 2, 0).numpy(), np.array(palette.convert("RGB"))
    )
    opaque = saved(tmp_path / "o.png", RGB, "RGBA")
    np.testing.assert_array_equal(read_image(opaque).permute(1, 2, 0).numpy(), RGB)


def rotated(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(path, RGB, exif=exif)


def transparent(path: Path) -> Path:
    return saved(path, np.dstack([RGB, np.full(RGB.shape[:2], 128, np.uint8)]))


def sixteen_bits(path: Path, channels: int) -> Path:
    pixels = RGB.astype(np.uint16) * 256
    cv2.imwrite(str(path), pixels if channels == 3 else pixels[..., 0])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "none.jpg", "no such file"),
        (lambda p: written(p / "a.jpg", b""), "file is empty"),
        (lambda p: written(p / "a.jpg", b"GIF89a, perhaps"), "not a JPEG or PNG"),
        (lambda p: cut(saved(p / "a.jpg", np.kron(RGB, np.ones((8, 8, 1), np.uint8))), 0.6), "truncated"),
        (lambda p: cut(saved(p / "a.jpg", np.kron(RGB, np.ones((8, 8, 1), np.uint8))), 0.1), "truncated or damaged"),
        (lambda p: cut(saved(p / "a.png", np.kron(RGB, np.ones((8, 8, 1), np.uint8))), 0.6), "truncated"),
        (lambda p: saved(p / "a.jpg", RGB, "L"), "is grey, not RGB"),
        (lambda p: saved(p / "a.png", RGB, "LA"), "is grey, not RGB"),
        (lambda p: saved(p / "a.png", RGB, "1"), "is black and white, not RGB"),
        (lambda p: saved(p / "a.jpg", RGB, "CMYK"), "is CMYK, not RGB"),
        (lambda p: sixteen_bits(p / "a.png", 3), "16 bits a channel"),
        (lambda p: sixteen_bits(p / "a.png", 1), "16 bits a channel"),
        (lambda p: transparent(p / "a.png"), "transparent"),
        (lambda p: saved(p / "a.png", RGB, transparency=tuple(map(int, RGB[0, 0]))), "transparent"),
        (lambda p: rotated(p / "a.jpg"), "orientation is 6"),
        (lambda p: png_header(p / "a.png", 9000, 8000), "9000×8000, more than 64 million"),
        (lambda p: png_header(p / "a.png", 10000, 9900), "more than 64 million"),
        (lambda p: png_header(p / "a.png", 30000, 30000), "more than 64 million"),
        (lambda p: p, "cannot be read"),
    ],
)
def test_invalid_images_are_refused(tmp_path: Path, make, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=says) as refusal:
        read_image(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_labels_are_the_stored_bytes(tmp_path: Path) -> None:
    ids = RGB[..., 0]
    np.testing.assert_array_equal(read_label_image(saved(tmp_path / "l.png", ids)).numpy(), ids)
    indexed = Image.fromarray(ids % 4).convert("P")
    indexed.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "p.png").numpy(), ids % 4)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("color", [0, 3], ids=["grey", "palette"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_labels_are_the_stored_ids_at_every_depth(tmp_path: Path, depth: int, color: int, interlaced: bool) -> None:
    ids = np.random.default_rng(depth).integers(0, 2**depth, (13, 21, 1))
    palette = [chunk(b"PLTE", bytes(3 * 2**depth))] if color else []
    transparent = [chunk(b"tRNS", b"\0\1" if color == 0 else b"\0")]  # of grey value 1, or of index 0
    gamma = [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"sBIT", b"\1" if color == 0 else b"\1\1\1")]
    for name, extra in (("plain", palette), ("chunks", [*gamma, *palette, *transparent])):
        path = written_png(tmp_path / f"{name}.png", ids, depth, color, *extra, interlaced=interlaced)
        np.testing.assert_array_equal(read_label_image(path).numpy(), ids[..., 0])


@pytest.mark.parametrize(
    ("depth", "color", "channels", "says"),
    [
        (16, 0, 1, "16 bits a channel"),
        (16, 4, 2, "16 bits a channel"),
        (16, 2, 3, "16 bits a channel"),
        (16, 6, 4, "16 bits a channel"),
        (8, 4, 2, "the pixels are LA, but labels are single-channel"),
        (8, 2, 3, "the pixels are RGB, but labels are single-channel"),
        (8, 6, 4, "the pixels are RGBA, but labels are single-channel"),
    ],
)
def test_labels_other_than_ids_are_refused(tmp_path: Path, depth: int, color: int, channels: int, says: str) -> None:
    path = written_png(tmp_path / "l.png", np.ones((5, 6, channels), int), depth, color)
    with pytest.raises(InputError, match=says):
        read_label_image(path)


def test_flipped_bits_of_a_label_are_refused(tmp_path: Path) -> None:
    """Pillow does not verify the checksums of the pixels' chunks, and zlib's own may follow the last row."""
    ids = np.random.default_rng(0).integers(0, 4, (9, 16, 1))
    path = written_png(tmp_path / "l.png", ids, 8, 0)
    content = path.read_bytes()
    for position in range(33, len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = read_label_image(path)
        except InputError:
            continue
        assert position >= len(content) - 12, "only the end marker does not affect pixels"
        np.testing.assert_array_equal(found.numpy(), ids[..., 0])


BOMB = zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_text_that_unpacks_to_megabytes_is_refused(tmp_path: Path, kind: bytes, behind: bool) -> None:
    bomb = chunk(kind, b"note\0" + (b"\0" if kind == b"zTXt" else b"\1\0\0\0") + BOMB)
    parts = {"behind": bomb} if behind else {}
    path = written_png(tmp_path / "a.png", RGB.astype(int), 8, 2, *([] if behind else [bomb]), **parts)
    for read in (read_image, read_label_image):
        with pytest.raises(InputError, match="holds a text that is too large"):
            read(path)


def test_other_kinds_of_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name, says in (
        ("pipe", "it is a pipe, not a file"), ("loop", "cannot be read"), ("device", "it is a device, not a file")
    ):  # fmt: skip
        for read in (read_image, read_label_image, read_image_size):
            with pytest.raises(InputError, match=says):
                read(tmp_path / f"{name}.png")


def test_multi_image_files_of_phones_are_read(tmp_path: Path) -> None:
    """A multi-image file (MPO) holds a second JPEG after the first, which is the image."""
    large = Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8)))
    large.save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[large.rotate(180)], quality=95)
    large.save(tmp_path / "one.jpg", quality=95)
    for image_size in (None, (12, 20)):
        assert torch.equal(*(read_image(tmp_path / f"{name}.jpg", image_size) for name in ("one", "two")))


def test_grey_images_are_repeated_and_colors_become_their_luma(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    found = read_image(saved(tmp_path / "g.png", grey), image_mode="grey")
    np.testing.assert_array_equal(found.numpy(), np.stack([grey] * 3))
    four_bits = written_png(tmp_path / "four.png", grey[..., None] // 16, 4, 0)
    np.testing.assert_array_equal(read_image(four_bits, image_mode="grey")[0].numpy(), grey // 16 * 17)
    opaque = written_png(tmp_path / "la.png", np.dstack([grey, np.full_like(grey, 255)]), 8, 4)
    np.testing.assert_array_equal(read_image(opaque, image_mode="grey")[1].numpy(), grey)
    luma = RGB @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    found = read_image(saved(tmp_path / "c.png", RGB), image_mode="grey")
    assert np.abs(found.numpy() - luma).max() <= 0.51, "rounded"
    with pytest.raises(InputError, match=r"train with data\.image_mode=grey, or save it with three channels"):
        read_image(tmp_path / "g.png")
    with pytest.raises(InputError, match=r"16 bits a channel; .*by the same scale"):
        read_image(sixteen_bits(tmp_path / "16.png", 1), image_mode="grey")
    see_through = written_png(tmp_path / "t.png", np.dstack([grey, grey]), 8, 4)
    with pytest.raises(InputError, match="transparent in places"):
        read_image(see_through, image_mode="grey")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: saved(p / "l.jpg", RGB[..., 0]), "labels must be PNG, this is JPEG"),
        (lambda p: saved(p / "l.png", RGB), "pixels are RGB"),
        (lambda p: sixteen_bits(p / "l.png", 1), "16 bits"),
    ],
)
def test_invalid_labels_are_refused(tmp_path: Path, make, says: str) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=says) as refusal:
        read_label_image(path)
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize("image_size", [(48, 100), (60, 80), (50, 91), (120, 200), (180, 300), (33, 47)])
def test_convention_a_fitted_image_agrees_with_its_intrinsics(image_size: tuple[int, int]) -> None:
    """In a ramp every pixel's value is its position, so a fitted image shows the source of its pixels."""
    height, width = 120, 200
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    ramp = torch.from_numpy(np.stack([u, v, 0 * u]).astype(np.uint8))
    intrinsics = torch.tensor([[100.0, 0, 98.3], [0, 110.0, 57.1], [0, 0, 1]], dtype=torch.float64)
    fitted, moved = resize_and_crop(ramp, intrinsics, image_size)
    assert fitted.shape == (3, *image_size)
    old_from_new = intrinsics.numpy() @ np.linalg.inv(moved.numpy())
    for row in range(2, image_size[0] - 2, 5):
        for col in range(2, image_size[1] - 2, 7):
            expected = old_from_new @ [col, row, 1]
            np.testing.assert_allclose(fitted[:2, row, col].numpy(), expected[:2], atol=0.75)


def test_excess_height_is_cropped_at_the_top() -> None:
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[:, -1] = 255
    fitted, _ = resize_and_crop(image, torch.eye(3), (40, 100))
    assert (fitted[:, -1] == 255).all()


def test_a_large_jpeg_is_decoded_at_reduced_size(tmp_path: Path) -> None:
    v, u = np.mgrid[0:160, 0:320]
    smooth = np.stack([u * 0.7, v * 1.4, 120 + 60 * np.sin(u / 15)], axis=2).round().astype(np.uint8)
    path = saved(tmp_path / "large.jpg", smooth, quality=98, subsampling=0)
    for image_size, factor in (((40, 80), 4), ((36, 80), 4), ((41, 80), 2), ((100, 320), 1), ((10, 20), 8)):
        assert reduction((160, 320), image_size) == factor
        image = read_image(path, image_size)
        assert image.shape[1:] == (160 // factor, 320 // factor)
        small, _ = resize_and_crop(image, torch.eye(3), image_size)
        whole, _ = resize_and_crop(read_image(path), torch.eye(3), image_size)
        away = (small.float() - whole.float()).abs()[:, 1:-1, 1:-1]
        assert away.mean() < 1.0  # half a pixel's shift would be .35 · factor and more
    assert reduction((161, 320), (40, 80)) == 1  # would not divide
    png = saved(tmp_path / "large.png", smooth)
    assert read_image(png, (40, 80)).shape[1:] == (160, 320)


DISTORTED_SIZE = (240, 400)
DISTORTED_K = ((300.0, 0.0, 207.0), (0.0, 296.0, 116.0), (0.0, 0.0, 1.0))
LENSES = {
    "opencv": DistortionModel("opencv", (-0.3, 0.1, 0.001, -0.002, 0.0), DISTORTED_K, DISTORTED_SIZE),
    "fisheye": DistortionModel(
        "fisheye", (0.05, -0.01, 0.0, 0.0), ((190.0, 0, 203.0), (0, 190.0, 118.0), (0, 0, 1.0)), DISTORTED_SIZE
    ),
}


def opencv_map(distortion: DistortionModel) -> tuple[np.ndarray, np.ndarray]:
    k, coefficients, new = (
        np.array(distortion.intrinsics),
        np.array(distortion.coefficients),
        pinhole_intrinsics(distortion).numpy(),
    )
    if distortion.model == "fisheye":
        return cv2.fisheye.initUndistortRectifyMap(k, coefficients, np.eye(3), new, DISTORTED_SIZE[::-1], cv2.CV_32FC1)
    return cv2.initUndistortRectifyMap(k, coefficients, np.eye(3), new, DISTORTED_SIZE[::-1], cv2.CV_32FC1)


def textured() -> np.ndarray:
    """Return an image with detail down to about four pixels."""
    noise = np.random.default_rng(5).uniform(0, 1, (*DISTORTED_SIZE, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5) - 0.5
    return np.clip(128 + 400 * smooth, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("distortion", LENSES.values(), ids=LENSES)
def test_a_stored_image_is_undistorted_as_opencv_does(distortion: DistortionModel) -> None:
    image = textured()
    expected = cv2.remap(image, *opencv_map(distortion), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    found = undistort(torch.from_numpy(image).permute(2, 0, 1), distortion).permute(1, 2, 0).numpy()
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 3, "OpenCV rounds positions to a 32nd of a pixel"
    assert difference.mean() < 0.4


@pytest.mark.parametrize("distortion", LENSES.values(), ids=LENSES)
def test_labels_are_undistorted_by_the_nearest_pixel(distortion: DistortionModel) -> None:
    codes = np.random.default_rng(6).integers(0, 256, DISTORTED_SIZE, dtype=np.uint8)
    u, v = opencv_map(distortion)
    expected = codes[np.rint(v).astype(int), np.rint(u).astype(int)]
    found = undistort_labels(torch.from_numpy(codes), distortion).numpy()
    rounds_alike = (np.abs(u % 1 - 0.5) > 1e-3) & (np.abs(v % 1 - 0.5) > 1e-3)
    np.testing.assert_array_equal(found[rounds_alike], expected[rounds_alike])
    assert rounds_alike.mean() > 0.99


@pytest.mark.parametrize("image_size", [(96, 160), (60, 100), (70, 160), (200, 320), (120, 90)])
@pytest.mark.parametrize("distortion", LENSES.values(), ids=LENSES)
def test_undistorting_and_fitting_in_one_step_equals_two_steps(
    distortion: DistortionModel, image_size: tuple[int, int]
) -> None:
    image = torch.from_numpy(textured()).permute(2, 0, 1)
    at_once, intrinsics = resize_and_crop(image, pinhole_intrinsics(distortion), image_size, distortion)
    full = cv2.remap(textured(), *opencv_map(distortion), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    expected, moved = resize_and_crop(
        torch.from_numpy(full).permute(2, 0, 1), pinhole_intrinsics(distortion), image_size
    )
    assert torch.equal(intrinsics, moved)
    difference = (at_once.float() - expected.float()).abs()
    contrast = expected.float().std()
    assert difference.mean() < 0.15 * contrast


def test_convention_an_undistorted_image_agrees_with_its_intrinsics() -> None:
    """A dot at OpenCV's projection of a point is, undistorted and fitted, at the pinhole camera's projection."""
    distortion = LENSES["opencv"]
    for x, y in ((0.0, 0.0), (-0.5, 0.25), (0.45, -0.3), (0.3, 0.3)):
        ray = np.array([[[x, y, 1.0]]])
        spot = cv2.projectPoints(
            ray, np.zeros(3), np.zeros(3), np.array(distortion.intrinsics), np.array(distortion.coefficients)
        )
        u, v = spot[0].ravel()
        vv, uu = np.mgrid[0 : DISTORTED_SIZE[0], 0 : DISTORTED_SIZE[1]]
        dot = 250 * np.exp(-((uu - u) ** 2 + (vv - v) ** 2) / (2 * 6.0**2))
        image = torch.from_numpy(np.repeat(dot[None], 3, 0).round().astype(np.uint8))
        fitted, intrinsics = resize_and_crop(image, pinhole_intrinsics(distortion), (120, 200), distortion)
        weights = fitted[0].double().numpy()
        rows, cols = np.mgrid[0:120, 0:200]
        found = (weights * cols).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
        expected = intrinsics.numpy() @ [x, y, 1]
        np.testing.assert_allclose(found, expected[:2], atol=0.15)
