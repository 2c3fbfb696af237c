import json
from pathlib import Path
from typing import Any

import batches
import check_data
import cv2
import numpy as np
import pytest
import torch
from commands import TINY
from object_stores import Upload, assert_same_samples
from PIL import Image

from bevreshape.config.load_model import load_model
from bevreshape.data.batch import BEVBatch
from bevreshape.data.image_io import read_image, resize_and_crop
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.data.sources.folder.dataset import CameraFolderDataset, open_frames
from bevreshape.data.sources.folder.labels import BEVLabels, matching_cells
from bevreshape.data.sources.folder.source import FolderSource
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

GRID = BEVGrid((2.0, 8.0), (-3.0, 3.0), 0.5)
SIZE = (60, 80)
INTRINSICS = np.array([[50.0, 0, 39.5], [0, 50.0, 29.5], [0, 0, 1]])
NAMES = {"0": "other", "1": "road", "2": "line", "7": "line"}
SPLITS = {"train": "splits/train.txt", "test": "splits/test.txt"}
CLASSES: dict[str, Any] = {
    "road": {"source": "ipm", "labels": ["road", "line"]},
    "vehicle": {"source": "bev", "bev": ["vehicle"]},
    "line": {"source": "ipm", "labels": ["line"]},
}


def look(yaw_deg: float, pitch_deg: float = 15.0, height_m: float = 1.5) -> np.ndarray:
    """Return a camera pose (4, 4) with yaw to the left and pitch downwards, without roll."""
    yaw, pitch = np.radians(yaw_deg), np.radians(pitch_deg)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = [0.3, 0.1, height_m]
    return pose


