"""Test KITTI's road benchmark: labels against the development kit's projection, metric against a count."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import batches
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import labelled, outputs_of
from commands import TINY
from kitti_folder import pixel_of, road_folder, write_calibration
from object_stores import Upload, assert_same_samples
from PIL import Image

from bevreshape.config.load_model import load_model
from bevreshape.data.batch import BEVBatch, BEVSource, Meta
from bevreshape.data.sources.kitti.road import KITTIRoadSource, RoadMasks
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.kitti_road import BENCHMARK_GRID, RoadMetric, road_scores

NAMES = ("um_000000", "umm_000001", "uu_000002", "um_000003")
GRID = BEVGrid((6, 46), (-10, 10), 1.0)
CLASSES = {"road": "road", "ego_lane": "lane"}
FIGURES = {"max_f", "ap", "precision", "recall", "fpr", "fnr", "threshold"}


def source(root: Path, **changes: Any) -> KITTIRoadSource:
    options = {"grid": GRID, "image_size": (38, 124), "classes": CLASSES, **changes}
    return KITTIRoadSource(root, **{"splits": {"train": None, "val": [*NAMES], "test": [*NAMES]}, **options})


def finished(made: KITTIRoadSource, split: str = "test") -> BEVBatch:
    batch = batches.finished(made, split)
    return replace(batch, images=batch.images.float() / 255)


@cache
def mask_of(path: Path) -> np.ndarray | None:
    return np.array(Image.open(path)) if path.exists() else None


def mask_at(root: Path, name: str, what: str, ahead: float, left: float) -> tuple[bool, bool] | None:
    """Return (known, there) of a ground point by the nearest pixel; ``None`` where rounding decides between two."""
    category, _, number = name.partition("_")
    mask = mask_of(root / f"training/gt_image_2/{category}_{what}_{number}.png")
    if mask is None:
        return False, False
    pixel = pixel_of([-left, 0.0, ahead], "road")
    assert pixel is not None
    if (np.abs(pixel - np.floor(pixel) - 0.5) < 1e-3).any():
        return None
    u, v = np.round(pixel).astype(int)
    if not (0 <= u < mask.shape[1] and 0 <= v < mask.shape[0]):
        return False, False
    return bool(mask[v, u, 0]), bool(mask[v, u, 0] and mask[v, u, 2])


def test_labels_are_the_masks_under_the_benchmarks_projection(tmp_path: Path) -> None:
    made = source(road_folder(tmp_path, NAMES))
    assert isinstance(made, BEVSource)
    made.prepare()
    batch = finished(made)
    compared = 0
    for number, name in enumerate(batch.names):
        for k, what in enumerate(("road", "lane")):
            for row, col in np.ndindex(GRID.shape):
                expected = mask_at(tmp_path, name, what, 46 - row - 0.5, 10 - col - 0.5)
                if expected is not None:
                    known, there = expected
                    assert batch.targets["segmentation"].value[number, k, row, col].item() == there
                    assert batch.targets["segmentation"].valid[number, k, row, col].item() <= known
                    compared += there
    assert compared > 500
    assert batch.targets["segmentation"].valid[[0, 3], 1].any(dim=(-1, -2)).all()
    assert not batch.targets["segmentation"].valid[[1, 2], 1].any(), "umm and uu have no lane labels"
    assert batch.targets["segmentation"].valid[:, 0].float().mean() > 0.4


def test_valid_cells_are_in_the_networks_image(tmp_path: Path) -> None:
    """A crop at the sides shows less ground; the stored image and its mask are complete."""
    root = road_folder(tmp_path, NAMES)
    whole, cut = finished(source(root)), finished(source(root, image_size=(38, 62)))
    assert torch.equal(whole.targets["segmentation"].value, cut.targets["segmentation"].value)
    assert (cut.targets["segmentation"].valid <= whole.targets["segmentation"].valid).all()
    assert cut.targets["segmentation"].valid.sum() < 0.9 * whole.targets["segmentation"].valid.sum()


def test_classes_may_be_renamed_and_left_out(tmp_path: Path) -> None:
    root = road_folder(tmp_path, NAMES)
    made = source(root, classes={"drivable": "road"})
    assert made.classes == ("drivable",)
    assert torch.equal(
        finished(made).targets["segmentation"].value, finished(source(root)).targets["segmentation"].value[:, :1]
    )


def confusion(confidence: np.ndarray, target: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    positive = confidence >= threshold
    return tuple(int(n.sum()) for n in (positive & target, positive & ~target, ~positive & target, ~positive & ~target))  # type: ignore[return-value]


def oracle(confidence: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Compute the benchmark's figures by plain counting at each of its 256 thresholds."""
    best: dict[str, float] = {"max_f": -1.0}
    curve = []
    for level in range(256):
        tp, fp, fn, tn = confusion(confidence, target, np.float32(level / 255))
        precision, recall = tp / (tp + fp) if tp else 0.0, tp / (tp + fn)
        curve.append((precision, tp, tp + fn))
        f = 2 * precision * recall / (precision + recall) if tp else 0.0
        if f > best["max_f"] + 1e-12:
            best = {
                "max_f": f, "precision": precision, "recall": recall, "fpr": fp / (fp + tn), "fnr": fn / (tp + fn),
                "threshold": level / 255,
            }  # fmt: skip
    best["ap"] = sum(max(p for p, tp, all_ in curve if 10 * tp >= i * all_) for i in range(11)) / 11
    return best


