"""Augment whole batches on their device; calibration, targets and validity follow the images.

The change of a sample is a function of (seed, epoch, index of the sample). It does not depend on how batches are
composed or on the number of processes, and a resumed run repeats it. The few random values of a sample are drawn on
the CPU; all samples are then changed at once.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le, Len
from einops import rearrange
from jaxtyping import Float
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor

from bevreshape.config.options import Share, checked
from bevreshape.data.batch import BEVBatch, seeded
from bevreshape.data.image_io import ImageMode
from bevreshape.data.targets import Window, like
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

STREAM = 0x4155474D
"""Last word of the random key; it separates these draws from those of the training order."""


class Draws(NamedTuple):
    """Hold uniform random values in 0..1 of every sample, (b,) each."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    noise: Tensor
    flip: Tensor
    zoom: Tensor
    left: Tensor
    top: Tensor


@checked
class Augment:
    """Apply photometric jitter, horizontal flip, and zoom (resize and crop): ``augment(batch, seed, epoch)``.

    All cameras of a sample change alike. Flip and zoom are off by default: they change the homography between image and
    ground, and a reshaper without calibration memorizes that homography.

    Args:
        brightness: images are multiplied by a factor from 1 ± brightness.
        contrast: the distance to an image's mean is multiplied by a factor from 1 ± contrast.
        saturation: the distance to grey is multiplied by a factor from 1 ± saturation.
        hue: the hue is rotated by up to ± hue of the whole circle, at most 0.5.
        noise: highest standard deviation of Gaussian noise; a sample's own is uniform from 0. White is 1.
        flip_p: probability that the world is mirrored at the plane y = 0.
        zoom: lowest and highest factor by which images are enlarged, at least 1, before a random window of their old
            size is cut out. Cells that no camera observes any longer become invalid.
        grid: of the targets; it must be symmetric in y to be mirrored.
        image_mode: ``grey`` where all three channels of an image are the same; its noise is then the same too.
        camera_names: of the rig. Mirroring swaps the images of two cameras whose names differ by ``left`` and
            ``right`` alone, so that a name keeps its direction; other cameras keep their position.

    Raises:
        InputError: when the factors of zoom do not ascend, or a flip is requested without a grid or with one that is
            not symmetric.
    """

    def __init__(
        self,
        *,
        grid: BEVGrid | None = None,
        camera_names: Sequence[str] = (),
        image_mode: ImageMode = "rgb",
        brightness: Share = 0.0,
        contrast: Share = 0.0,
        saturation: Share = 0.0,
        hue: Annotated[float, Ge(0), Le(0.5)] = 0.0,
        noise: Share = 0.0,
        flip_p: Share = 0.0,
        zoom: Annotated[Sequence[Annotated[float, Ge(1), Le(10)]], Len(2, 2)] = (1.0, 1.0),
    ) -> None:
        if not zoom[0] <= zoom[1]:
            raise InputError(f"augment.zoom={list(zoom)} must be [lowest, highest] factors, as in [1.0, 1.3]")
        geometric = [key for key, on in (("flip_p", flip_p > 0), ("zoom", zoom[1] > 1)) if on]
        if geometric and grid is None:
            raise InputError(f"augment: {' and '.join(geometric)} move the ground; pass grid= of the targets")
        if flip_p > 0 and grid is not None and grid.left_m[0] != -grid.left_m[1]:
            raise InputError(
                f"augment.flip_p={flip_p}: the grid's left_m={grid.left_m} is not symmetric, its mirror image is "
                "another grid; set flip_p=0 or symmetric bounds"
            )
        self.grid = grid
        self.grey = image_mode == "grey"
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.noise, self.flip_p, self.zoom = noise, flip_p, (zoom[0], zoom[1])
        self.partner = mirrored_cameras(camera_names)
        self.active = any((brightness, contrast, saturation, hue, noise, flip_p)) or self.zoom[1] > 1

    def __call__(self, batch: BEVBatch, seed: int, epoch: int) -> BEVBatch:
        """Return an augmented copy of a batch, which is on its device, with images in 0..1 and with its targets."""
        if not self.active:
            return batch
        generators = [seeded(STREAM, seed, epoch, meta.index) for meta in batch.meta]
        drawn = torch.stack([torch.rand(len(Draws._fields), generator=generator) for generator in generators])
        draws = Draws(*drawn.to(batch.images.device, non_blocking=True).unbind(1))
        if self.flip_p > 0:
            batch = batch.flip(self._partner(batch)).where(draws.flip < self.flip_p, batch)
        if self.zoom[1] > 1:
            assert self.grid is not None
            batch = batch.zoom(self._window(batch, draws), self.grid)
        return replace(batch, images=self._photometric(batch.images, draws, generators))

    def _partner(self, batch: BEVBatch) -> list[int]:
        """Return the index of the mirrored camera of every camera."""
        n = batch.images.shape[1]
        if self.partner and len(self.partner) != n:
            raise InputError(
                f"augment: {n} cameras in the batch but {len(self.partner)} camera_names; pass those of the rig"
            )
        return self.partner or list(range(n))

    def _window(self, batch: BEVBatch, draws: Draws) -> Window:
        """Return the window that is cut out of every sample's enlarged images."""
        (height, width), dtype = batch.images.shape[-2:], batch.cameras.intrinsics.dtype
        low, high = self.zoom
        scale = low + (high - low) * draws.zoom.to(dtype)  # b
        return Window(scale, draws.left.to(dtype) * (scale - 1) * width, draws.top.to(dtype) * (scale - 1) * height)

    def _photometric(
        self, image: Float[Tensor, "b n 3 H W"], draws: Draws, generators: list[torch.Generator]
    ) -> Float[Tensor, "b n 3 H W"]:
        b, n = image.shape[:2]
        flat = rearrange(image, "b n c H W -> (b n) c H W")

        def around(middle: float, spread: float, drawn: Tensor) -> Tensor:
            return (middle + spread * (2 * drawn - 1)).repeat_interleave(n)

        if self.brightness:
            flat = adjust_brightness_accumulative(flat, around(1.0, self.brightness, draws.brightness))
        if self.contrast:
            flat = adjust_contrast_with_mean_subtraction(flat, around(1.0, self.contrast, draws.contrast))
        if self.saturation:
            flat = adjust_saturation_with_gray_subtraction(flat, around(1.0, self.saturation, draws.saturation))
        if self.hue:
            flat = adjust_hue(flat, around(0.0, 2 * math.pi * self.hue, draws.hue))
        image = rearrange(flat, "(b n) c H W -> b n c H W", b=b)
        if self.noise:
            image = (image + like(draws.noise * self.noise, image) * self._noise_like(image, generators)).clamp(0, 1)
        return image

    def _noise_like(self, image: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw standard normal noise on the device, each sample's from its own generator."""
        noise = torch.empty_like(image[:, :, :1] if self.grey else image)
        for one, drawn in zip(noise, generators, strict=True):
            seed = int(torch.randint(2**62, (), generator=drawn))
            one.normal_(generator=torch.Generator(image.device).manual_seed(seed))
        return noise


def mirrored_cameras(names: Sequence[str]) -> list[int]:
    """Return the index of the mirrored camera of every camera, by its name; its own index where there is none."""

    def other_side(match: re.Match[str]) -> str:
        word = match[0]
        swapped = {"left": "right", "right": "left"}[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    others = [re.sub("left|right", other_side, name, flags=re.IGNORECASE) for name in names]
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers.get(other, number) for number, other in enumerate(others)]