class Builder:
    """Write a camera folder of random images and labels."""

    def __init__(self, root: Path, cameras: dict[str, np.ndarray], frames: dict[str, tuple[int, int]]) -> None:
        self.root, self.cameras = root, cameras
        self.random = np.random.default_rng(0)
        self.content: dict[str, Any] = {
            "version": 1,
            "cameras": [
                {
                    "name": name,
                    "image_size": list(SIZE),
                    "intrinsics": INTRINSICS.tolist(),
                    "ego_from_cam": pose.tolist(),
                }
                for name, pose in cameras.items()
            ],
            "frames": {
                name: {camera: {"image_size": list(size)} for camera in cameras}
                for name, size in frames.items()
                if size != SIZE
            },
            "labels": {"ids": NAMES, "void": [11]},
            "bev": {
                "grid": {"forward_m": [2.0, 8.0], "left_m": [-3.0, 3.0], "cell_m": 0.5},
                "bits": ["drivable", "vehicle"],
            },
        }
        self.labels: dict[tuple[str, str], np.ndarray] = {}
        self.bev: dict[str, np.ndarray] = {}
        for name, size in frames.items():
            self.bev[name] = self.random.integers(0, 4, GRID.shape, dtype=np.uint8)
            self.save(f"bev/{name}.png", self.bev[name])
            for camera in cameras:
                place = f"{camera}/{name}.png" if len(cameras) > 1 else f"{name}.png"
                blocks = self.random.choice([0, 1, 2, 7, 11, 255], (size[0] // 5, size[1] // 5))
                self.labels[name, camera] = np.kron(blocks, np.ones((5, 5))).astype(np.uint8)
                self.save(f"images/{place}", self.random.integers(0, 256, (*size, 3), dtype=np.uint8))
                self.save(f"labels/{place}", self.labels[name, camera])
        self.list("train", frames)
        self.list("test", list(frames)[:1])
        self.calibrate()

    def save(self, place: str, pixels: np.ndarray) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    def list(self, split: str, names: Any) -> None:
        path = self.root / "splits" / f"{split}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(names) + "\n")

    def calibrate(self) -> None:
        (self.root / "calibration.json").write_text(json.dumps(self.content))

    def source(self, **changes: Any) -> FolderSource:
        options = {"grid": GRID, "image_size": (30, 40), "classes": CLASSES, "splits": SPLITS, **changes}
        return FolderSource(self.root, **options)


@pytest.fixture
def one(tmp_path: Path) -> Builder:
    return Builder(tmp_path, {"front": look(0)}, {"a": SIZE, "b": SIZE, "c": SIZE})


@pytest.fixture
def two(tmp_path: Path) -> Builder:
    return Builder(tmp_path, {"left": look(25), "right": look(-25)}, {"a": SIZE, "b": (70, 90)})


def test_default_classes_are_all_of_the_calibration(one: Builder) -> None:
    source = one.source(classes=None)
    named = set(NAMES.values())
    assert set(source.classes) == named | {"drivable", "vehicle"}
    assert finished(source).targets["segmentation"].value.shape[1] == len(source.classes)
    split = dict(zip(source.classes, finished(source).targets["segmentation"].value.unbind(1), strict=True))
    explicit = finished(one.source(classes={"drivable": {"source": "bev", "bev": ["drivable"]}}))
    assert torch.equal(split["drivable"], explicit.targets["segmentation"].value[:, 0])


def pixel_of(cell: tuple[int, int], intrinsics: np.ndarray, pose: np.ndarray) -> tuple[float, float] | None:
    """Project a cell's centre into an image by the plain definitions; ``None`` behind the camera."""
    row, col = cell
    ground = [8.0 - (row + 0.5) * 0.5, 3.0 - (col + 0.5) * 0.5, 0.0, 1.0]
    x, y, z = (intrinsics @ (np.linalg.inv(pose) @ ground)[:3]).tolist()
    return (x / z, y / z) if z > 0 else None


def inside(pixel: tuple[float, float] | None, height: int, width: int) -> bool:
    return pixel is not None and -0.5 <= pixel[0] < width - 0.5 and -0.5 <= pixel[1] < height - 0.5


def expected(builder: Builder, name: str, present: dict[str, bool], shown: dict[str, np.ndarray]) -> Any:
    """Compute target and valid of a frame, cell by cell; ``shown`` are the intrinsics of the 30×40 images."""
    target, valid = np.zeros((3, *GRID.shape), bool), np.zeros((3, *GRID.shape), bool)
    for cell in np.ndindex(GRID.shape):
        ids, looks = [], False
        for camera, pose in builder.cameras.items():
            if not present[camera]:
                continue
            looks |= inside(pixel_of(cell, shown[camera], pose), 30, 40)
            label = builder.labels[name, camera]
            pixel = pixel_of(cell, INTRINSICS, pose)
            if pixel is not None and inside(pixel, *label.shape):
                ids.append(label[round(pixel[1]), round(pixel[0])])
        ids = [i for i in ids if i not in (11, 255)]
        target[0][cell] = any(i in (1, 2, 7) for i in ids)
        target[1][cell] = builder.bev[name][cell] & 2
        target[2][cell] = any(i in (2, 7) for i in ids)
        valid[:, *cell] = [bool(ids) and looks, looks, bool(ids) and looks]
    return target, valid


def finished(source: FolderSource, split: str = "train") -> BEVBatch:
    return batches.finished(source, split)


def test_targets_equal_a_loop_over_cells(one: Builder) -> None:
    batch = finished(one.source())
    assert (set(batch.targets), batch.labels) == ({"segmentation"}, None)
    assert batch.images.shape == (3, 1, 3, 30, 40)
    assert batch.images.dtype == torch.uint8
    assert batch.names == ["a", "b", "c"]
    for number, name in enumerate(batch.names):
        target, valid = expected(
            one, name, {"front": True}, {"front": batch.cameras.intrinsics[number, 0].double().numpy()}
        )
        np.testing.assert_array_equal(batch.targets["segmentation"].value[number].numpy(), target)
        np.testing.assert_array_equal(batch.targets["segmentation"].valid[number].numpy(), valid)
    assert 0.1 < batch.targets["segmentation"].valid.float().mean() < 0.95


def test_cells_beyond_a_cropped_image_are_not_valid(one: Builder) -> None:
    """Cells of the label outside the cropped image are not valid."""
    whole, cut = (
        finished(one.source()).targets["segmentation"].valid,
        finished(one.source(image_size=(30, 16))).targets["segmentation"].valid,
    )
    assert (cut <= whole).all()
    assert cut.sum() < 0.7 * whole.sum()


def test_images_of_several_sizes_and_cameras_make_one_batch(two: Builder) -> None:
    batch = finished(two.source())
    for number, name in enumerate(["a", "b"]):
        shown = {camera: batch.cameras.intrinsics[number, i].double().numpy() for i, camera in enumerate(two.cameras)}
        target, valid = expected(two, name, {"left": True, "right": True}, shown)
        np.testing.assert_array_equal(batch.targets["segmentation"].value[number].numpy(), target)
        np.testing.assert_array_equal(batch.targets["segmentation"].valid[number].numpy(), valid)


def test_a_missing_camera_is_masked_only_when_allowed(two: Builder) -> None:
    (two.root / "images/right/a.png").unlink()
    with pytest.raises(InputError, match=r"frame 'a' has no image of camera 'right'.*allow_missing=true"):
        two.source().split("train")
    batch = finished(two.source(allow_missing=True), "test")
    assert batch.cameras.full_mask.tolist() == [[True, False]]
    assert not batch.images[0, 1].any()
    shown = {camera: batch.cameras.intrinsics[0, i].double().numpy() for i, camera in enumerate(two.cameras)}
    target, valid = expected(two, "a", {"left": True, "right": False}, shown)
    np.testing.assert_array_equal(batch.targets["segmentation"].value[0].numpy(), target)
    np.testing.assert_array_equal(batch.targets["segmentation"].valid[0].numpy(), valid)


def test_a_damaged_image_is_refused_or_masked(two: Builder, capsys: pytest.CaptureFixture) -> None:
    path = two.root / "images/right/a.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"a\.png: the image is truncated or damaged.*data.on_corrupt_image=mask"):
        finished(two.source(), "test")
    batch = finished(two.source(on_corrupt_image="mask"), "test")
    assert batch.cameras.full_mask.tolist() == [[True, False]]
    assert f"{path}: the image is truncated" in capsys.readouterr().err
    shown = {camera: batch.cameras.intrinsics[0, i].double().numpy() for i, camera in enumerate(two.cameras)}
    target, valid = expected(two, "a", {"left": True, "right": False}, shown)
    np.testing.assert_array_equal(batch.targets["segmentation"].value[0].numpy(), target)
    np.testing.assert_array_equal(batch.targets["segmentation"].valid[0].numpy(), valid)
    with pytest.raises(InputError, match=r"a\.png: the image is truncated or damaged \([^;]*; copy it again$"):
        CameraFolderDataset(two.root / "images", two.source().calibration, (30, 40))[0]
    for pixels, says in ((np.zeros((60, 80), np.uint8), "grey"), (np.zeros((30, 40, 3), np.uint8), "it is 30×40")):
        Image.fromarray(pixels).save(path)
        with pytest.raises(InputError, match=says) as refused:  # it is readable but of the wrong kind
            finished(two.source(on_corrupt_image="mask"), "test")
        assert "data.on_corrupt_image" not in str(refused.value)
    with pytest.raises(InputError, match=r"on_corrupt_image='maks' must be raise or mask; did you mean .*mask"):
        two.source(on_corrupt_image="maks")


def test_a_large_jpeg_is_decoded_at_a_reduced_size(one: Builder) -> None:
    """Colors and intrinsics equal those of the full decode, resized to the network's size."""
    rows, cols = np.mgrid[0:48, 0:64]
    smooth = np.stack([rows * 5, cols * 3, 100 + rows + cols], axis=2).astype(np.uint8)
    stored = Image.fromarray(smooth).resize((512, 384), Image.Resampling.BICUBIC)
    (one.root / "images/a.png").unlink()
    stored.save(one.root / "images/a.jpg", quality=95)
    one.content["cameras"][0] |= {"image_size": [384, 512], "intrinsics": [[500, 0, 250], [0, 510, 180], [0, 0, 1]]}
    one.calibrate()
    frames = CameraFolderDataset(one.root / "images", read_calibration(one.root / "calibration.json"), (48, 64))
    sample = frames[0]
    whole, _ = resize_and_crop(read_image(frames.image_path(0, 0)), torch.eye(3), (48, 64))
    for seen in (whole.numpy(), smooth.transpose(2, 0, 1)):  # half a row would be 2.5 grey levels
        assert np.abs(sample.images[0].numpy() - seen.astype(float)).mean() < 0.8
    decoded = [frames._read(0, 0, (384, 512), distorted=distorted) for distorted in (False, True)]
    assert [tuple(image.shape) for image in decoded] == [(3, 48, 64), (3, 384, 512)]
    scaled = [[62.5, 0, (250 + 0.5) / 8 - 0.5], [0, 63.75, (180 + 0.5) / 8 - 0.5], [0, 0, 1]]
    np.testing.assert_allclose(sample.intrinsics[0].numpy(), scaled, rtol=1e-6)


def test_source_switches_a_class_with_both(one: Builder) -> None:
    both = {"labels": ["line"], "bev": ["vehicle"]}
    ipm = finished(one.source(classes={"x": {"source": "ipm", **both}}))
    bev = finished(one.source(classes={"x": {"source": "bev", **both}}))
    reference = finished(one.source())
    assert torch.equal(ipm.targets["segmentation"].value[:, 0], reference.targets["segmentation"].value[:, 2])
    assert torch.equal(bev.targets["segmentation"].value[:, 0], reference.targets["segmentation"].value[:, 1])


def test_bev_labels_by_ids_with_void(one: Builder) -> None:
    one.content["bev"] = {**one.content["bev"], "ids": {"0": "free", "1": "car", "2": "truck"}, "void": [3]}
    del one.content["bev"]["bits"]
    one.calibrate()
    batch = finished(one.source(classes={"vehicle": {"source": "bev", "bev": ["car", "truck"]}}))
    for number, name in enumerate("abc"):
        known = batch.targets["segmentation"].valid[number, 0].numpy()
        assert not known[one.bev[name] == 3].any()
        np.testing.assert_array_equal(
            batch.targets["segmentation"].value[number, 0].numpy(), np.isin(one.bev[name], [1, 2])
        )


def test_images_without_labels(one: Builder) -> None:
    for folder in ("labels", "bev"):
        for path in (one.root / folder).iterdir():
            path.unlink()
    alone = open_frames(one.root, (30, 40))
    assert alone.names == ("a", "b", "c")
    image = open_frames(one.root / "images/b.png", (30, 40), calibration=one.root / "calibration.json")
    assert image.names == ("b",)
    assert torch.equal(image[0].images, alone[1].images)
    with pytest.raises(InputError, match=r"no calibration.json; pass one"):
        open_frames(one.root / "images", (30, 40))


@pytest.mark.parametrize(
    "wanted",
    [
        BEVGrid((2, 8), (-3, 3), 0.5),
        BEVGrid((2.5, 6), (-1, 2.5), 0.5),
        BEVGrid((2, 8), (-3, 3), 1.5),
        BEVGrid((3, 7.5), (-2.5, 2), 1.5),
        BEVGrid((2, 8), (-3, 3), 0.25),
        BEVGrid((2.25, 4), (-3, -1.75), 0.25),
    ],
)
def test_bev_labels_are_read_at_the_centres_of_the_wanted_cells(wanted: BEVGrid) -> None:
    rows, cols = matching_cells(GRID, wanted, "here")
    assert (len(rows), len(cols)) == wanted.shape
    for row, stored in enumerate(rows.squeeze(1).tolist()):
        assert stored == int((8.0 - (wanted.forward_m[1] - (row + 0.5) * wanted.cell_m)) / 0.5)
    for col, stored in enumerate(cols.squeeze(1).tolist()):
        assert stored == int((3.0 - (wanted.left_m[1] - (col + 0.5) * wanted.cell_m)) / 0.5)


@pytest.mark.parametrize(
    "wanted",
    [
        BEVGrid((2.25, 7.25), (-3, 3), 1.0),
        BEVGrid((2, 8), (-3, 3), 0.75),
        BEVGrid((2.2, 7.2), (-3, 3), 0.5),
        BEVGrid((1.5, 8), (-3, 3), 0.5),
        BEVGrid((2, 8), (-3, 3.5), 0.5),
        BEVGrid((2, 8), (-3, 3), 0.2),
    ],
)
def test_bev_labels_off_by_part_of_a_cell_are_refused(wanted: BEVGrid) -> None:
    with pytest.raises(InputError, match="cannot be read on"):
        matching_cells(GRID, wanted, "here")


@pytest.mark.parametrize(
    "wanted", [BEVGrid((2, 8), (-3, 3), 1.0), BEVGrid((3.5, 7.5), (-2.5, 1.5), 2.0), BEVGrid((2, 8), (-3, 3), 3.0)]
)
def test_cells_of_an_even_multiple_take_the_four_around_their_centre(one: Builder, wanted: BEVGrid) -> None:
    """Compare with the stored cells whose centres are half a stored cell away from the wanted one, on each axis."""
    one.content["bev"] = {**one.content["bev"], "ids": {"0": "free", "1": "car", "2": "truck"}, "void": [3]}
    del one.content["bev"]["bits"]
    one.calibrate()
    classes = {"car": {"source": "bev", "bev": ["car"]}, "any": {"source": "bev", "bev": ["car", "truck"]}}
    batch = finished(one.source(classes=classes, grid=wanted))
    looks = batch.targets["segmentation"].valid.any(1)
    stored = GRID.centers(dtype=torch.float64).numpy()
    for number, name in enumerate("abc"):
        for cell in np.ndindex(wanted.shape):
            center = wanted.centers(dtype=torch.float64).numpy()[cell]
            near = np.abs(stored - center).max(-1) < 0.26  # a stored cell is half a metre long
            ids = one.bev[name][near]
            assert len(ids) == 4
            known = ids[ids != 3]
            if not looks[number][cell]:
                continue
            assert batch.targets["segmentation"].valid[number, :, *cell].all() == (len(known) >= 2)
            assert batch.targets["segmentation"].value[number, 0, *cell] == (
                len(known) >= 2 and (known == 1).mean() >= 0.5
            )
            assert batch.targets["segmentation"].value[number, 1, *cell] == (
                len(known) >= 2 and np.isin(known, [1, 2]).mean() >= 0.5
            )
    assert batch.targets["segmentation"].valid.float().mean() > 0.2


def test_cells_of_an_even_multiple_keep_positions(one: Builder) -> None:
    """The centroid of a disc does not move when cells become twice as long."""
    fine, coarse = BEVGrid((2, 8), (-3, 3), 0.1), BEVGrid((2, 8), (-3, 3), 0.2)
    disc = (np.linalg.norm(fine.centers().numpy() - [5.03, 0.41], axis=-1) < 1.4).astype(np.uint8)
    one.content["bev"] = {"grid": {"forward_m": [2, 8], "left_m": [-3, 3], "cell_m": 0.1}, "bits": ["disc"]}
    one.calibrate()
    for name in "abc":
        one.save(f"bev/{name}.png", disc)
    bev = BEVLabels(one.root / "bev", read_calibration(one.root / "calibration.json"), {"disc": ["disc"]}, coarse)
    plane = bev.to_bev(bev.read("a")[None])["disc"][0][0].numpy()
    middle = coarse.centers().numpy()[plane].mean(0)
    np.testing.assert_allclose(middle, [5.03, 0.41], atol=0.02)
    assert abs(plane.sum() * 0.04 - np.pi * 1.4**2) < 0.3, "a ring of a quarter of a cell"


def test_some_cameras_of_a_folder(two: Builder) -> None:
    both, right = finished(two.source()), finished(two.source(cameras=["right"]))
    turned = finished(two.source(cameras=["right", "left"]))
    assert torch.equal(right.images, both.images[:, 1:])
    assert torch.equal(right.cameras.ego_from_cam, both.cameras.ego_from_cam[:, 1:])
    assert torch.equal(turned.images, both.images.flip(1))
    assert torch.equal(turned.targets["segmentation"].value, both.targets["segmentation"].value)
    for number, name in enumerate(["a", "b"]):
        shown = {"right": right.cameras.intrinsics[number, 0].double().numpy(), "left": INTRINSICS}
        target, valid = expected(two, name, {"left": False, "right": True}, shown)
        np.testing.assert_array_equal(right.targets["segmentation"].value[number].numpy(), target)
        np.testing.assert_array_equal(right.targets["segmentation"].valid[number].numpy(), valid)
    frames = open_frames(two.root, (30, 40), cameras=["right"])
    assert torch.equal(frames[1].images, right.images[1])
    assert open_frames(two.root, (30, 40), cameras=["front"]).calibration.cameras == ("left", "right")
    (two.root / "images/left/a.png").unlink()
    assert len(two.source(cameras=["right"]).split("train")) == 2
    for cameras, says in (
        (["rigth"], "has no camera 'rigth'; did you mean right"), ([], "must list cameras"),
        (["left", "left"], "'left' is there twice"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            two.source(cameras=cameras)


def test_hidden_files_are_ignored(one: Builder) -> None:
    for name in ("._a.png", ".d.png", "Thumbs.db"):
        (one.root / "images" / name).write_bytes(b"\0\5\x16\7")
        (one.root / "labels" / name).write_bytes(b"\0\5\x16\7")
    assert open_frames(one.root, (30, 40)).names == ("a", "b", "c")
    assert len(finished(one.source()).names) == 3


def test_splits_in_other_encodings(one: Builder) -> None:
    path = one.root / "splits/train.txt"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes("a\r\nb\r\n".encode(encoding))
        assert len(one.source().split("train")) == 2
    path.write_bytes("\xe4\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"train\.txt: the text is not UTF-8"):
        one.source().split("train")
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"train\.txt: this text cannot be read \(it is a folder"):
        one.source().split("train")


def test_grey_images_are_an_option(one: Builder) -> None:
    grey = {name: one.random.integers(0, 256, SIZE, dtype=np.uint8) for name in "abc"}
    for name, pixels in grey.items():
        one.save(f"images/{name}.png", pixels)
    batch = finished(one.source(image_mode="grey", image_size=SIZE))
    for number, name in enumerate("abc"):
        np.testing.assert_array_equal(batch.images[number, 0].numpy(), np.stack([grey[name]] * 3))
    with pytest.raises(InputError, match=r"a\.png: the image is grey, not RGB; train with data\.image_mode=grey"):
        finished(one.source())
    with pytest.raises(InputError, match=r"image_mode='gray' must be rgb or grey; did you mean grey"):
        one.source(image_mode="gray")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mean", "is the metrics' name for the mean"),
        ("a/b", "holds a slash"),
        ("", "is empty"),
        (" a", "with blanks at its ends"),
        ("a\nb", "unprintable character '\\\\n'"),
        ("a\x1b[31m", "unprintable"),
        ("a\u2028", "unprintable"),
        ("a" * 65, "has 65 characters"),
    ],
)
def test_class_names_that_would_break_a_key_are_refused(one: Builder, name: Any, says: str) -> None:
    for classes in ({name: {"source": "bev", "bev": ["vehicle"]}}, None):
        if classes is None:
            one.content["bev"]["bits"] = ["drivable", name]
            one.calibrate()
        with pytest.raises(InputError, match=says):
            one.source(classes=classes)


def unlisted_id(one: Builder) -> None:
    one.save("labels/a.png", np.full(SIZE, 5, np.uint8))


def unlisted_bit(one: Builder) -> None:
    one.save("bev/a.png", np.full(GRID.shape, 4, np.uint8))


def other_grid(one: Builder) -> None:
    one.save("bev/a.png", np.zeros((5, 6), np.uint8))


def other_label_size(one: Builder) -> None:
    one.save("labels/a.png", np.zeros((30, 40), np.uint8))


def other_image_size(one: Builder) -> None:
    one.save("images/a.png", np.zeros((120, 160, 3), np.uint8))


def grey(one: Builder) -> None:
    one.save("images/a.png", np.zeros(SIZE, np.uint8))


def no_label(one: Builder) -> None:
    (one.root / "labels/a.png").unlink()


def without_bev_labels(one: Builder) -> None:
    (one.root / "bev/a.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unlisted_id, r"labels/a.png: the label holds 5, which calibration.json does not define"),
        (unlisted_bit, r"bev/a.png: the label holds 4, which"),
        (other_grid, r"bev/a.png: the BEV labels have 5×6 cells but calibration.json states a grid of 12×12"),
        (other_label_size, r"labels/a.png: it is 30×40 \(height×width\) but .*calibration.json is for 60×80"),
        (other_image_size, r"images/a.png: it is 120×160 \(height×width\) but .*calibration.json is for 60×80"),
        (grey, r"images/a.png: the image is grey"),
        (no_label, r"frame 'a' has no label of camera 'front'"),
        (without_bev_labels, r"frame 'a' has no BEV labels"),
    ],
)
def test_errors_of_the_first_frame_are_raised_before_training(one: Builder, spoil, says: str) -> None:
    spoil(one)
    with pytest.raises(InputError, match=says):
        one.source().prepare()


def doubled(one: Builder) -> None:
    one.save("images/a.jpg", np.zeros((*SIZE, 3), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: b.list("train", ["a", "x"]), r"no image of frame 'x'"),
        (lambda b: b.list("train", ["a", "b", "a"]), r"train.txt: frame 'a' is listed twice"),
        (lambda b: b.list("train", []), r"train.txt: the split is empty"),
        (lambda b: (b.root / "splits/train.txt").unlink(), r"train.txt: there is no such split"),
        (doubled, r"a.png: frame 'a' has a second image, a.jpg"),
    ],
)
def test_bad_lists_are_refused(one: Builder, spoil, says: str) -> None:
    spoil(one)
    with pytest.raises(InputError, match=says):
        one.source().split("train")


