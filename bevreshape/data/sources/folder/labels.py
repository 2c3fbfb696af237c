"""Read the sources of targets: image labels, projected onto the ground plane, BEV labels, or 3D boxes."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Integer, UInt8
from torch import Tensor

from bevreshape.data.image_io import read_label_image, undistort_labels
from bevreshape.data.sources.folder.boxes import read_boxes
from bevreshape.data.sources.folder.calibration import Calibration
from bevreshape.data.sources.folder.dataset import camera_folders, check_size, files_by_frame
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, labels_to_bev
from bevreshape.geometry.ipm import UNLABELED
from bevreshape.geometry.rasterize import rasterize_boxes
from bevreshape.storage.store_path import DataPath

Found = TypeVar("Found")


def matching_cells(
    stored: BEVGrid, wanted: BEVGrid, where: str
) -> tuple[Integer[Tensor, "R s"], Integer[Tensor, "C s"]]:
    """Return rows and columns of ``stored`` at the centres of ``wanted``.

    The wanted cells must be inside the stored ones and aligned with them, and their length must be an integer multiple
    or an integer fraction of theirs. A centre is then in one stored cell (s = 1) or, for an even multiple, on the
    corner of four (s = 2).

    Raises:
        InputError: when they are not; the labels would move by part of a cell.
    """
    ratio = wanted.cell_m / stored.cell_m
    unit = min(wanted.cell_m, stored.cell_m)
    edges = [
        (a - b) / unit
        for bounds in ("forward_m", "left_m")
        for a, b in zip(getattr(stored, bounds), getattr(wanted, bounds), strict=True)
    ]
    whole = all(abs(n - round(n)) < 1e-4 for n in (*edges, max(ratio, 1 / ratio)))
    inside = edges[0] < 1e-4 and edges[1] > -1e-4 and edges[2] < 1e-4 and edges[3] > -1e-4
    if not (whole and inside):
        raise InputError(
            f"{where}: the BEV labels are on {stored.rows}×{stored.cols} cells of {stored.cell_m:g} m, forward "
            f"{stored.forward_m}, left {stored.left_m}, and cannot be read on {wanted.rows}×{wanted.cols} cells of "
            f"{wanted.cell_m:g} m, forward {wanted.forward_m}, left {wanted.left_m}, without moving them; choose cells "
            "inside theirs, aligned with them, whose length is an integer multiple or an integer fraction of theirs"
        )
    centers = stored.metric_to_cell(wanted.centers(dtype=torch.float64))  # R C (col, row)
    on_corners = ratio > 1.5 and round(ratio) % 2 == 0
    around = torch.tensor([-0.5, 0.5] if on_corners else [0.0], dtype=torch.float64)
    rows, cols = ((places[:, None] + around).round().long() for places in (centers[:, 0, 1], centers[0, :, 0]))
    return rows, cols


def _explained(found: Found | None, path: DataPath, section: str, classes: Mapping[str, Sequence[str]]) -> Found:
    if found is None:
        raise InputError(f"{path}: there is no {section!r} section, but {', '.join(classes)} is made from it; add it")
    return found


def _ids(values: Tensor) -> list[int]:
    return values.nonzero().flatten().tolist()


class ImageLabels:
    """Read class ids of pixels, and project them onto the ground plane by inverse perspective mapping.

    Args:
        folder: structured as ``images/``, with PNG files of the images' sizes.
        calibration: of the images.
        classes: for every class, the names of the labels that count as it.

    Raises:
        InputError: when the calibration does not define the labels, or a name is unknown.
    """

    def __init__(self, folder: DataPath, calibration: Calibration, classes: Mapping[str, Sequence[str]]) -> None:
        label_map = _explained(calibration.labels, calibration.path, "labels", classes)
        self._calibration = calibration
        self._folder = folder
        self._label_map = label_map
        self._files = [files_by_frame(part) for part in camera_folders(folder, calibration)]
        self._classes = {name: _ids(label_map.any_of(names, f"class {name!r}")) for name, names in classes.items()}

    def read(self, name: str, camera_mask: Tensor) -> UInt8[Tensor, "n H W"]:
        """Return the label images of a frame, undistorted, void beyond their edge and where a camera is missing."""
        rig = self._calibration.of(name)
        canvas = torch.full((len(self._files), *self._calibration.largest_size), UNLABELED, dtype=torch.uint8)
        for number, (files, size) in enumerate(zip(self._files, rig.sizes, strict=True)):
            if not camera_mask[number]:
                continue
            if name not in files:
                raise InputError(
                    f"{self._folder}: frame {name!r} has no label of camera {self._calibration.cameras[number]!r}; add "
                    "it, or take the frame out of the split"
                )
            labels = read_label_image(files[name])
            check_size(files[name], (labels.shape[0], labels.shape[1]), size, self._calibration.path)
            self._label_map.check(labels, files[name])
            distortion = rig.distortions[number]
            canvas[number, : size[0], : size[1]] = (
                labels if distortion is None else undistort_labels(labels, distortion)
            )
        return canvas

    def to_bev(self, labels: Tensor, cameras: Cameras, grid: BEVGrid) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the target of every class and where it is known, both (b, rows, cols)."""
        target, known = labels_to_bev(labels, cameras, grid, list(self._classes.values()), _ids(self._label_map.void))
        return {name: (plane, known) for name, plane in zip(self._classes, target.unbind(1), strict=True)}


