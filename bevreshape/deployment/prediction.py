"""Hold a predicted frame, and draw it for a video."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bevreshape.bev_spec import BEVSpec
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.reporting.class_colors import RGBImage
from bevreshape.reporting.drawing import image_scale, prediction_sheet
from bevreshape.reporting.painted_ground import ground_cells, paint_cells


class Prediction(NamedTuple):
    """Hold a predicted frame.

    Attributes:
        name: of the frame.
        seconds: since the first frame.
        probabilities: (k, rows, cols) float32.
        visible: (rows, cols), the cells that a camera observes.
        images: of the cameras as stored, in the model's order; a missing one is black.
        rig: of the frame.
        order: the rig's index of every camera of the model.
    """

    name: str
    seconds: float
    probabilities: Tensor
    visible: Tensor
    images: list[RGBImage]
    rig: Rig
    order: list[int]


class SheetPainter:
    """Draw predictions of one rig: the images with the classes painted onto the ground, and the bird's-eye view.

    Which cell a pixel shows is computed once.

    Args:
        rig: of all predictions.
        order: the rig's index of every camera of the model.
        spec: of the model.
        threshold: probability from which a class is drawn.
    """

    def __init__(self, rig: Rig, order: Sequence[int], spec: BEVSpec, threshold: float = 0.5) -> None:
        self.rig = rig
        self._poses = rig.ego_from_cam[list(order)]
        self._classes, self._threshold = spec.classes, threshold
        stored = [rig.sizes[camera] for camera in order]
        scale = image_scale(stored, self._poses)
        self._sizes = [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in stored]
        self._cells = [
            ground_cells(size, partial(_stored_rays, rig.rays(camera), size, rig.sizes[camera]), pose, spec.grid)
            for camera, size, pose in zip(order, self._sizes, self._poses, strict=True)
        ]

    def draw(self, prediction: Prediction) -> RGBImage:
        """Draw :func:`~bevreshape.reporting.drawing.prediction_sheet` of a prediction."""
        seen = (prediction.probabilities >= self._threshold) & prediction.visible
        painted = []
        for image, (height, width), cells in zip(prediction.images, self._sizes, self._cells, strict=True):
            scaled = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            painted.append(paint_cells(scaled, seen.cpu(), cells, self._classes))
        valid = prediction.visible.expand_as(prediction.probabilities)
        return prediction_sheet(
            painted, self._poses, prediction.probabilities, self._classes, valid, threshold=self._threshold
        )


def _stored_rays(
    rays: Callable[[Tensor], Tensor], size: tuple[int, int], stored: tuple[int, int], pixels: Tensor
) -> Tensor:
    """Return the rays of pixels (p, 2) of an image that was resized from ``stored`` to ``size``, both (H, W)."""
    factors = torch.tensor([stored[1] / size[1], stored[0] / size[0]], dtype=pixels.dtype)
    return rays((pixels + 0.5) * factors - 0.5)