def test_splits_may_be_lists(one: Builder) -> None:
    split = one.source(splits={"train": ["c", "a"]}).split("train")
    assert [split[i].meta.name for i in range(len(split))] == ["c", "a"]
    for names, says in (
        ([], r"data.splits.train=\[\] is empty"),
        ([7], r"splits.train=\[7\] must be text or a list of text"),
        (["a", "a"], "data.splits.train: frame 'a' is listed twice"),
    ):
        with pytest.raises(InputError, match=says):
            one.source(splits={"train": names}).split("train")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": {"x": {"source": "lidar"}}}, r"classes\.x\.source='lidar' must be ipm, bev or boxes"),
        ({"classes": {"x": {"source": "ipm", "bev": ["vehicle"]}}}, r"class 'x': its source is 'ipm' but 'labels' is"),
        ({"classes": {"x": {"source": "ipm", "labels": ["rode"]}}}, r"class 'x': 'rode' is not labelled .* mean road"),
        ({"classes": {"x": {"source": "bev", "bev": ["car"]}}}, r"class 'x': 'car' is not labelled"),
        (
            {"classes": {"x": {"source": "boxes", "boxes": ["car"]}}},
            "no 'boxes' section, but x is made from it; add it",
        ),
        ({"classes": {}}, "classes={} must be a mapping, not empty"),
        ({"grid": BEVGrid((-8, -2), (-3, 3), 0.5)}, "camera 'front' never observes the grid"),
        ({"grid": BEVGrid((2, 8), (-3, 3), 0.75)}, "cannot be read on 8×8 cells"),
    ],
)
def test_invalid_settings_are_refused_at_construction(one: Builder, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        one.source(**changes)


def test_missing_sections_and_folders_are_refused(one: Builder) -> None:
    del one.content["labels"]
    one.calibrate()
    with pytest.raises(InputError, match=r"no 'labels' section, but road, line is made from it"):
        one.source()
    with pytest.raises(InputError, match="there is no such folder; convert your data first"):
        FolderSource(one.root / "none", grid=GRID, image_size=(30, 40), classes=CLASSES, splits=SPLITS)
    with pytest.raises(InputError, match=r"there is no split 'val'; did you mean|there is no split 'val'; known are"):
        one.source(classes={"vehicle": CLASSES["vehicle"]}).split("val")


def test_several_cameras_need_their_folders(two: Builder) -> None:
    (two.root / "images/right").rename(two.root / "images/rihgt")
    with pytest.raises(InputError, match=r"right: there is no such folder, but calibration.json lists camera 'right'"):
        CameraFolderDataset(two.root / "images", two.source().calibration, (30, 40))


def with_boxes(builder: Builder) -> dict[str, Any]:
    """Write random boxes in every frame, and return classes of them."""
    builder.content["boxes"] = {"categories": ["car", "van", "person"]}
    builder.calibrate()
    (builder.root / "boxes").mkdir()
    for name in "abc":
        boxes = [
            {
                "category": str(builder.random.choice(["car", "van", "person"])),
                "center_m": builder.random.uniform([2, -3, 0], [8, 3, 1]).tolist(),
                "size_m": builder.random.uniform(0.5, 3, 3).tolist(),
                "yaw_deg": builder.random.uniform(-200, 200),
            }
            for _ in range(6)
        ]
        (builder.root / f"boxes/{name}.json").write_text(json.dumps(boxes))
    return {
        "vehicle": {"source": "boxes", "boxes": ["car", "van"], "bev": ["vehicle"]},
        "person": {"source": "boxes", "boxes": ["person"]},
    }


def test_targets_of_boxes_equal_a_loop_over_cells(one: Builder) -> None:
    batch = finished(one.source(classes=with_boxes(one)))
    for number, name in enumerate("abc"):
        shown = batch.cameras.intrinsics[number, 0].double().numpy()
        boxes = json.loads((one.root / f"boxes/{name}.json").read_text())
        for cell in np.ndindex(GRID.shape):
            place = np.array([8.0 - (cell[0] + 0.5) * 0.5, 3.0 - (cell[1] + 0.5) * 0.5])
            inside_of = set()
            for box in boxes:
                yaw = np.radians(box["yaw_deg"])
                along, across = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]) @ (
                    place - box["center_m"][:2]
                )
                if abs(along) <= box["size_m"][0] / 2 and abs(across) <= box["size_m"][1] / 2:
                    inside_of.add(box["category"])
            assert batch.targets["segmentation"].value[number, 0][cell] == bool(inside_of & {"car", "van"})
            assert batch.targets["segmentation"].value[number, 1][cell] == ("person" in inside_of)
            looks = inside(pixel_of(cell, shown, one.cameras["front"]), 30, 40)
            assert batch.targets["segmentation"].valid[number, :, *cell].tolist() == [looks, looks]


