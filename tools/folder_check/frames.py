"""Decode each image, label and list of boxes of a folder once."""

from collections.abc import Callable
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from bevreshape.data.sources.folder.boxes import Boxes, read_boxes
from bevreshape.data.sources.folder.dataset import CameraFolderDataset
from bevreshape.data.sources.folder.labels import BEVLabels, ImageLabels
from bevreshape.errors import InputError
from bevreshape.reporting.progress import track


def check_frames(
    frames: CameraFolderDataset, images: ImageLabels | None, bev_labels: BEVLabels | None, boxes: Path | None
) -> tuple[Table, dict[str, Boxes], list[str]]:
    """Decode every image, label and list of boxes once.

    Returns:
        The count of every label, the boxes of every frame, and the faults of files.
    """
    pixels, cells, faults = torch.zeros(256), torch.zeros(256), []
    found: dict[str, Boxes] = {}
    cameras = range(len(frames.calibration.cameras))
    for index, name in enumerate(track(frames.names, "checking frames")):
        present = torch.tensor([frames.image_path(index, number) is not None for number in cameras])
        parts: list[Callable[[], object]] = [lambda index=index: frames[index]]  # type: ignore[misc]
        if images is not None:
            parts.append(lambda name=name, present=present: pixels.add_(_count(images.read(name, present))))  # type: ignore[misc]
        if bev_labels is not None:
            parts.append(lambda name=name: cells.add_(_count(bev_labels.read(name))))  # type: ignore[misc]
        if boxes is not None:
            parts.append(lambda index=index, name=name: found.update({name: boxes_of(frames, index, boxes)}))  # type: ignore[misc]
        for part in parts:
            try:
                part()
            except InputError as error:
                faults.append(str(error))
    table = Table("labels", "name", "values", "share", box=SIMPLE_HEAD)
    calibration = frames.calibration
    for what, counts, meaning in (("pixels", pixels, calibration.labels), ("cells", cells, calibration.bev)):
        if meaning is None or not counts.any():
            continue
        for name, values in [*meaning.members.items(), ("(void)", meaning.void)]:
            members = values.nonzero().flatten().tolist()
            share = (counts[values].sum() / counts.sum()).item()
            written = ", ".join(map(str, members[:5])) + (" …" if len(members) > 5 else "")
            table.add_row(what, name, written, f"{share:.2%}")
    return table, found, faults


def boxes_of(frames: CameraFolderDataset, index: int, folder: Path) -> Boxes:
    """Return the 3D boxes of a frame."""
    return read_boxes(folder / f"{frames.names[index]}.json", frames.calibration.boxes or ())


def _count(values: Tensor) -> Tensor:
    return torch.bincount(values.flatten(), minlength=256).float()
