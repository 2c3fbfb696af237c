"""Test IoU against a brute-force count over the concatenated data set."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from batches import labelled, outputs_of

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.iou import BEVIoU

GRID = BEVGrid((0, 6), (-4, 4), 1.0)
CLASSES = ("road", "lane")


def batch(seed, size=3):
    """Return probabilities, which include all 11 thresholds exactly, targets and validity."""
    random = np.random.default_rng(seed)
    p = random.integers(0, 21, (size, 2, *GRID.shape)) / 20
    target = random.random(p.shape) < 0.2 + 0.5 * p
    valid = random.random(p.shape) < 0.7
    return p, target, valid


def count(metric, logits, target, valid):
    metric.update(outputs_of(logits), labelled(target, valid))


def update(metric, p, target, valid):
    count(metric, torch.from_numpy(p).logit().float(), torch.from_numpy(target), torch.from_numpy(valid))


def iou_oracle(p, target, valid, threshold, where=None):
    """Compute IoU of one class by plain counting over all cells of all images."""
    both = either = 0
    for index in np.ndindex(p.shape):
        if valid[index] and (where is None or where[index[-2:]]):
            predicted, there = p[index] >= threshold, target[index]
            both += predicted and there
            either += predicted or there
    return both / either if either else float("nan")


def distances():
    """Return the distance of every cell from the ego origin, from the conventions alone."""
    return np.array([[np.hypot(6 - 0.5 - row, 4 - 0.5 - col) for col in range(8)] for row in range(6)])


@pytest.fixture
def seen():
    """Return a metric after three batches of different size, and all of them concatenated."""
    metric = BEVIoU(CLASSES, GRID, thresholds=11)
    batches = [batch(seed, size) for seed, size in ((1, 3), (2, 1), (3, 2))]
    for given in batches:
        update(metric, *given)
    return metric, [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def test_iou_over_the_data_set_at_half(seen):
    metric, (p, target, valid) = seen
    result = metric.compute()
    expected = [iou_oracle(p[:, k], target[:, k], valid[:, k], 0.5) for k in range(2)]
    assert [result["iou/road"].item(), result["iou/lane"].item()] == pytest.approx(expected, abs=1e-6)
    assert result["iou/mean"].item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_probability_that_equals_its_threshold_is_positive(seen):
    metric, (p, target, valid) = seen
    for step in range(11):
        result = metric.iou_at({"road": step / 10, "lane": 1 - step / 10})
        # integers, so that the oracle's comparison at the threshold has no rounding either
        twentieths = np.rint(p * 20).astype(int)
        road = iou_oracle(twentieths[:, 0], target[:, 0], valid[:, 0], 2 * step)
        lane = iou_oracle(twentieths[:, 1], target[:, 1], valid[:, 1], 20 - 2 * step)
        assert [result["iou/road"].item(), result["iou/lane"].item()] == pytest.approx([road, lane], abs=1e-6)


def test_logit_zero_is_positive_and_the_next_smaller_number_is_not():
    metric = BEVIoU(["road"], BEVGrid((0, 2), (0, 1), 1.0))
    logits = torch.tensor([0.0, -1e-45])[None, None, :, None]
    count(metric, logits, torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1, dtype=torch.bool))
    assert metric.compute()["iou/road"] == 0.5


def test_best_threshold(seen):
    metric, (p, target, valid) = seen
    result = metric.compute()
    kept = {name: result[f"best_threshold/{name}"].item() for name in CLASSES}
    twentieths = np.rint(p * 20).astype(int)
    for k, name in enumerate(CLASSES):
        all_ious = [iou_oracle(twentieths[:, k], target[:, k], valid[:, k], 2 * step) for step in range(11)]
        assert result[f"best_iou/{name}"].item() == pytest.approx(max(all_ious), abs=1e-6)
        assert kept[name] == pytest.approx(np.argmax(all_ious) / 10)
    assert metric.iou_at(kept)["iou/mean"] == result["best_iou/mean"]


def test_thresholds_of_one_data_set_are_applied_to_another():
    test = BEVIoU(CLASSES, GRID, thresholds=11)
    p, target, valid = batch(9)
    update(test, p, target, valid)
    chosen = {"road": 0.7, "lane": 0.3}
    result = test.iou_at(chosen)
    for k, name in enumerate(CLASSES):
        twentieths = np.rint(p[:, k] * 20).astype(int)
        expected = iou_oracle(twentieths, target[:, k], valid[:, k], round(chosen[name] * 20))
        assert result[f"iou/{name}"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bands_m", [None, (0, 2.5, 5), (1, 3, 4)])
def test_distance_bands(bands_m):
    metric = BEVIoU(CLASSES, GRID, bands_m=bands_m)
    p, target, valid = batch(4)
    update(metric, p, target, valid)
    result = metric.compute()
    edges = bands_m or (0, 2, 4, 6, 8)
    for low, high in pairwise(edges):
        where = (distances() >= low) & (distances() < high)
        for k, name in enumerate(CLASSES):
            expected = iou_oracle(p[:, k], target[:, k], valid[:, k], 0.5, where)
            assert result[f"iou/{name}/{low:g}-{high:g}m"].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert sum(key.startswith("iou/road/") for key in result) == len(edges) - 1


@pytest.mark.parametrize(
    ("grid", "bands"),
    [
        (BEVGrid((0, 40), (-20, 20), 0.5), ("0-10m", "10-20m", "20-30m", "30-40m", "40-50m")),
        (BEVGrid((-50, 50), (-50, 50), 0.5), ("0-20m", "20-40m", "40-60m", "60-80m")),
        (BEVGrid((0.3, 1.8), (-0.6, 0.6), 0.05), ("0-0.5m", "0.5-1m", "1-1.5m", "1.5-2m")),
        (BEVGrid((30, 60), (-10, 10), 0.5), ("20-40m", "40-60m", "60-80m")),
    ],
)
def test_default_bands_are_round_and_hold_every_cell(grid, bands):
    metric = BEVIoU(["road"], grid)
    assert metric.bands[: len(bands)] == bands
    assert len(metric.bands) <= 6
    assert (metric.band_of_cell < len(metric.bands)).all()


def test_iou_is_not_a_mean_over_images():
    """One image is half right, another has a single, found cell: 0.75 per image, 25/49 over the data set."""
    metric = BEVIoU(["road"], GRID)
    target = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    target[0] = True
    target[1, 0, 0, 0] = True
    logits = torch.where(target, 5.0, -5.0)
    logits[0, 0, 3:] = -5.0
    for number in range(2):
        count(metric, logits[[number]], target[[number]], torch.ones(1, 1, 6, 8, dtype=torch.bool))
    assert metric.compute()["iou/road"].item() == pytest.approx(25 / 49)


def test_merged_counts_of_two_processes_equal_the_whole(seen):
    whole, (p, target, valid) = seen
    share, other = BEVIoU(CLASSES, GRID, thresholds=11), BEVIoU(CLASSES, GRID, thresholds=11)
    update(share, p[:1], target[:1], valid[:1])
    update(other, p[1:], target[1:], valid[1:])
    share.merge_state(other)
    assert torch.equal(share.counts, whole.counts)
    merged, expected = share.compute(), whole.compute()
    assert merged == expected
    assert share._reductions["counts"] is whole._reductions["counts"]


def test_an_absent_class_is_left_out_of_the_mean_and_keeps_half_as_threshold():
    metric = BEVIoU(CLASSES, GRID)
    target = torch.zeros(1, 2, 6, 8, dtype=torch.bool)
    target[0, 0, :3] = True
    count(metric, torch.where(target, 1.0, -1.0), target, torch.ones_like(target))
    result = metric.compute()
    assert result["iou/road"] == result["iou/mean"] == result["best_iou/mean"] == 1
    assert result["iou/lane"].isnan()
    assert result["iou/lane/0-2m"].isnan()
    assert result["best_threshold/lane"] == 0.5
    assert result["best_threshold/road"] == 0.5  # all between 0.28 and 0.72 are equally good


def test_counts_are_integers_beyond_the_exact_range_of_floats():
    metric = BEVIoU(["road"], GRID)
    metric.counts += 2**40
    update_one = torch.full((1, 1, 6, 8), 9.0)
    before = metric.counts.sum()
    count(metric, update_one, torch.ones_like(update_one), torch.ones_like(update_one, dtype=torch.bool))
    assert metric.counts.sum() - before == 48


def test_infinite_logits_are_certain_predictions():
    metric = BEVIoU(["road"], BEVGrid((0, 2), (0, 1), 1.0), thresholds=3)
    logits = torch.tensor([torch.inf, -torch.inf])[None, None, :, None]
    count(metric, logits, torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1, dtype=torch.bool))
    assert [metric.iou_at({"road": t})["iou/road"].item() for t in (0, 0.5, 1)] == [1, 0.5, 0.5]


def test_nan_counts_only_where_valid_and_is_refused():
    metric = BEVIoU(["road"], GRID)
    logits = torch.zeros(1, 1, 6, 8)
    logits[..., :2] = torch.nan
    valid = ~logits.isnan()
    count(metric, logits, torch.ones(1, 1, 6, 8), valid)
    assert metric.compute()["iou/road"] == 1
    count(metric, logits, torch.ones(1, 1, 6, 8), torch.ones_like(valid))
    with pytest.raises(InputError, match="NaN in 12 valid cells"):
        metric.compute()


def test_half_precision_logits_and_resets_between_epochs(seen):
    metric, _ = seen
    metric.reset()
    target = torch.zeros(1, 2, 6, 8, dtype=torch.bool)
    target[..., 0] = True
    count(metric, torch.where(target, 1.0, -1.0).bfloat16(), target, torch.ones_like(target))
    assert metric.compute()["iou/mean"] == 1
    assert metric.state_dict() == {}


def test_invalid_settings_and_shapes_are_refused():
    with pytest.raises(InputError, match="thresholds=10 must be odd"):
        BEVIoU(CLASSES, GRID, thresholds=10)
    with pytest.raises(InputError, match="ascending"):
        BEVIoU(CLASSES, GRID, bands_m=(0, 5, 5))
    metric = BEVIoU(CLASSES, GRID)
    ones = torch.ones(1, 2, 6, 8)
    with pytest.raises(InputError, match=r"target \(1, 2, 6, 7\) must be \(b, k, rows, cols\) = \(1, 2, 6, 8\)"):
        count(metric, ones, ones[..., 1:], ones.bool())
    count(metric, ones, ones, ones.bool())
    with pytest.raises(InputError, match=r"0\.51 of class 'road' was not counted; choose a multiple of 0\.02"):
        metric.iou_at({"road": 0.51, "lane": 0.5})
    with pytest.raises(InputError, match="no threshold for class 'lane'"):
        metric.iou_at({"road": 0.5})
