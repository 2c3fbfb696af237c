"""Provide nuScenes as a data source, by the published protocols."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import torch
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import TypedDict

from bevreshape.config.options import DataRoot, ImageSize, Length, checked
from bevreshape.data.batch import SEGMENTATION, SPLITS, BEVBatch, Meta, Sample
from bevreshape.data.image_io import (
    ImageMode,
    OnCorruptImage,
    read_image,
    read_image_size,
    read_or_mask,
    reduction,
    resize_and_crop,
    resize_and_crop_intrinsics,
)
from bevreshape.data.names import check_classes
from bevreshape.data.sources.nuscenes import splits
from bevreshape.data.sources.nuscenes.maps import LAYERS, rounded_cells
from bevreshape.data.sources.nuscenes.prepared import RASTERS, Content, Index, read_index, read_keyframe
from bevreshape.data.sources.nuscenes.tables import CAMERAS, BoxRecord, CameraName, CameraRecord
from bevreshape.data.targets import BEVTarget, ObjectCenters, Target
from bevreshape.errors import InputError, suggest
from bevreshape.geometry import BEVGrid, ground_pixels
from bevreshape.geometry.rasterize import corners, rasterize_polygons
from bevreshape.metrics.conditions import conditions_of
from bevreshape.storage.object_store import data_path
from bevreshape.storage.store_path import unchanging

Raster = Literal["exact", "published", "lss"]
"""Rasterization: cells whose centres are inside; as in CVT; as in LSS, which has no map."""

Visibility = Literal["all", "ignore", "erase"]
"""Treatment of objects below ``min_visibility``: count them, ignore their cells, or erase them."""


class ClassSpec(TypedDict):
    """Define a class: objects, layers of the map, or both."""

    boxes: NotRequired[Sequence[str]]
    """Categories such as ``vehicle.car``, or ``vehicle`` for all that begin with it."""
    exclude: NotRequired[Sequence[str]]
    """Categories among those to leave out."""
    map: NotRequired[Sequence[str]]
    """Names out of :data:`~bevreshape.data.sources.nuscenes.maps.LAYERS`."""


class NuScenesDataset(Dataset[Sample]):
    """Read one split, keyframe by keyframe; only the keyframes' indices are in memory."""

    def __init__(self, source: "NuScenesSource", index: Index, numbers: NDArray[np.intp]) -> None:
        self.source = source
        self.index = index
        self.numbers = numbers
        self.scenes = [index.scenes[int(scene)] for scene in index.scene_of()[numbers]]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        source, grid = self.source, self.source.grid
        keyframe, layers = read_keyframe(
            self.index.records,
            int(self.numbers[index]),
            source.remedy,
            source.raster if source.raster in RASTERS else "exact",
            grid.shape,
        )
        images, intrinsics, mask = [], [], []
        for name in source.camera_names:
            image, fitted, there = source.read_image(keyframe["cameras"][name])
            images.append(image)
            intrinsics.append(fitted)
            mask.append(there)
        planes = [source.class_planes(spec, keyframe["boxes"], layers) for spec in source.specs]
        poses = [keyframe["cameras"][name]["ego_from_cam"] for name in source.camera_names]
        segmentation = BEVTarget(*(torch.from_numpy(np.stack(part)) for part in zip(*planes, strict=True)))
        targets: dict[str, Target] = {SEGMENTATION: segmentation}
        if source.centers:
            channels = [source.classes.index(name) for name in source.centers]
            found = [source.object_centers(source.specs[channel], keyframe["boxes"]) for channel in channels]
            targets["centers"] = ObjectCenters(
                torch.from_numpy(np.stack(found)), segmentation.valid[channels], segmentation.value[channels]
            )
        scene = self.scenes[index]
        return Sample(
            torch.stack(images),
            torch.stack(intrinsics).float(),
            torch.tensor(poses, dtype=torch.float64).float(),
            Meta(keyframe["token"], index, scene["name"], conditions=conditions_of(scene["description"])),
            targets,
            camera_mask=torch.tensor(mask),
        )


