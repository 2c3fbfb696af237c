"""Camera folders: one's own pictures, calibrated, with labels in the pictures or from above.

``data/README.md`` describes the folder. Pictures come at the network's size; label pictures stay at their own, so that
ground truth does not suffer from a small network, and are laid onto the ground on the device, a batch at a time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from bevreshape.data.batch import SPLITS, Batch, Sample, cameras_of
from bevreshape.data.calibration import Calibration, Codes, read_calibration
from bevreshape.data.pictures import SUFFIXES, fit_picture, read_codes, read_picture
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels, labels_to_bev
from bevreshape.geometry.ipm import VOID


class ClassSpec(TypedDict):
    """Where the target of one class comes from; both may be described, so that one word switches between them."""

    source: Literal["ipm", "bev"]
    labels: NotRequired[Sequence[str]]
    """For ``ipm``: names of picture labels that count as this class."""
    bev: NotRequired[Sequence[str]]
    """For ``bev``: names of the BEV truth that count as this class."""


class Frames(Dataset[Sample]):
    """Calibrated pictures without labels, one sample a frame.

    Args:
        pictures: folder of ``<frame>.jpg|png`` for one camera, of ``<camera>/<frame>.jpg|png`` for several; or one
            picture of one camera.
        calibration: of these pictures.
        image_size: (H, W) that the network wants.
        names: the frames and their order; all of them, sorted, when left out.
        allow_missing: whether a frame may lack pictures of some cameras; they are black and masked. Otherwise refused.

    Raises:
        InputError: when there is no picture, a frame is unknown, or a camera's picture is missing.
    """

    def __init__(
        self,
        pictures: Path,
        calibration: Calibration,
        image_size: tuple[int, int],
        *,
        names: Sequence[str] | None = None,
        allow_missing: bool = False,
    ) -> None:
        self.calibration = calibration
        self.image_size = (image_size[0], image_size[1])
        self._files = [_by_frame(folder) for folder in _camera_folders(pictures, calibration.cameras)]
        known = set().union(*self._files)
        self.names = tuple(sorted(known) if names is None else names)
        if not self.names:
            raise InputError(f"{pictures}: there is no picture here; put {' or '.join(SUFFIXES)} files into it")
        for name in self.names:
            if name not in known:
                raise InputError(f"{pictures}: there is no picture of frame {name!r}; {suggest(name, known)}")
            for camera, files in zip(calibration.cameras, self._files, strict=True):
                if name not in files and not allow_missing:
                    raise InputError(
                        f"{pictures}: frame {name!r} has no picture of camera {camera!r}; add it, or set "
                        "allow_missing=true to mask that camera"
                    )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        rig = self.calibration.of(name)
        images, intrinsics, mask = [], [], []
        for number, size in enumerate(rig.sizes):
            path = self.picture(index, number)
            if path is None:
                picture = torch.zeros(3, *size, dtype=torch.uint8)
            else:
                picture = read_picture(path)
                _check_size(path, picture, size, self.calibration.path)
            picture, fitted = fit_picture(picture, rig.intrinsics[number], self.image_size)
            images.append(picture)
            intrinsics.append(fitted)
            mask.append(path is not None)
        return Sample(
            image=torch.stack(images),
            intrinsics=torch.stack(intrinsics).float(),
            ego_from_cam=rig.ego_from_cam.float(),
            camera_mask=torch.tensor(mask),
            index=index,
            name=name,
        )

    def picture(self, index: int, camera: int) -> Path | None:
        """The file of a frame's camera, ``None`` where it is missing."""
        return self._files[camera].get(self.names[index])