def counted(confidence: np.ndarray, target: np.ndarray) -> torch.Tensor:
    counts = np.zeros((2, 256), np.int64)
    np.add.at(counts, (target.astype(int), np.floor(confidence * 255 + 1e-6).astype(int)), 1)
    return torch.from_numpy(counts)


@pytest.mark.parametrize("skill", [0.0, 0.3, 2.0])
def test_scores_equal_a_count_over_thresholds(skill: float) -> None:
    random = np.random.default_rng(1)
    target = random.random(4000) < 0.3
    confidence = (1 / (1 + np.exp(-random.normal(size=4000) - skill * (2 * target - 1)))).astype(np.float32)
    scores = road_scores(counted(confidence, target))
    assert set(scores) == FIGURES
    assert {k: v.item() for k, v in scores.items()} == pytest.approx(oracle(confidence, target), abs=1e-9)


def test_scores_of_perfect_and_empty_predictions() -> None:
    counts = torch.zeros(2, 256, dtype=torch.int64)
    assert all(v.isnan() for v in road_scores(counts).values()), "nothing to count"
    counts[0, 0], counts[1, 255] = 70, 30
    perfect = {k: v.item() for k, v in road_scores(counts).items()}
    assert perfect == pytest.approx(
        {"max_f": 1, "ap": 1, "precision": 1, "recall": 1, "fpr": 0, "fnr": 0, "threshold": 1 / 255}
    )
    counts[1, 255], counts[1, 0] = 0, 30
    blind = road_scores(counts)
    assert blind["max_f"].item() == pytest.approx(2 * 0.3 / 1.3), "all counted as road"
    assert blind["ap"].item() == pytest.approx(0.3)


@dataclass(frozen=True, eq=False)
class ProjectedMasks(RoadMasks):
    """Hold masks that are on the benchmark's cells already."""

    target: torch.Tensor
    known: torch.Tensor

    def on_ground(self, cameras, grid, classes):
        assert grid == BENCHMARK_GRID
        channels = [list(CLASSES).index(name) for name in classes]
        return self.target[:, channels], self.known[:, channels]


def batch_of(target: np.ndarray, known: np.ndarray, names: list[str]) -> BEVBatch:
    batch = labelled(torch.zeros(len(names), 2, *GRID.shape))
    nothing = torch.zeros(len(names), 1, 1, 1)
    masks = ProjectedMasks(nothing, nothing, CLASSES, torch.from_numpy(target), torch.from_numpy(known))
    return replace(batch, meta=[Meta(name, 0) for name in names], labels=masks)


@pytest.fixture
def stream() -> list[tuple[torch.Tensor, BEVBatch]]:
    """Return two batches of predictions on metre cells with labels on the benchmark's."""
    random = np.random.default_rng(0)
    made = []
    for names in (["um_000000", "uu_000004", "um_000001"], ["umm_000007"]):
        p = torch.from_numpy(random.random((len(names), 2, *GRID.shape), dtype=np.float32))
        likely = F.interpolate(p, BENCHMARK_GRID.shape, mode="bilinear").numpy()
        target = random.random(likely.shape) < likely
        known = random.random(likely.shape) < 0.5
        known[[not name.startswith("um_") for name in names], 1] = False
        made.append((p, batch_of(target, known, names)))
    return made


def updated(metric: RoadMetric, stream) -> RoadMetric:
    for p, batch in stream:
        metric.update(outputs_of(p.logit()), batch)
    return metric