def test_boxes_as_default_classes_and_as_one_source(one: Builder) -> None:
    classes = with_boxes(one)
    assert {"car", "van", "person"} <= set(one.source(classes=None).classes)
    vehicle = {**classes["vehicle"], "source": "bev"}
    assert torch.equal(
        finished(one.source(classes={"vehicle": vehicle})).targets["segmentation"].value[:, 0],
        finished(one.source()).targets["segmentation"].value[:, 1],
    )
    with pytest.raises(InputError, match=r"class 'x': 'cra' is no category of this folder's boxes; did you mean car"):
        one.source(classes={"x": {"source": "boxes", "boxes": ["cra"]}})
    (one.root / "boxes/a.json").unlink()
    with pytest.raises(InputError, match=r"boxes/a.json: there is no such file; write the frame's boxes"):
        one.source(classes=classes).prepare()


def test_labels_of_a_distorted_image_follow_opencv(one: Builder) -> None:
    """The label of a cell's centre is read from the stored label by OpenCV's distortion."""
    coefficients = [-0.25, 0.05, 0.002, -0.001]
    one.content["cameras"][0]["distortion"] = {"model": "opencv", "coefficients": coefficients}
    one.calibrate()
    source = one.source()
    batch = finished(source)
    pinhole = source.calibration.of("a").intrinsics[0].numpy()
    cam_from_ego = np.linalg.inv(one.cameras["front"])
    compared = 0
    for number, name in enumerate("abc"):
        shown = batch.cameras.intrinsics[number, 0].double().numpy()
        for cell in np.ndindex(GRID.shape):
            ground = np.array([8.0 - (cell[0] + 0.5) * 0.5, 3.0 - (cell[1] + 0.5) * 0.5, 0.0])
            seen = inside(pixel_of(cell, pinhole, one.cameras["front"]), *SIZE)
            if not seen:
                assert not batch.targets["segmentation"].valid[number, 0][cell]
                continue
            turn, _ = cv2.Rodrigues(cam_from_ego[:3, :3])
            spot, _ = cv2.projectPoints(ground, turn, cam_from_ego[:3, 3], INTRINSICS, np.array(coefficients))
            u, v = spot.ravel()
            assert -0.6 < u < SIZE[1] - 0.4, "every pixel of the undistorted image has a source"
            assert -0.6 < v < SIZE[0] - 0.4
            around = one.labels[name, "front"][
                max(0, round(v - 1.2)) : round(v + 1.2) + 1, max(0, round(u - 1.2)) : round(u + 1.2) + 1
            ]
            if len(np.unique(around)) > 1:
                continue  # within the rounding of two nearest pixels of another label
            compared += 1
            label, looks = around.flat[0], inside(pixel_of(cell, shown, one.cameras["front"]), 30, 40)
            assert batch.targets["segmentation"].valid[number, 0][cell] == (label not in (11, 255) and looks)
            assert batch.targets["segmentation"].value[number, 2][cell] == (label in (2, 7))
    assert compared > 100