def open_frames(path: Path, image_size: tuple[int, int], *, calibration: Path | None = None) -> Frames:
    """The pictures of a camera folder, of a plain folder of pictures, or one picture.

    Args:
        path: any of them.
        image_size: (H, W) that the network wants.
        calibration: a ``calibration.json``; a camera folder brings its own.

    Raises:
        InputError: when there is nothing, or no calibration for it.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such folder or picture")
    if calibration is None and not (path / "calibration.json").is_file():
        raise InputError(f"{path}: these pictures bring no calibration.json; pass one with calibration=FILE")
    pictures = path / "images" if (path / "images").is_dir() else path
    return Frames(pictures, read_calibration(calibration or path / "calibration.json"), image_size, allow_missing=True)


class PictureTruth:
    """Class ids of pixels, laid onto the ground by inverse perspective mapping.

    Args:
        folder: laid out as ``images/``, with PNG files of the pictures' sizes.
        calibration: of the pictures.
        classes: for every class, the names of the labels that count as it.

    Raises:
        InputError: when the calibration does not explain the labels, or a name is none of them.
    """

    def __init__(self, folder: Path, calibration: Calibration, classes: Mapping[str, Sequence[str]]) -> None:
        codes = _explained(calibration.labels, calibration.path, "labels", classes)
        self._calibration = calibration
        self._folder = folder
        self._codes = codes
        self._files = [_by_frame(part) for part in _camera_folders(folder, calibration.cameras)]
        self._classes = {name: _ids(codes.any_of(names, f"class {name!r}")) for name, names in classes.items()}

    def read(self, name: str, camera_mask: Tensor) -> UInt8[Tensor, "n H W"]:
        """The label pictures of a frame, void beyond their edge and where a camera is missing."""
        rig = self._calibration.of(name)
        canvas = torch.full((len(self._files), *self._calibration.largest_size), VOID, dtype=torch.uint8)
        for number, (files, size) in enumerate(zip(self._files, rig.sizes, strict=True)):
            if not camera_mask[number]:
                continue
            if name not in files:
                raise InputError(
                    f"{self._folder}: frame {name!r} has no label of camera {self._calibration.cameras[number]!r}; add it, "
                    "or take the frame out of the split"
                )
            labels = read_codes(files[name])
            _check_size(files[name], labels, size, self._calibration.path)
            self._codes.check(labels, files[name])
            canvas[number, : size[0], : size[1]] = labels
        return canvas

    def lay(self, labels: Tensor, cameras: Cameras, grid: BEVGrid) -> dict[str, tuple[Tensor, Tensor]]:
        """For every class, target and where it is known, both (b, rows, cols)."""
        target, known = labels_to_bev(labels, cameras, grid, list(self._classes.values()), _ids(self._codes.void))
        return {name: (plane, known) for name, plane in zip(self._classes, target.unbind(1), strict=True)}


class MapTruth:
    """Truth seen from above, one byte a cell.

    Args:
        folder: of ``<frame>.png``.
        calibration: explains the bytes and states their grid.
        classes: for every class, the names of the truth that count as it.
        grid: the cells that are wanted.

    Raises:
        InputError: when the calibration does not explain the truth, a name is none of it, or the grids do not fit.
    """

    def __init__(
        self, folder: Path, calibration: Calibration, classes: Mapping[str, Sequence[str]], grid: BEVGrid
    ) -> None:
        codes = _explained(calibration.bev, calibration.path, "bev", classes)
        assert calibration.bev_grid is not None  # it is part of the same section
        self._files = _by_frame(folder)
        self._folder = folder
        self._codes = codes
        self._stored = calibration.bev_grid
        self._rows, self._cols = matching_cells(calibration.bev_grid, grid, str(calibration.path))
        self._classes = {name: codes.any_of(names, f"class {name!r}") for name, names in classes.items()}

    def read(self, name: str) -> UInt8[Tensor, "R C"]:
        """The truth of a frame on the wanted cells."""
        if name not in self._files:
            raise InputError(f"{self._folder}: frame {name!r} has no truth; add it, or take the frame out of the split")
        truth = read_codes(self._files[name])
        if tuple(truth.shape) != self._stored.shape:
            raise InputError(
                f"{self._files[name]}: the truth is {truth.shape[0]}×{truth.shape[1]} cells but calibration.json states a "
                f"grid of {self._stored.rows}×{self._stored.cols}; correct its bounds or cell_m"
            )
        self._codes.check(truth, self._files[name])
        return truth[self._rows][:, self._cols]

    def lay(self, truth: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """For every class, target and where it is known, both (b, rows, cols)."""
        values = truth.long()
        known = ~self._codes.void.to(values.device)[values]
        return {name: (table.to(values.device)[values] & known, known) for name, table in self._classes.items()}


class LabelledFrames(Dataset[Sample]):
    """Frames with what their targets are made from: ``labels`` and ``label_intrinsics``, ``bev``, or both."""

    def __init__(self, frames: Frames, pictures: PictureTruth | None, truth: MapTruth | None) -> None:
        self.frames = frames
        self._pictures = pictures
        self._truth = truth

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        sample = self.frames[index]
        extras: dict[str, Tensor] = {}
        if self._pictures is not None:
            extras["labels"] = self._pictures.read(sample["name"], sample["camera_mask"])
            extras["label_intrinsics"] = self.frames.calibration.of(sample["name"]).intrinsics.float()
        if self._truth is not None:
            extras["bev"] = self._truth.read(sample["name"])
        return {**sample, **extras}  # type: ignore[typeddict-item]  # finish() takes the extras out again


class FolderSource:
    """A camera folder as a source of labelled rigs (a :class:`~bevreshape.data.batch.BEVSource`).

    Args:
        root: the folder, with ``images/``, ``calibration.json``, and ``labels/`` or ``bev/`` or both.
        grid: the cells that are wanted.
        image_size: (H, W) that the network wants.
        classes: for every target class, where it comes from; left out, all that the calibration names, those of the
            truth from above before labels of the same name.
        splits: for ``train``, ``val`` and ``test``, a file of frame names, one a line, relative to ``root``.
        allow_missing: see :class:`Frames`.

    Raises:
        InputError: when folder, calibration, classes and grid do not fit together.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        grid: BEVGrid,
        image_size: Sequence[int],
        classes: Mapping[str, ClassSpec] | None = None,
        splits: Mapping[str, str],
        allow_missing: bool = False,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(
                f"{self.root}: there is no such folder; convert your data first (data/README.md), or set root"
            )
        if not classes:
            raise InputError(f"{self.root}: classes is empty; say what the targets are made from (data/README.md)")
        self.grid = grid
        self.image_size = (image_size[0], image_size[1])
        self.calibration = read_calibration(self.root / "calibration.json")
        classes = all_classes(self.calibration) if classes is None else classes
        self.classes = tuple(classes)
        self.calibration.check_views(grid)
        self.camera_names = self.calibration.cameras
        ipm, bev = _by_source(classes, "ipm"), _by_source(classes, "bev")
        self._pictures = PictureTruth(self.root / "labels", self.calibration, ipm) if ipm else None
        self._truth = MapTruth(self.root / "bev", self.calibration, bev, grid) if bev else None
        self._splits = dict(splits)
        self._allow_missing = allow_missing

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Read a frame of every split, so that what is wrong with all of them is told before the training starts."""
        for name in splits:
            self.split(name)[0]

    def split(self, name: str) -> LabelledFrames:
        """The frames of ``train``, ``val`` or ``test``.

        Raises:
            InputError: when the split or one of its frames does not exist.
        """
        if name not in self._splits:
            raise InputError(f"{self.root}: there is no split {name!r}; {suggest(name, self._splits)}")
        frames = Frames(
            self.root / "images",
            self.calibration,
            self.image_size,
            names=read_split(self.root / self._splits[name]),
            allow_missing=self._allow_missing,
        )
        return LabelledFrames(frames, self._pictures, self._truth)

    def finish(self, batch: Batch) -> Batch:
        """Make ``target`` and ``valid`` on the batch's device; augment only afterwards."""
        looks = ground_pixels(cameras_of(batch), self.grid)[1].any(1)  # b R C
        planes: dict[str, tuple[Bool[Tensor, "b R C"], Bool[Tensor, "b R C"]]] = {}
        if self._pictures is not None:
            labels, intrinsics = batch.pop("labels"), batch.pop("label_intrinsics")
            size = (labels.shape[-2], labels.shape[-1])
            planes |= self._pictures.lay(
                labels, Cameras(intrinsics, batch["ego_from_cam"], size, batch["camera_mask"]), self.grid
            )
        if self._truth is not None:
            planes |= self._truth.lay(batch.pop("bev"))
        batch["target"] = torch.stack([planes[name][0] for name in self.classes], dim=1)
        batch["valid"] = torch.stack([planes[name][1] & looks for name in self.classes], dim=1)
        return batch