@checked
class NuScenesSource:
    """Provide nuScenes, prepared by ``tools/prepare_nuscenes.py`` (a :class:`~bevreshape.data.batch.BEVSource`).

    The ego frame is the vehicle's at the time of the lidar sweep, levelled. Cameras have their poses at the times of
    their images.

    Args:
        root: of the release, with ``samples``, on this machine or in an object store; so is ``prepared``.
        grid: the cells of the preparation.
        version: of the release.
        prepared: the folder given to the tool as ``out``.
        line_width_m: as given to the tool.
        split: ``official`` or ``geographic``, see :func:`~bevreshape.data.sources.nuscenes.splits.split_keyframes`.
        image_size: (H, W) for the network.
        crop_bottom: share of the image's height that is first cut off below, where some cameras show the vehicle;
            LSS cuts .11.
        cameras: which, in order.
        classes: for every class, its objects and layers.
        targets: the wanted classes, in order; ``None`` for all.
        raster: ``exact``, the cells whose centres are inside, ``published``, drawn as in CVT, or ``lss``, boxes as in
            LSS; see :func:`~bevreshape.data.sources.nuscenes.maps.rounded_cells`.
        visibility: treatment of objects below ``min_visibility``: ``all``, ``ignore`` or ``erase``.
        min_visibility: 1 to 4; 2 is more than 40 %.
        visible_only: whether cells not visible to any camera are ignored; published figures count all cells.
        on_corrupt_image: whether an image that cannot be read ends the run (``raise``), or is named and masked
            (``mask``).
        image_mode: ``rgb``, or ``grey`` for one channel, repeated.
        centers: classes of objects alone whose centres are an additional target, see
            :class:`~bevreshape.data.targets.ObjectCenters`.

    Raises:
        InputError: when a value is invalid, or the data is not prepared.
    """

    def __init__(
        self,
        root: DataRoot,
        *,
        grid: BEVGrid,
        version: str,
        prepared: DataRoot,
        classes: Annotated[Mapping[str, ClassSpec], Len(1)],
        image_size: ImageSize,
        targets: Sequence[str] | None = None,
        line_width_m: Length | None = None,
        split: splits.Division = "official",
        crop_bottom: Annotated[float, Ge(0), Le(0.9)] = 0.0,
        cameras: Annotated[Sequence[CameraName], Len(1)] = CAMERAS,
        raster: Raster = "exact",
        visibility: Visibility = "all",
        min_visibility: Annotated[int, Ge(1), Le(4)] = 2,
        visible_only: bool = True,
        on_corrupt_image: OnCorruptImage = "raise",
        image_mode: ImageMode = "rgb",
        centers: Sequence[str] = (),
    ) -> None:
        if len(set(cameras)) < len(cameras):
            raise InputError(f"data.cameras={list(cameras)} must name no camera twice")
        self.root, out = data_path(root), data_path(prepared)
        self._images = unchanging(self.root)  # their names hold the time
        self.grid = grid
        self.image_size = (image_size[0], image_size[1])
        self.crop_bottom = crop_bottom
        self.camera_names = tuple(cameras)
        self.classes = _wanted(classes, targets)
        self.specs = [_checked(name, classes[name]) for name in self.classes]
        _check_centers(centers, self.classes, classes)
        if raster == "lss" and any(spec.get("map") for spec in self.specs):
            raise InputError(
                "data.raster=lss draws only boxes, but a class is of the map; set data.raster=exact or published"
            )
        self.centers = tuple(centers)
        self.raster = raster
        self.visibility = visibility
        self.min_visibility = min_visibility
        self.visible_only = visible_only
        self.split_name = split
        self.on_corrupt_image = on_corrupt_image
        self.image_mode = image_mode
        content = Content(version, grid, line_width_m)
        self.remedy = content.command(self.root, out)
        self._index = read_index(self.root, out, content)
        self._numbers = splits.split_keyframes(self._index, split, grid)
        if raster != "exact" and any(spec.get("boxes") for spec in self.specs):
            _import_cv2()

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Read a keyframe of every split, so that a general fault is reported before the training starts."""
        for name in splits:
            self.split(name)[0]

    def split(self, name: str) -> Dataset[Sample]:
        """Return the keyframes of ``train``, ``val`` or ``test``.

        Raises:
            InputError: when the split is unknown.
        """
        if name not in self._numbers:
            raise InputError(f"data: unknown split {name!r}; {suggest(name, self._numbers)}")
        return NuScenesDataset(self, self._index, self._numbers[name])

    @property
    def protocol(self) -> str:
        """Return the parameters of the protocol, to be printed above figures."""
        cells = f"{self.grid.rows}×{self.grid.cols} cells of {self.grid.cell_m:g} m"
        hidden = "" if self.visibility == "all" else f" below {self.min_visibility}"
        counted = "visible cells" if self.visible_only else "all cells"
        return (
            f"{cells}, raster {self.raster}, visibility {self.visibility}{hidden}, {counted}, {self.split_name} split"
        )

    def make_targets(self, batch: BEVBatch) -> BEVBatch:
        """Invalidate cells that no camera observes, with ``visible_only``."""
        return batch.hide(~ground_pixels(batch.cameras, self.grid)[1].any(1)) if self.visible_only else batch

    def read_image(self, camera: CameraRecord) -> tuple[Tensor, Tensor, bool]:
        """Return an image at the network's size, its intrinsics, and whether it could be read."""
        path, size = self._images / camera["file"], (camera["size"][0], camera["size"][1])
        kept = (
            size[0] if not self.crop_bottom else 8 * round(size[0] * (1 - self.crop_bottom) / 8)
        )  # whole rows at any reduction
        intrinsics = resize_and_crop_intrinsics(
            torch.tensor(camera["intrinsics"], dtype=torch.float64), (kept, size[1]), self.image_size
        )
        factor = reduction(size, self.image_size)

        def read() -> Tensor:
            image = read_image(path, self.image_size, self.image_mode)
            if tuple(image.shape[1:]) != (size[0] // factor, size[1] // factor):
                height, width = read_image_size(path)
                raise InputError(
                    f"{path}: it is {height}×{width} (height×width) but the tables and its "
                    f"calibration have {size[0]}×{size[1]}; unpack the release's images again"
                )
            return image

        found = read_or_mask(read, self.on_corrupt_image)
        there = found is not None
        image = torch.zeros(3, size[0] // factor, size[1] // factor, dtype=torch.uint8) if found is None else found
        image, _ = resize_and_crop(image[:, : kept // factor], torch.eye(3), self.image_size)
        return image, intrinsics, there

    def class_planes(
        self, spec: ClassSpec, boxes: Sequence[BoxRecord], layers: NDArray[np.uint16]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the cells of a class, and the known cells, both (rows, cols)."""
        there, known = np.zeros(self.grid.shape, bool), np.ones(self.grid.shape, bool)
        bits = sum(1 << LAYERS.index(name) for name in spec.get("map", ()))
        if bits:
            there |= (layers & bits) != 0
        clear, hidden = self._objects(spec, boxes)
        there |= self._drawn(clear)
        if self.visibility == "ignore" and hidden:
            known = there | ~self._drawn(hidden)
        return there, known

    def object_centers(self, spec: ClassSpec, boxes: Sequence[BoxRecord]) -> NDArray[np.float32]:
        """Return object centres of a class, (3, rows, cols), as in CVT's training.

        See :class:`~bevreshape.data.targets.ObjectCenters`. Where objects overlap, the last one counts. As published, a
        cell's position is its index, half a cell off.
        """
        found = np.zeros((3, *self.grid.shape), np.float32)
        cells = self.grid.centers(dtype=torch.float64).numpy()  # rows cols (x, y)
        cells = cells + {"exact": 0, "published": 0.5, "lss": -0.5}[self.raster] * self.grid.cell_m
        for box in self._objects(spec, boxes)[0]:
            inside = self._drawn([box])
            way = (np.array(box["center_m"][:2]) - cells[inside]) / self.grid.cell_m
            found[0, inside] = np.exp(-(way**2).sum(1))
            found[1:, inside] = way.T
        return found

    def _objects(self, spec: ClassSpec, boxes: Sequence[BoxRecord]) -> tuple[list[BoxRecord], list[BoxRecord]]:
        """Return the visible objects of a class, and those below ``min_visibility``."""
        clear: list[BoxRecord] = []
        hidden: list[BoxRecord] = []
        for box in boxes:
            if _is_one_of(box["category"], spec):
                seen = self.visibility == "all" or box["visibility"] >= self.min_visibility
                (clear if seen else hidden).append(box)
        return clear, hidden

    def _drawn(self, boxes: Sequence[BoxRecord]) -> NDArray[np.bool_]:
        if not boxes:
            return np.zeros(self.grid.shape, bool)
        rings = corners(np.array([(*box["center_m"][:2], box["yaw"], *box["size_m"][:2]) for box in boxes]))
        if self.raster == "exact":
            return rasterize_polygons(list(rings), self.grid)
        plane = np.zeros(self.grid.shape, np.uint8)
        for ring in rings:
            _import_cv2().fillPoly(plane, [rounded_cells(ring[:-1], self.grid, from_near=self.raster == "lss")], 1)
        return plane.astype(bool)


def _wanted(classes: Mapping[str, ClassSpec], targets: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the wanted classes, all by default."""
    for name in targets or ():
        if name not in classes:
            raise InputError(f"data.targets: there is no class {name!r} in data.classes; {suggest(str(name), classes)}")
    wanted = check_classes(classes if targets is None else targets, "data.classes")
    if not wanted:
        raise InputError("data.classes is empty; define a class, for instance vehicle: {boxes: [vehicle]}")
    return wanted


def _check_centers(centers: Sequence[str], wanted: Sequence[str], classes: Mapping[str, ClassSpec]) -> None:
    """Check that the classes whose centres are targets are wanted, and have objects."""
    for name in centers:
        if name not in wanted:
            raise InputError(f"data.centers: {name!r} is not a class here; {suggest(str(name), wanted)}")
        if classes[name].get("map"):
            raise InputError(f"data.centers: {name!r} is a class of the map, which has no objects")


def _checked(name: str, spec: ClassSpec) -> ClassSpec:
    """Return a checked class.

    Raises:
        InputError: naming the class.
    """
    if not spec.get("boxes") and not spec.get("map"):
        raise InputError(f"data.classes.{name}: define it by boxes: [categories] or map: [layers]")
    for layer in spec.get("map", ()):
        if layer not in LAYERS:
            raise InputError(f"data.classes.{name}: there is no layer {layer!r} in the map; {suggest(layer, LAYERS)}")
    return spec


def _is_one_of(category: str, spec: ClassSpec) -> bool:
    def among(groups: Sequence[str]) -> bool:
        return any(category == group or category.startswith(f"{group}.") for group in groups)

    return among(spec.get("boxes", ())) and not among(spec.get("exclude", ()))


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"data.raster=published and lss draw with OpenCV, which cannot be imported ({error}); pip install "
            "'bevreshape[nuscenes]', or set data.raster=exact"
        ) from None
    return cv2