def test_a_distorted_folder_with_boxes_goes_through_the_commands(command, one: Builder, tmp_path: Path) -> None:
    with_boxes(one)
    one.content["cameras"][0]["distortion"] = {"model": "opencv", "coefficients": [-0.25, 0.05, 0.002, -0.001]}
    one.calibrate()
    one.list("val", "bc")
    sizes = ("data.image_size=[32,64]", "data.grid.forward_m=[2,8]", "data.grid.left_m=[-3,3]", "data.grid.cell_m=0.5")
    small = [
        part
        for part in TINY
        if not part.startswith(("data.scenes", "data.generation_workers", "data.image", "data.grid"))
    ]
    classes = "data.classes={vehicle: {source: boxes, boxes: [car, van]}, road: {source: ipm, labels: [road]}}"
    ended = command(
        "train", *small, "data=folder", f"data.root={one.root}", *sizes, classes, "loader.batch_size=2",
        "head.segmentation.upsample=1",
        "trainer.max_steps=2", "trainer.val_check_interval=1", "hydra.run.dir=run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    best = f"checkpoint={tmp_path}/run/checkpoints/best.ckpt"
    ended = command("evaluate", best)
    assert ended.code == 0, ended.err
    ended = command("predict", best, f"input={one.root}", "num_workers=0", "out=out")
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "out/a.npz") as arrays:
        assert list(arrays["classes"]) == ["vehicle", "road"]
        looks = finished(one.source(classes={"vehicle": {"source": "boxes", "boxes": ["car"]}}, image_size=(32, 64)))
        np.testing.assert_array_equal(arrays["valid"], looks.targets["segmentation"].valid[0, 0].numpy())


