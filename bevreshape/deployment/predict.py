"""Predict the bird's-eye view of images and videos, as class maps, overlays, probabilities and a video."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.load_model import load_model
from bevreshape.data.batch import SEGMENTATION, match_cameras
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.data.video import import_av
from bevreshape.deployment.frames import Frames, Stored, open_input
from bevreshape.deployment.inference import check_segmentation
from bevreshape.deployment.prediction import Prediction, SheetPainter
from bevreshape.errors import Divergence, InputError
from bevreshape.geometry import ground_pixels
from bevreshape.reporting.class_colors import RGBImage
from bevreshape.reporting.drawing import bev_sheet, overlay_sheet
from bevreshape.reporting.painted_ground import paint_ground
from bevreshape.reporting.progress import Progress
from bevreshape.reporting.video import open_video
from bevreshape.storage.files import remove_abandoned, write_atomic, write_png
from bevreshape.training.hardware import read_device


def predict_input(settings: Mapping[str, Any]) -> tuple[int, Path]:
    """Predict an input by a checkpoint's model.

    Args:
        settings: of the command, see :class:`~bevreshape.config.settings.Predict`.

    Returns:
        The number of frames, and the folder or video that was written.

    Raises:
        InputError: when the calibration does not match the model, ``out`` is the folder of the images, or nothing is
            to be written.
    """
    device = read_device(str(settings["device"]))
    model, spec, _ = load_model(settings["checkpoint"], settings["trust"])
    check_segmentation(model, settings["checkpoint"])
    path, out = Path(settings["input"]), Path(settings["out"])
    frames = open_input(
        path,
        spec,
        calibration=Path(settings["calibration"]) if settings["calibration"] else None,
        every=settings["every"],
        rate=None if settings["fps"] is None else Fraction(settings["fps"]).limit_denominator(1001),
        num_workers=settings["num_workers"],
    )
    frames.calibration.check_views(spec.grid)
    files = frames.of_images if settings["frames"] is None else settings["frames"]
    video = None
    if not frames.of_images if settings["video"] is None else settings["video"]:
        video = out / f"{frames.name}_bev.mp4"
        import_av()
    if not files and video is None:
        raise InputError("frames and video are both off, so that nothing would be written; set one to true")
    if out.resolve() in frames.folders:
        raise InputError(f"out={out} is the folder of the images, where drawings would count as frames; name another")
    remove_abandoned(out)
    predicted = predictions(model.to(device), spec, frames, settings["batch_size"])
    count = write(predicted, spec, frames, out if files else None, video, settings["threshold"])
    return count, out if files or video is None else video


def predictions(model: torch.nn.Module, spec: BEVSpec, frames: Frames, batch_size: int = 8) -> Iterator[Prediction]:
    """Yield the prediction of every frame, in order. Memory does not grow with the number of frames.

    Raises:
        Divergence: when a probability is NaN.
    """
    device = next(model.parameters()).device
    order = match_cameras(spec.camera_names, frames.calibration.cameras, str(frames.calibration.path))
    for given, stored in frames.batches(batch_size):
        batch = given.to(device).select_cameras(order)
        with torch.no_grad():
            outputs = model(batch.images.float() / 255, batch.cameras)
            probabilities = outputs.heads[SEGMENTATION].float().sigmoid()  # b k rows cols
        _check_finite(probabilities, batch.names)
        visible = ground_pixels(batch.cameras, spec.grid)[1].any(1)  # b rows cols
        for i, meta in enumerate(batch.meta):
            rig = frames.calibration.of(meta.name)
            images = [_image(stored[i], camera, rig.sizes[camera]) for camera in order]
            assert meta.timestamp is not None
            yield Prediction(meta.name, meta.timestamp, probabilities[i], visible[i], images, rig, order)


def _image(stored: Stored, camera: int, size: tuple[int, int]) -> RGBImage:
    image = stored(camera)
    return np.zeros((*size, 3), np.uint8) if image is None else image.permute(1, 2, 0).contiguous().numpy()


def _check_finite(probabilities: Tensor, names: Sequence[str]) -> None:
    lost = probabilities.isnan().flatten(1).sum(1)  # b
    if lost.any():
        first = int(lost.argmax())
        raise Divergence(
            f"predict: the network's output is NaN in {int(lost[first])} cells of frame {names[first]!r}; its training "
            "had diverged, so use another checkpoint"
        )


def write(
    predicted: Iterator[Prediction],
    spec: BEVSpec,
    frames: Frames,
    out: Path | None,
    video: Path | None,
    threshold: float = 0.5,
) -> int:
    """Write predictions as they come.

    Args:
        predicted: predictions of ``frames``.
        spec: of the model.
        frames: the input.
        out: folder for the files of every frame, see :func:`write_frame`; ``None`` writes none.
        video: file for :meth:`~bevreshape.deployment.prediction.SheetPainter.draw` of every frame; ``None`` writes
            none. It is complete or absent.
        threshold: probability from which a class is drawn.

    Returns:
        The number of predictions.
    """
    count, add, painter = 0, None, None
    with ExitStack() as stack, Progress("predicting: frames", frames.count) as progress:
        for prediction in predicted:
            if out is not None:
                write_frame(out, prediction, spec, threshold)
            if video is not None:
                add = add or stack.enter_context(open_video(video, frames.rate))
                if painter is None or painter.rig is not prediction.rig:
                    painter = SheetPainter(prediction.rig, prediction.order, spec, threshold)
                add(painter.draw(prediction), prediction.seconds)
            count += 1
            progress.advance()
    return count


def write_frame(out: Path, prediction: Prediction, spec: BEVSpec, threshold: float = 0.5) -> None:
    """Write ``<frame>_bev.png``, ``<frame>_overlay.png`` and ``<frame>.npz``.

    An overlay shows the images as stored, in their own size; the classes are painted through the distortion.
    The .npz holds ``probabilities`` (k, rows, cols) float16, ``valid`` (rows, cols), the cells that a camera observes,
    ``classes``, ``forward_m``, ``left_m`` and ``cell_m``.
    """
    name, probabilities, visible = prediction.name, prediction.probabilities, prediction.visible
    drawn = bev_sheet(probabilities, spec.classes, visible.expand_as(probabilities), threshold=threshold)
    write_png(out / f"{name}_bev.png", drawn)
    seen = (probabilities >= threshold) & visible
    write_png(out / f"{name}_overlay.png", overlay(prediction.images, prediction.rig, prediction.order, seen, spec))
    arrays = {
        "probabilities": probabilities.half().cpu().numpy(),
        "valid": visible.cpu().numpy(),
        "classes": np.array(spec.classes),
        "forward_m": np.array(spec.grid.forward_m),
        "left_m": np.array(spec.grid.left_m),
        "cell_m": np.array(spec.grid.cell_m),
    }
    write_atomic(out / f"{name}.npz", partial(_npz, arrays))


def overlay(images: Sequence[RGBImage], rig: Rig, order: Sequence[int], bev: Tensor, spec: BEVSpec) -> RGBImage:
    """Paint a prediction (k, rows, cols) into stored images of a rig's cameras ``order``."""
    painted = [
        paint_ground(image, bev, rig.rays(camera), rig.ego_from_cam[camera], spec.grid, spec.classes)
        for image, camera in zip(images, order, strict=True)
    ]
    return overlay_sheet(painted, rig.ego_from_cam[list(order)], spec.classes)


def _npz(arrays: dict[str, np.ndarray], file: BinaryIO) -> None:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