def test_metric_counts_every_category_on_the_benchmarks_cells(stream) -> None:
    values = updated(RoadMetric(tuple(CLASSES), GRID), stream).compute()
    assert {key.rpartition("/")[0] for key in values} == {
        *(f"kitti/road/{part}" for part in ("um", "umm", "uu", "urban")), "kitti/ego_lane/um",
    }  # fmt: skip
    for k, name in enumerate(CLASSES):
        for part, beginnings in {
            "um": ["um_"],
            "umm": ["umm_"],
            "uu": ["uu_"],
            "urban": ["um_", "umm_", "uu_"],
        }.items():
            if name == "ego_lane" and part != "um":
                continue
            confidence, target = [], []
            for p, batch in stream:
                fine = F.interpolate(p, BENCHMARK_GRID.shape, mode="bilinear", align_corners=False)
                for i, frame in enumerate(batch.names):
                    if frame.startswith(tuple(beginnings)):
                        known = batch.labels.known[i, k]
                        confidence.append(fine[i, k][known].numpy())
                        target.append(batch.labels.target[i, k][known].numpy())
            expected = oracle(np.concatenate(confidence), np.concatenate(target))
            found = {key: values[f"kitti/{name}/{part}/{key}"].item() for key in FIGURES}
            assert found == pytest.approx(expected, abs=2e-5), (name, part)


def test_predictions_are_upsampled_bilinearly() -> None:
    p = torch.rand(2, 2, *GRID.shape)
    fine = RoadMetric(tuple(CLASSES), GRID).upsampled(p)
    assert fine.shape[-2:] == (800, 400)
    torch.testing.assert_close(
        fine, F.interpolate(p, (800, 400), mode="bilinear", align_corners=False), atol=1e-4, rtol=0
    )


def test_a_larger_grid_is_cut_to_the_benchmarks() -> None:
    wide = BEVGrid((0, 48), (-16, 16), 0.5)
    ramp = wide.centers()[..., 0][None, None] / 48
    fine = RoadMetric(("road",), wide).upsampled(ramp)[0, 0]
    torch.testing.assert_close(fine, BENCHMARK_GRID.centers()[..., 0] / 48, atol=1e-5, rtol=0)


def test_no_confidence_reaches_the_lowest_threshold_alone(stream) -> None:
    metric = RoadMetric(tuple(CLASSES), GRID)
    (p, batch), _ = stream
    metric.update(outputs_of(torch.full_like(p, -torch.inf)), batch)
    values = metric.compute()
    assert values["kitti/road/urban/threshold"] == 0
    assert values["kitti/road/urban/recall"] == 1


def test_shares_of_processes_add_up(stream) -> None:
    whole = updated(RoadMetric(tuple(CLASSES), GRID), stream)
    share, other = (updated(RoadMetric(tuple(CLASSES), GRID), part) for part in (stream[:1], stream[1:]))
    share.merge_state(other)
    assert torch.equal(share.counts, whole.counts)
    assert share.counts.sum() == sum(int(batch.labels.known.sum()) for _, batch in stream)


def test_nan_is_refused_and_unknown_cells_are_not_counted(stream) -> None:
    (p, batch), _ = stream
    metric = RoadMetric(tuple(CLASSES), GRID)
    nothing = replace(batch, labels=replace(batch.labels, known=torch.zeros_like(batch.labels.known)))
    metric.update(outputs_of(p * torch.nan), nothing)
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(outputs_of(p * torch.nan), batch)
    with pytest.raises(InputError, match=r"NaN in \d+ cells"):
        metric.compute()


DATA = (
    "data=kitti_road",
    "data.image_size=[38,124]",
    "data.grid.cell_m=1",
    "data.splits.train=[um_000000,umm_000001,uu_000002,um_000003]",
    "data.splits.val=[um_000000]",
    "data.splits.test=[um_000000,umm_000001,uu_000002]",
    "loader.batch_size=2",
    "loader.num_workers=0",
)
REST = [a for a in TINY if not a.startswith("data.")]