def all_classes(calibration: Calibration) -> dict[str, ClassSpec]:
    """Every name in ``calibration.json`` as a class.

    Raises:
        InputError: when it names none.
    """
    above = tuple(calibration.bev.members) if calibration.bev else ()
    pictured = tuple(calibration.labels.members) if calibration.labels else ()
    classes: dict[str, ClassSpec] = {name: {"source": "bev", "bev": [name]} for name in above}
    classes |= {name: {"source": "ipm", "labels": [name]} for name in pictured if name not in classes}
    if not classes:
        raise InputError(
            f"{calibration.path}: it names no labels and no bev truth, so there is nothing to train on; add a section"
        )
    return classes


def read_split(path: Path) -> list[str]:
    """Frame names, one a line.

    Raises:
        InputError: when the file is missing or empty, or a frame is listed twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such split; write one frame name a line, or change data.splits"
        ) from None
    if not names:
        raise InputError(f"{path}: the split is empty; write one frame name a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: frame {twice!r} is listed twice and would count twice; remove one")
    return names


def matching_cells(stored: BEVGrid, wanted: BEVGrid, where: str) -> tuple[list[int], list[int]]:
    """Rows and columns of ``stored`` that lie under the centres of ``wanted``.

    The wanted cells must lie inside, in line with the stored ones, and be as long, an odd number of times as long (so
    that a centre lies in the middle of a stored cell), or a whole fraction as long.

    Raises:
        InputError: when they are not, since the truth would move by part of a cell.
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
    if not (whole and inside and (ratio < 1.5 or round(ratio) % 2)):
        raise InputError(
            f"{where}: the truth is on {stored.rows}×{stored.cols} cells of {stored.cell_m:g} m, forward {stored.forward_m}, "
            f"left {stored.left_m}, and cannot be read on {wanted.rows}×{wanted.cols} cells of {wanted.cell_m:g} m, forward "
            f"{wanted.forward_m}, left {wanted.left_m}, without moving it; choose cells inside it that are as long, an odd "
            "number of times as long, or a whole fraction as long, and in line with it"
        )
    cells = stored.cells_of(wanted.centers(dtype=torch.float64)).round().long()  # R C (col, row)
    return cells[:, 0, 1].tolist(), cells[0, :, 0].tolist()


