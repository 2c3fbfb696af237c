"""Predict the bird's-eye view of a folder of images, as class maps, overlays and probabilities."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.load_model import load_model
from bevreshape.data.batch import SEGMENTATION, collate, match_cameras
from bevreshape.data.sources.folder.dataset import CameraFolderDataset, open_frames
from bevreshape.deployment.inference import check_segmentation
from bevreshape.errors import Divergence, InputError
from bevreshape.geometry import ground_pixels
from bevreshape.reporting.drawing import RGBImage, bev_sheet, overlay_sheet, paint_ground
from bevreshape.reporting.progress import track
from bevreshape.storage.files import write_atomic, write_png
from bevreshape.training.hardware import read_device
from bevreshape.training.stopping import Loader


def predict_folder(settings: Mapping[str, Any]) -> int:
    """Predict every frame of an input folder by a checkpoint's model.

    Args:
        settings: of the command, see :class:`~bevreshape.config.settings.Predict`.

    Returns:
        The number of frames written.

    Raises:
        InputError: when the calibration does not match the model, or ``out`` is the folder of the images.
    """
    device = read_device(str(settings["device"]))
    model, spec, _ = load_model(settings["checkpoint"], settings["trust"])
    check_segmentation(model, settings["checkpoint"])
    frames = open_frames(
        Path(settings["input"]),
        spec.image_size,
        calibration=Path(settings["calibration"]) if settings["calibration"] else None,
        image_mode=spec.image_mode,
        cameras=spec.camera_names,
    )
    frames.calibration.check_views(spec.grid)
    out = Path(settings["out"])
    images = [frames.image_path(0, number) for number in range(len(frames.calibration.cameras))]
    if out.resolve() in [path.parent.resolve() for path in images if isinstance(path, Path)]:
        raise InputError(f"out={out} is the folder of the images, where drawings would count as frames; name another")
    batch_size, num_workers, threshold = (settings[key] for key in ("batch_size", "num_workers", "threshold"))
    return predict(model.to(device), spec, frames, out, batch_size, num_workers, threshold)


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    spec: BEVSpec,
    frames: CameraFolderDataset,
    out: Path,
    batch_size: int = 8,
    num_workers: int = 0,
    threshold: float = 0.5,
) -> int:
    """Write ``<frame>_bev.png``, ``<frame>_overlay.png`` and ``<frame>.npz`` for every frame.

    An overlay shows the images as stored, in their own size; the classes are painted through the distortion.
    The .npz holds ``probabilities`` (k, rows, cols) float16, ``valid`` (rows, cols), the cells that a camera observes,
    ``classes``, ``forward_m``, ``left_m`` and ``cell_m``. Memory does not grow with the number of frames.

    Returns:
        The number of frames written.

    Raises:
        Divergence: when a probability is NaN.
    """
    device = next(model.parameters()).device
    order = match_cameras(spec.camera_names, frames.calibration.cameras, str(frames.calibration.path))
    loader = Loader(frames, batch_size, num_workers=num_workers, collate_fn=collate)
    written = 0
    for batch in track(loader, "predicting: batches"):
        batch = batch.to(device).select_cameras(order)
        outputs = model(batch.images.float() / 255, batch.cameras)
        probabilities = outputs.heads[SEGMENTATION].float().sigmoid()  # b k rows cols
        _check_finite(probabilities, batch.names)
        visible = ground_pixels(batch.cameras, spec.grid)[1].any(1)  # b rows cols
        for i, name in enumerate(batch.names):
            drawn = bev_sheet(
                probabilities[i], spec.classes, visible[i].expand_as(probabilities[i]), threshold=threshold
            )
            write_png(out / f"{name}_bev.png", drawn)
            seen = (probabilities[i] >= threshold) & visible[i]
            write_png(out / f"{name}_overlay.png", overlay(frames, batch.meta[i].index, order, seen, spec))
            arrays = {
                "probabilities": probabilities[i].half().cpu().numpy(),
                "valid": visible[i].cpu().numpy(),
                "classes": np.array(spec.classes),
                "forward_m": np.array(spec.grid.forward_m),
                "left_m": np.array(spec.grid.left_m),
                "cell_m": np.array(spec.grid.cell_m),
            }
            write_atomic(out / f"{name}.npz", partial(_npz, arrays))
            written += 1
    return written


def _check_finite(probabilities: torch.Tensor, names: Sequence[str]) -> None:
    lost = probabilities.isnan().flatten(1).sum(1)  # b
    if lost.any():
        first = int(lost.argmax())
        raise Divergence(
            f"predict: the network's output is NaN in {int(lost[first])} cells of frame {names[first]!r}; its training "
            "had diverged, so use another checkpoint"
        )


def overlay(frames: CameraFolderDataset, index: int, order: list[int], bev: torch.Tensor, spec: BEVSpec) -> RGBImage:
    """Paint a prediction (k, rows, cols) into a frame's stored images; a missing image is black."""
    rig = frames.calibration.of(frames.names[index])
    painted = []
    for camera in order:
        stored = frames.stored(index, camera)
        image = np.zeros((*rig.sizes[camera], 3), np.uint8)
        if stored is not None:
            given = stored.permute(1, 2, 0).contiguous().numpy()
            pose = rig.ego_from_cam[camera]
            image = paint_ground(given, bev, rig.rays(camera), pose, spec.grid, spec.classes)
        painted.append(image)
    return overlay_sheet(painted, rig.ego_from_cam[order], spec.classes)


def _npz(arrays: dict[str, np.ndarray], file: BinaryIO) -> None:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
