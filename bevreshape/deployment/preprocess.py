"""Convert raw images to the inputs of an exported program, by numpy alone.

This file needs neither torch nor another file of the package, and may be copied to the machine of the program::

    session = onnxruntime.InferenceSession("best.onnx")
    prepare = Preprocessing(session.get_modelmeta().custom_metadata_map["bevreshape"])
    (probabilities,) = session.run(None, prepare({"front": image}, cameras))

The pixels are those of training to within one grey level. (Training decodes a JPEG of at least twice the size at a
smaller one, which adds a difference of one or two levels.)
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Size = tuple[int, int]

FORMAT = 1
"""Version of the metadata, raised when their meaning changes."""


class Preprocessing:
    """Convert the raw images of one sample to the inputs of an exported program.

    Args:
        about: the metadata that ``bevreshape.export`` stored: of an ONNX file under ``bevreshape``, of a pt2 file in
            ``bevreshape.json``; as text or parsed.

    Raises:
        ValueError: when the metadata are of another program or of a newer format.
    """

    def __init__(self, about: str | Mapping[str, Any]) -> None:
        given = json.loads(about) if isinstance(about, str) else about
        if not isinstance(given, Mapping) or given.get("format") != FORMAT:
            found = given.get("format") if isinstance(given, Mapping) else given
            raise ValueError(
                f"metadata have format {found!r}, this file reads {FORMAT}; take the preprocess.py of the version that "
                "exported"
            )
        self.about = given
        self.names: list[str] = list(given["camera_names"])
        height, width = given["image_size"]
        self.size: Size = (int(height), int(width))
        self.fixed = None if given["cameras"] is None else {camera["name"]: camera for camera in given["cameras"]}

    def __call__(
        self, images: Mapping[str, Array], cameras: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Array]:
        """Prepare one sample; samples are joined along the first axis.

        Args:
            images: by camera name, uint8 of (h, w, 3) in RGB, or (h, w) where the model takes grey images; decoded as
                stored, neither rotated nor resized.
            cameras: their calibration as under ``cameras`` in a ``calibration.json``: ``name``, ``intrinsics`` of the
                raw image, ``ego_from_cam``, and ``distortion`` where there is one; ``None`` for a fixed rig.

        Returns:
            ``image``, and unless the rig is fixed ``intrinsics`` and ``ego_from_cam``, as float32 with a batch of 1.

        Raises:
            ValueError: when a camera is missing or unknown, or an image is of another kind or size.
        """
        _same_names("images", images, self.names)
        if self.fixed is None:
            known = {camera["name"]: camera for camera in cameras or ()}
            _same_names("cameras", known, self.names)
            known = {name: self._free(known[name], images[name]) for name in self.names}
        elif cameras is not None:
            raise ValueError("the program has a fixed rig; leave cameras out, or export it without calibration=")
        else:
            known = self.fixed
        pixels = [self._image(images[name], known[name]) for name in self.names]
        inputs = {"image": np.stack(pixels)[None].astype(np.float32) / np.float32(255)}
        if self.fixed is None:
            for key, of in (("intrinsics", "fitted_intrinsics"), ("ego_from_cam", "ego_from_cam")):
                inputs[key] = np.array([known[name][of] for name in self.names], dtype=np.float32)[None]
        return inputs

    def _free(self, camera: Mapping[str, Any], image: Array) -> dict[str, Any]:
        """Return a camera in the form of the metadata of a fixed rig."""
        stored = (int(image.shape[0]), int(image.shape[1]))
        if "image_size" in camera and tuple(camera["image_size"]) != stored:
            raise ValueError(
                f"camera {camera['name']}: the image is {stored[0]}×{stored[1]} but it was calibrated for "
                f"{camera['image_size']}; give the image as the camera stores it"
            )
        pinhole, distortion = camera["intrinsics"], camera.get("distortion")
        if distortion is not None:
            if distortion.get("intrinsics") is None:
                raise ValueError(
                    f"camera {camera['name']}: its distortion has no intrinsics of the undistorted image; give "
                    "distortion.intrinsics, or export with calibration=FILE, which stores them"
                )
            pinhole = distortion["intrinsics"]
        return {
            **camera,
            "image_size": stored,
            "distortion": distortion,
            "fitted_intrinsics": resize_and_crop_intrinsics(np.asarray(pinhole, dtype=np.float64), stored, self.size),
        }

    def _image(self, image: Array, camera: Mapping[str, Any]) -> Array:
        """Return the fitted image, (3, H, W) uint8."""
        grey = self.about["image_mode"] == "grey"
        if image.dtype != np.uint8 or not ((image.ndim == 3 and image.shape[2] == 3) or (grey and image.ndim == 2)):
            raise ValueError(
                f"camera {camera['name']}: the image is {image.dtype} {image.shape}; give uint8 of (h, w, 3) in RGB"
                + (" or (h, w)" if grey else "")
            )
        stored = tuple(camera["image_size"])
        if image.shape[:2] != stored:
            raise ValueError(
                f"camera {camera['name']}: the image is {image.shape[0]}×{image.shape[1]} but the program is for "
                f"{stored[0]}×{stored[1]}; give the image as the camera stores it"
            )
        if grey:
            image = _luma(image) if image.ndim == 3 else image
            image = np.repeat(image[..., None], 3, axis=2)
        if camera["distortion"] is not None:
            return _undistorted(image, camera, self.size).transpose(2, 0, 1)
        size, top, left = fitting(stored, self.size)
        window = resize(image, size)[top : top + self.size[0], left : left + self.size[1]]
        return window.transpose(2, 0, 1)


def fitting(stored: Size, wanted: Size) -> tuple[Size, int, int]:
    """Return the size (H, W) that covers the wanted one, and the rows cut at its top and columns at its left."""
    scale = max(new / old for new, old in zip(wanted, stored, strict=True))
    height, width = (max(new, round(old * scale)) for new, old in zip(wanted, stored, strict=True))
    return (height, width), height - wanted[0], (width - wanted[1]) // 2


def resize_and_crop_intrinsics(intrinsics: Array, stored: Size, wanted: Size) -> Array:
    """Return ``pixel_from_cam`` (3, 3) of an image of the wanted size; integers are pixel centres."""
    (height, width), top, left = fitting(stored, wanted)
    u, v = width / stored[1], height / stored[0]
    change = np.array([[u, 0, 0.5 * u - 0.5 - left], [0, v, 0.5 * v - 0.5 - top], [0, 0, 1]])
    return change @ intrinsics


def resize(image: Array, size: Size) -> Array:
    """Resize uint8 (h, w, 3), bilinear and antialiased as Pillow's ``BILINEAR`` and torch's ``antialias=True``."""
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            weights = _weights(image.shape[axis], size[axis])
            image = np.moveaxis(np.tensordot(weights, image.astype(np.float32), (1, axis)), 0, axis)
            image = np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)
    return image


def _weights(old: int, new: int) -> Array:
    """Return the weight of every old pixel in each new one, (new, old)."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    apart = np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / reach
    weights = np.clip(1 - apart, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _luma(image: Array) -> Array:
    """Return luma by ITU-R 601, rounded as in Pillow."""
    weighted = image.astype(np.int64) @ np.array([19595, 38470, 7471])
    return ((weighted + 0x8000) >> 16).astype(np.uint8)


def _undistorted(image: Array, camera: Mapping[str, Any], wanted: Size) -> Array:
    """Sample the pinhole image of a stored one, at two by two points a pixel, or one if it is hardly shrunk."""
    stored: Size = (image.shape[0], image.shape[1])
    ratio = min(old / new for old, new in zip(stored, wanted, strict=True))
    over = 1 if ratio < 1.25 else 2
    if ratio > over:
        image = resize(image, (round(stored[0] * over / ratio), round(stored[1] * over / ratio)))
    finer = np.diag([over, over, 1.0]) @ np.asarray(camera["fitted_intrinsics"], dtype=np.float64)
    finer[:2] += (0.5 * over - 0.5) * finer[2]
    v, u = np.mgrid[: over * wanted[0], : over * wanted[1]]
    rays = np.linalg.inv(finer) @ np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    x, y = distort(camera["distortion"], rays[0] / rays[2], rays[1] / rays[2])
    pixels = np.asarray(camera["intrinsics"], dtype=np.float64) @ np.stack([x, y, np.ones(x.size)])
    u, v = pixels[:2] / pixels[2]
    u = (u + 0.5) * image.shape[1] / stored[1] - 0.5
    v = (v + 0.5) * image.shape[0] / stored[0] - 0.5
    read = _bilinear(image, u, v).reshape(wanted[0], over, wanted[1], over, 3).mean((1, 3))
    return np.clip(np.rint(read), 0, 255).astype(np.uint8)


def distort(distortion: Mapping[str, Any], x: Array, y: Array) -> tuple[Array, Array]:
    """Distort points (x, y) of the camera's plane z = 1, by OpenCV's models."""
    k = [*distortion["coefficients"], 0, 0, 0, 0][:8]
    square = x * x + y * y
    if distortion["model"] == "fisheye":
        radius = np.sqrt(square)
        angle = np.arctan(radius)
        distorted = angle * (1 + angle**2 * (k[0] + angle**2 * (k[1] + angle**2 * (k[2] + angle**2 * k[3]))))
        factor = np.divide(distorted, radius, out=np.ones_like(radius), where=radius > 1e-8)
        return x * factor, y * factor
    k1, k2, p1, p2, k3, k4, k5, k6 = k
    radial = (1 + square * (k1 + square * (k2 + square * k3))) / (1 + square * (k4 + square * (k5 + square * k6)))
    return (
        x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x),
        y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
    )


def _bilinear(image: Array, u: Array, v: Array) -> Array:
    """Sample (p, 3) at pixels; outside, the nearest border value."""
    height, width = image.shape[:2]
    u, v = np.clip(u, 0, width - 1), np.clip(v, 0, height - 1)
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (u - left)[:, None].astype(np.float32), (v - top)[:, None].astype(np.float32)
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def _same_names(what: str, given: Mapping[str, Any], wanted: Sequence[str]) -> None:
    if set(given) != set(wanted):
        raise ValueError(f"{what} are for {sorted(given)} but the program is for {list(wanted)}; give one of each")