def test_train_and_evaluate_by_the_command_line(command, tmp_path: Path) -> None:
    root = road_folder(tmp_path / "kitti", NAMES)
    ended = command("train", *REST, *DATA, f"data.root={root}", "reshaper=ipm", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    ended = command(
        "evaluate", "checkpoint=run/checkpoints/best.ckpt", DATA[0], *DATA[3:], f"data.root={root}",
        "hydra.run.dir=ev", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    metrics = json.loads((tmp_path / "ev/metrics.json").read_text())
    assert {"test/iou/road", "test/iou/ego_lane", "test/kitti/road/urban/max_f", "test/kitti/ego_lane/um/ap"} <= {
        *metrics
    }
    assert "kitti/road/urban" in ended.out
    assert "max f" in ended.out

    model, frame, _ = load_model(str(tmp_path / "run/checkpoints/best.ckpt"))
    made = KITTIRoadSource(
        root, grid=frame.grid, image_size=frame.image_size, classes=CLASSES, splits={"test": [*NAMES[:3]]}
    )
    batch = finished(made)
    with torch.no_grad():
        p = model(batch.images, batch.cameras).heads["segmentation"].sigmoid()
    fine = F.interpolate(p, (800, 400), mode="bilinear", align_corners=False)[:, 0].numpy()
    confidence, target = [], []
    for number, name in enumerate(NAMES[:3]):
        for row in range(800):
            for col in range(0, 400, 37):  # some columns, since plain numpy is slow
                found = mask_at(root, name, "road", 46 - (row + 0.5) * 0.05, 10 - (col + 0.5) * 0.05)
                if found is not None and found[0]:
                    confidence.append(fine[number, row, col])
                    target.append(found[1])
    expected = oracle(np.array(confidence), np.array(target))
    assert metrics["test/kitti/road/urban/max_f"] == pytest.approx(expected["max_f"], abs=0.02)
    assert metrics["test/kitti/road/urban/ap"] == pytest.approx(expected["ap"], abs=0.03)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric RoadMetric was called before")
def test_grids_without_the_benchmarks_cells_have_iou_only(tmp_path: Path, capsys) -> None:
    made = source(road_folder(tmp_path, NAMES[:1]), grid=BEVGrid((8, 40), (-10, 10), 1.0), splits=None)
    metric = RoadMetric(("road",), made.grid)
    metric.update(outputs_of(torch.zeros(1, 1, *made.grid.shape)), finished(made, "train")[:1])
    assert metric.compute() == {}
    assert "the benchmark's metric is left out" in capsys.readouterr().err


def spoil(root: Path, change: str) -> None:
    masks = root / "training/gt_image_2"
    road = masks / "um_road_000000.png"
    if change == "no road mask":
        road.unlink()
    elif change == "no masks":
        road.unlink()
        (masks / "um_lane_000000.png").unlink()
    elif change == "another size":
        Image.open(road).resize((100, 30)).save(road)
    elif change == "grey mask":
        Image.open(road).convert("L").save(road)
    elif change == "black mask":
        Image.fromarray(np.zeros((38, 124, 3), np.uint8)).save(road)
    elif change == "truncated image":
        image = root / "training/image_2/um_000000.png"
        image.write_bytes(image.read_bytes()[:900])
    elif change == "truncated mask":
        road.write_bytes(road.read_bytes()[:100])
    elif change == "no calibration":
        (root / "training/calib/um_000000.txt").unlink()
    elif change == "object's calibration":
        write_calibration(root, "um_000000", {"P2": np.eye(3, 4), "R0_rect": np.eye(3)})


def test_a_frame_with_a_masked_image_is_ignored(tmp_path: Path) -> None:
    root = road_folder(tmp_path, NAMES[:2])
    spoil(root, "truncated image")
    given: dict[str, Any] = {"splits": {"test": [*NAMES[:2]]}, "on_corrupt_image": "mask"}
    batch = finished(source(root, **given))
    assert batch.cameras.full_mask.tolist() == [[False], [True]]
    assert batch.targets["segmentation"].valid.flatten(1).any(1).tolist() == [False, True]
    metric = RoadMetric(("road",), BENCHMARK_GRID)
    chance = torch.rand(2, 1, *BENCHMARK_GRID.shape, generator=torch.Generator().manual_seed(0))
    metric.update(outputs_of(chance.logit()), batch)
    of_both = metric.compute()
    metric.reset()
    metric.update(outputs_of(chance[1:].logit()), batch[1:])
    assert str(metric.compute()) == str(of_both)  # as text, since NaN differs from itself
    assert torch.isnan(of_both["kitti/road/um/max_f"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "no road mask",
            r"um_road_000000\.png: frame 'um_000000' has no road mask, though its lane mask um_lane_000000\.png",
        ),
        ("no masks", r"um_road_000000\.png: frame 'um_000000' has no road mask; copy gt_image_2"),
        (
            "another size",
            r"um_road_000000\.png: the mask is 30×100 \(height×width\) but its image um_000000\.png is 38×124",
        ),
        ("grey mask", r"um_road_000000\.png: the image is grey"),
        ("black mask", r"um_road_000000\.png: no pixel of the mask is red"),
        ("truncated image", r"image_2/um_000000\.png: the image is truncated or damaged"),
        ("truncated mask", r"um_road_000000\.png: the image is truncated or damaged"),
        ("no calibration", r"calib/um_000000\.txt: there is no such calibration"),
        ("object's calibration", r"calib/um_000000\.txt: there is no Tr_cam_to_road"),
    ],
)
def test_invalid_input_is_refused_before_training(tmp_path: Path, change: str, message: str) -> None:
    spoil(road_folder(tmp_path, NAMES), change)
    with pytest.raises(InputError, match=message):
        source(tmp_path).prepare()


def test_masks_of_one_kind_are_enough_for_classes_of_that_kind(tmp_path: Path) -> None:
    root = road_folder(tmp_path, NAMES)
    both = finished(source(root))
    masks = root / "training/gt_image_2"
    for path in masks.glob("*_lane_*"):
        path.rename(tmp_path / path.name)
    with pytest.raises(InputError, match=r"gt_image_2: none of the \d+ frames .* has a lane mask; .* data\.classes"):
        source(root).prepare()
    alone = finished(source(root, classes={"road": "road"}))
    assert torch.equal(alone.targets["segmentation"].value[:, 0], both.targets["segmentation"].value[:, 0])
    assert torch.equal(alone.targets["segmentation"].valid[:, 0], both.targets["segmentation"].valid[:, 0])
    for path in tmp_path.glob("*_lane_*"):
        path.rename(masks / path.name)
    for path in masks.glob("*_road_*"):
        path.unlink()
    alone = finished(source(root, classes={"lane": "lane"}))
    assert torch.equal(alone.targets["segmentation"].value[:, 0], both.targets["segmentation"].value[:, 1])
    assert torch.equal(alone.targets["segmentation"].valid[:, 0], both.targets["segmentation"].valid[:, 1])


@pytest.mark.parametrize(
    ("classes", "message"),
    [({}, "classes={} must be"), ({"road": "raod"}, "classes.road='raod' must be road or lane; did you mean road")],
)
def test_bad_classes_are_refused(tmp_path: Path, classes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source(road_folder(tmp_path, NAMES[:1]), classes=classes)


def test_road_of_a_real_frame_is_ahead(shared_data: Path) -> None:
    """In ``um_000000`` the road is ahead, and the ego lane is within it around the middle, bounded on both sides."""
    made = source(
        shared_data / "kitti_road",
        splits={"test": ["um_000000"]},
        grid=BEVGrid((6, 46), (-10, 10), 0.2),
        image_size=(192, 640),
    )
    batch = finished(made)
    road, lane = (batch.targets["segmentation"].value & batch.targets["segmentation"].valid)[0]
    assert batch.targets["segmentation"].valid.float().mean() > 0.8
    assert not (lane & ~road).any()
    near = slice(150, 195)  # 7 to 16 m ahead
    assert road[near, 50].all()
    assert lane[near, 45:55].float().mean() > 0.9
    left = 10 - (lane[near].nonzero()[:, 1] + 0.5) * 0.2
    assert -3 < left.min() < -1
    assert 0.5 < left.max() < 3
    near_m, far_m = (road[rows].sum(1).float().mean().item() * 0.2 for rows in (slice(160, 180), slice(10, 30)))
    assert near_m == pytest.approx(5.4, abs=0.2)
    assert far_m == pytest.approx(near_m, abs=0.2), "10 to 14 m and 40 to 44 m ahead: a road is as wide far as near"


@pytest.mark.parametrize(("cell_m", "expected"), [(0.2, (0.991, 0.983)), (0.5, (0.978, 0.956))])
def test_cost_of_coarser_cells(shared_data: Path, cell_m: float, expected: tuple[float, float]) -> None:
    """Test MaxF of the labels on coarser cells as a prediction, the figures of data/README.md."""
    grid = BEVGrid((6, 46), (-10, 10), cell_m)
    made = source(shared_data / "kitti_road", splits={"test": ["um_000000"]}, grid=grid, image_size=(375, 1242))
    batch = finished(made)
    metric = RoadMetric(tuple(CLASSES), grid)
    metric.update(outputs_of(batch.targets["segmentation"].value.float().logit()), batch)
    scores = metric.compute()
    found = tuple(scores[f"kitti/{name}/um/max_f"].item() for name in CLASSES)
    assert found == pytest.approx(expected, abs=6e-4)


def test_an_object_store_gives_the_samples_of_the_folder(tmp_path: Path, memory_store: Upload) -> None:
    root = road_folder(tmp_path, NAMES)
    local, remote = source(root), source(memory_store(root))
    remote.prepare(("test",))
    assert_same_samples(local.split("test"), remote.split("test"))