def _camera_folders(pictures: Path, cameras: Sequence[str]) -> list[Path]:
    if not pictures.exists():
        raise InputError(f"{pictures}: there is no such folder; data/README.md says what a camera folder holds")
    if len(cameras) == 1:
        return [pictures]
    folders = [pictures / camera for camera in cameras]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: there is no such folder, but calibration.json lists camera {folder.name!r}; several cameras have "
                "a folder each, named like them"
            )
    return folders


def _by_frame(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder; data/README.md says what a camera folder holds")
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in files:
            raise InputError(f"{path}: frame {path.stem!r} has a second picture, {files[path.stem].name}; remove one")
        files[path.stem] = path
    return files


def _by_source(classes: Mapping[str, ClassSpec], source: str) -> dict[str, Sequence[str]]:
    key = {"ipm": "labels", "bev": "bev"}[source]
    chosen: dict[str, Sequence[str]] = {}
    for name, spec in classes.items():
        if spec["source"] not in ("ipm", "bev"):
            raise InputError(
                f"class {name!r}: source is {spec['source']!r}; it is 'ipm' (labels of pictures) or 'bev' (truth from above)"
            )
        if spec["source"] == source:
            if not spec.get(key):
                raise InputError(
                    f"class {name!r}: its source is {source!r} but {key!r} is empty; name what counts as it"
                )
            chosen[name] = spec[key]  # type: ignore[literal-required]
    return chosen


def _explained(codes: Codes | None, path: Path, section: str, classes: Mapping[str, Sequence[str]]) -> Codes:
    if codes is None:
        raise InputError(f"{path}: there is no {section!r} section, but {', '.join(classes)} is made from it; add it")
    return codes


def _check_size(path: Path, picture: Tensor, size: tuple[int, int], calibration: Path) -> None:
    height, width = picture.shape[-2:]
    if (height, width) != size:
        raise InputError(
            f"{path}: it is {height}×{width} (height×width) but {calibration} is for {size[0]}×{size[1]}; resize it, or state "
            "the intrinsics of its size"
        )


def _ids(values: Tensor) -> list[int]:
    return values.nonzero().flatten().tolist()