class BEVLabels:
    """Read BEV labels, one byte a cell, at the centres of the wanted cells.

    A centre on the corner of four stored cells has a class if at least half of the known ones have it, and is known if
    at least half of them are. No side is preferred, so labels do not move by half a cell.

    Args:
        folder: of ``<frame>.png``.
        calibration: defines the bytes and their grid.
        classes: for every class, the names of the labels that count as it.
        grid: the wanted cells.

    Raises:
        InputError: when the calibration does not define the labels, a name is unknown, or the grids do not fit.
    """

    def __init__(
        self, folder: DataPath, calibration: Calibration, classes: Mapping[str, Sequence[str]], grid: BEVGrid
    ) -> None:
        label_map = _explained(calibration.bev, calibration.path, "bev", classes)
        assert calibration.bev_grid is not None  # it is part of the same section
        self._files = files_by_frame(folder)
        self._folder = folder
        self._label_map = label_map
        self._stored = calibration.bev_grid
        self._rows, self._cols = matching_cells(calibration.bev_grid, grid, str(calibration.path))
        self._classes = {name: label_map.any_of(names, f"class {name!r}") for name, names in classes.items()}

    def read(self, name: str) -> UInt8[Tensor, "q R C"]:
        """Return the labels of a frame, of the one or four stored cells at every wanted centre."""
        if name not in self._files:
            raise InputError(
                f"{self._folder}: frame {name!r} has no BEV labels; add them, or take the frame out of the split"
            )
        labels = read_label_image(self._files[name])
        if tuple(labels.shape) != self._stored.shape:
            raise InputError(
                f"{self._files[name]}: the BEV labels have {labels.shape[0]}×{labels.shape[1]} cells but "
                f"calibration.json states a grid of {self._stored.rows}×{self._stored.cols}; correct its bounds or "
                "cell_m"
            )
        self._label_map.check(labels, self._files[name])
        q, (rows, cols) = self._rows.shape[1] * self._cols.shape[1], (len(self._rows), len(self._cols))
        found = labels[self._rows[:, None, :, None], self._cols[None, :, None, :]]  # R C s s
        return found.permute(2, 3, 0, 1).reshape(q, rows, cols)

    def to_bev(self, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the target of every class and where it is known, both (b, rows, cols)."""
        values = labels.long()  # b q rows cols
        labelled = ~self._label_map.void.to(values.device)[values]
        count = labelled.sum(1)
        known = 2 * count >= values.shape[1]
        planes = {}
        for name, table in self._classes.items():
            members = (table.to(values.device)[values] & labelled).sum(1)
            planes[name] = (known & (2 * members >= count), known)
        return planes


class BoxLabels:
    """Rasterize 3D boxes: a class has the cells whose centre is in a footprint of its boxes, and is known everywhere.

    Args:
        folder: of ``<frame>.json``.
        calibration: lists the categories.
        classes: for every class, the categories that count as it.
        grid: the wanted cells.

    Raises:
        InputError: when the calibration lists no categories, or a name is unknown.
    """

    def __init__(
        self, folder: DataPath, calibration: Calibration, classes: Mapping[str, Sequence[str]], grid: BEVGrid
    ) -> None:
        self._categories = _explained(calibration.boxes, calibration.path, "boxes", classes)
        for name, categories in classes.items():
            for category in categories:
                if category not in self._categories:
                    raise InputError(
                        f"class {name!r}: {category!r} is no category of this folder's boxes; "
                        f"{suggest(category, self._categories)}"
                    )
        self._folder = folder
        self._classes = dict(classes)
        self._grid = grid

    def read(self, name: str) -> Bool[Tensor, "k R C"]:
        """Return the classes of a frame on the wanted cells."""
        boxes = read_boxes(self._folder / f"{name}.json", self._categories)
        cells = rasterize_boxes(boxes.from_above, self._grid)
        return torch.stack([cells[boxes.among(names)].any(0) for names in self._classes.values()])

    def to_bev(self, planes: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the target of every class and where it is known, both (b, rows, cols)."""
        known = torch.ones_like(planes[:, 0])
        return {name: (plane, known) for name, plane in zip(self._classes, planes.unbind(1), strict=True)}