def test_grey_images_go_through_the_commands(
    command, one: Builder, tmp_path: Path, no_shape_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint stores that its images are grey, for predict and evaluate."""
    for name in "abc":
        one.save(f"images/{name}.png", one.random.integers(0, 256, SIZE, dtype=np.uint8))
    one.list("val", "bc")
    sizes = ("data.image_size=[32,64]", "data.grid.forward_m=[2,8]", "data.grid.left_m=[-3,3]", "data.grid.cell_m=0.5")
    small = [
        part
        for part in TINY
        if not part.startswith(("data.scenes", "data.generation_workers", "data.image", "data.grid"))
    ]
    ended = command(
        "train", *small, "data=folder", f"data.root={one.root}", *sizes, "data.image_mode=grey", "loader.batch_size=2",
        "head.segmentation.upsample=1", "trainer.max_steps=1", "trainer.val_check_interval=1", "augment=full",
        "augment.noise=0.1",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    checkpoint = tmp_path / "run/checkpoints/best.ckpt"
    assert load_model(str(checkpoint))[1].image_mode == "grey"
    for name, arguments in (
        ("evaluate", ()),
        ("predict", (f"input={one.root}", "num_workers=0", "out=out")),
        ("export", ("format=pt2", "out=model.pt2")),
    ):
        ended = command(name, f"checkpoint={checkpoint}", *arguments)
        assert ended.code == 0, ended.err
    assert "grey in each channel" in ended.out
    assert (tmp_path / "out/a_bev.png").exists()
    faults = check_data.check(one.root, None, None, tmp_path / "overlay.png", "grey")[0]
    assert not [fault for fault in faults if "the image is grey" in fault], "its splits share frames, no more"
    faults = check_data.check(one.root, None, None, None)[0]
    assert len([fault for fault in faults if "the image is grey" in fault]) == 3


@pytest.mark.parametrize(
    ("key", "frame"), [("a.jpg", "a"), ("A", "a"), ("a.PNG", "a"), ("7", "000007"), ("00000a", "a")]
)
def test_a_frame_calibration_with_another_spelling_is_refused(one: Builder, key: str, frame: str) -> None:
    for place in ("images", "labels", "bev"):
        (one.root / place / "a.png").rename(one.root / place / f"{frame}.png")
    one.list("train", [frame, "b"])
    one.content["frames"] = {key: {"front": {"ego_from_cam": one.content["cameras"][0]["ego_from_cam"]}}}
    one.calibrate()
    with pytest.raises(InputError, match=f"frames has '{key}', which has no image, but '{frame}' has one"):
        one.source().split("train")
    one.content["frames"] = {"elsewhere": one.content["frames"][key]}  # its image may be elsewhere in the data
    one.calibrate()
    assert len(one.source().split("train")) == 2


def test_an_object_store_gives_the_samples_of_the_folder(two: Builder, memory_store: Upload) -> None:
    (two.root / "boxes").mkdir()
    for name in ("a", "b"):
        (two.root / f"boxes/{name}.json").write_text(
            '[{"category": "car", "center_m": [5, 0, 1], "size_m": [3, 2, 1], "yaw_deg": 30}]'
        )
    two.content["boxes"] = {"categories": ["car"]}
    two.calibrate()
    options: dict[str, Any] = {"grid": GRID, "image_size": (30, 40), "splits": SPLITS}
    local, remote = FolderSource(two.root, **options), FolderSource(memory_store(two.root), **options)
    remote.prepare(("train", "test"))
    assert remote.classes == local.classes
    assert_same_samples(local.split("train"), remote.split("train"))
    with pytest.raises(InputError, match=r"^memory://nowhere: there is no such folder"):
        FolderSource("memory://nowhere", **options)
