"""Test losses against sums cell by cell, and edge cases: no label, autocast, wrong sizes."""

import math
import statistics
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from batches import labelled, outputs_of

from bevreshape.config.groups import build_named
from bevreshape.data.targets import ObjectCenters
from bevreshape.errors import InputError
from bevreshape.model import Outputs
from bevreshape.objectives import CentersLoss
from bevreshape.objectives.losses import BCE, Dice, Focal, WeightedSum, per_class

CONF = Path(__file__).resolve().parents[2] / "conf" / "objective"
CLASSES = ("road", "lane", "vehicle")


def of(loss, logits, target, valid):
    """Compute the objective on outputs and a batch."""
    return loss(outputs_of(logits), labelled(target, valid))


@pytest.fixture
def case():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 5, generator=random, dtype=torch.float64) * 2
    target = torch.rand(2, 3, 4, 5, generator=random) < 0.3
    valid = torch.rand(2, 3, 4, 5, generator=random) < torch.tensor([0.9, 0.5, 0.2])[:, None, None]
    return logits, target, valid


def metric_to_cell(case, k):
    """Return (p, t) of every valid cell of class k, as Python floats."""
    logits, target, valid = (x.numpy() for x in case)
    for b in range(logits.shape[0]):
        for row in range(logits.shape[2]):
            for col in range(logits.shape[3]):
                if valid[b, k, row, col]:
                    yield 1 / (1 + math.exp(-logits[b, k, row, col])), float(target[b, k, row, col])


def bce_oracle(case, pos_weight):
    means = []
    for k in range(3):
        cells = [
            -(w * t * math.log(p) + (1 - t) * math.log(1 - p))
            for w in [pos_weight[k]]
            for p, t in metric_to_cell(case, k)
        ]
        means.append(sum(cells) / len(cells))
    return means


def focal_oracle(case, alpha, gamma):
    means = []
    for k in range(3):
        cells = []
        for p, t in metric_to_cell(case, k):
            right = p if t else 1 - p
            share = 1 if alpha is None else alpha if t else 1 - alpha
            cells.append(-share * (1 - right) ** gamma * math.log(right))
        means.append(sum(cells) / len(cells))
    return means


def dice_oracle(case, smooth):
    values = []
    for k in range(3):
        cells = list(metric_to_cell(case, k))
        both, either = sum(p * t for p, t in cells), sum(p + t for p, t in cells)
        values.append(1 - (2 * both + smooth) / (either + smooth))
    return values


def test_bce_is_the_mean_over_valid_cells_then_over_classes(case):
    assert of(BCE(), *case).item() == pytest.approx(np.mean(bce_oracle(case, [1, 1, 1])), rel=1e-9)


@pytest.mark.parametrize("pos_weight", [[1.0, 4.0, 2.5], {"lane": 4.0, "vehicle": 2.5}])
def test_pos_weight_by_order_or_by_name(case, pos_weight):
    loss = BCE(pos_weight, classes=CLASSES)
    assert of(loss, *case).item() == pytest.approx(np.mean(bce_oracle(case, [1, 4, 2.5])), rel=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 2.0), (0.25, 2.0), (0.7, 1.0), (None, 0.0)])
def test_focal(case, alpha, gamma):
    assert of(Focal(alpha, gamma), *case).item() == pytest.approx(np.mean(focal_oracle(case, alpha, gamma)), rel=1e-9)


def test_focal_without_gamma_is_bce(case):
    assert of(Focal(gamma=0), *case).item() == pytest.approx(of(BCE(), *case).item(), rel=1e-9)


@pytest.mark.parametrize("smooth", [1.0, 1e-3])
def test_dice_is_per_class_over_the_batch(case, smooth):
    assert of(Dice(smooth), *case).item() == pytest.approx(np.mean(dice_oracle(case, smooth)), rel=1e-9)


def test_class_weights_weigh_the_mean(case):
    road, lane, vehicle = bce_oracle(case, [1, 1, 1])
    loss = BCE(class_weight={"lane": 3.0, "vehicle": 0.0}, classes=CLASSES)
    assert of(loss, *case).item() == pytest.approx((road + 3 * lane + 0 * vehicle) / 4, rel=1e-6)


def test_weighted_sum_binds_its_terms_to_the_classes(case):
    loss = WeightedSum({"bce": BCE({"lane": 4.0}), "dice": Dice()}, {"bce": 0.5, "dice": 2.0}, classes=CLASSES)
    expected = 0.5 * np.mean(bce_oracle(case, [1, 4, 1])) + 2 * np.mean(dice_oracle(case, 1.0))
    assert of(loss, *case).item() == pytest.approx(expected, rel=1e-6)


LOSSES = {
    "bce": lambda: BCE(3.0),
    "focal": lambda: Focal(0.25),
    "dice": lambda: Dice(),
    "sum": lambda: WeightedSum({"bce": BCE(), "dice": Dice()}, {"bce": 1, "dice": 1}),
}


@pytest.mark.parametrize("build", LOSSES.values(), ids=LOSSES.keys())
class TestEveryLoss:
    def test_values_of_unlabelled_cells_are_ignored(self, build, case):
        logits, target, valid = case
        leaf = torch.where(valid, logits, 50.0).requires_grad_()
        dirty_target = torch.where(valid, target.double(), torch.nan)
        value = of(build(), leaf, dirty_target, valid)
        assert value.item() == pytest.approx(of(build(), *case).item(), rel=1e-12)
        value.backward()
        assert (leaf.grad[~valid] == 0).all()
        assert (leaf.grad[valid].abs() > 0).all()

    def test_a_class_without_a_label_does_not_dilute_the_others(self, build, case):
        logits, target, valid = case
        two = of(build(), logits[:, :2], target[:, :2], valid[:, :2])
        valid = valid.clone()
        valid[:, 2] = False
        assert of(build(), logits, target, valid).item() == pytest.approx(two.item(), rel=1e-12)

    def test_no_valid_cell_gives_zero_with_a_gradient(self, build, case):
        logits, target, valid = case
        leaf = logits.clone().requires_grad_()
        value = of(build(), leaf, target, torch.zeros_like(valid))
        value.backward()
        assert value.item() == 0
        assert (leaf.grad == 0).all()

    def test_autocast_computes_in_float32(self, build, case):
        logits, target, valid = case
        half = logits.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = of(build(), half, target, valid)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(of(build(), half.double(), target, valid).item(), rel=1e-5)

    @pytest.mark.parametrize("right", [True, False])
    def test_certain_predictions_have_finite_gradients(self, build, case, right):
        _, target, valid = case
        logits = torch.where(target == right, 200.0, -200.0).requires_grad_()
        value = of(build(), logits, target, valid)
        value.backward()
        assert (value < 0.01) == right
        assert torch.isfinite(logits.grad).all()

    def test_shapes_are_compared(self, build, case):
        logits, target, valid = case
        with pytest.raises(InputError, match=r"logits \(2, 3, 4, 5\), target \(2, 3, 4, 4\)"):
            of(build(), logits, target[..., 1:], valid)


def test_channels_are_compared_with_the_classes(case):
    with pytest.raises(InputError, match=r"logits have 3 channels but it was built for 2 classes \(road, lane\)"):
        of(BCE(classes=CLASSES[:2]), *case)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lanes": 2.0}, "'lanes' is not a class of this data; did you mean lane"),
        ([1.0, 2.0], "2 values for 3 classes"),
    ],
)
def test_invalid_class_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        per_class(values, CLASSES, "BCE.pos_weight")


def test_a_name_without_known_classes_is_refused(case):
    with pytest.raises(InputError, match="'lane' is not a class"):
        of(BCE({"lane": 2.0}), *case)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Focal(alpha=1.5), "alpha=1.5 must be a number > 0 and < 1 or null"),
        (lambda: Focal(gamma=0.5), "gamma=0.5 must be 0 or at least 1"),
        (lambda: BCE({"road": -1.0}), "pos_weight.road=-1.0 must be a number > 0"),
        (lambda: WeightedSum({"bce": BCE()}, {"bce": 0.0}), "are all 0"),
        (lambda: CentersLoss(0, 0.0), "leave no loss"),
        (lambda: BCE(class_weight=0.0, classes=CLASSES), "at least one class must count"),
        (lambda: WeightedSum({"bce": BCE()}, {"dice": 1.0}), r"terms are \['bce'\] but weights are \['dice'\]"),
    ],
)
def test_invalid_settings_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds_a_loss(path, case):
    (loss,) = build_named("objective", yaml.safe_load(path.read_text()), classes=CLASSES).values()
    logits, target, valid = case
    outputs, batch = outputs_of(logits), labelled(target, valid)
    outputs.heads["centers"] = torch.zeros(2, 3, 4, 5)
    centers = ObjectCenters(torch.ones(2, 1, 3, 4, 5), valid[:, :1], target[:, :1])
    assert loss(outputs, replace(batch, targets={**batch.targets, "centers": centers})).item() > 0


def test_buffers_stay_out_of_checkpoints():
    assert BCE(2.0, classes=CLASSES).state_dict() == {}


def test_centers_by_hand():
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 6, 3, 4, generator=generator)  # of each of two classes: heat, ahead, left
    heat, offset = torch.rand(2, 2, 1, 3, 4, generator=generator), torch.randn(2, 2, 2, 3, 4, generator=generator)
    inside, valid = (torch.rand(2, 2, 3, 4, generator=generator) < share for share in (0.4, 0.8))
    heats, ways = ([], []), ([], [])
    for b, m, row, col in product(range(2), range(2), range(3), range(4)):
        if not valid[b, m, row, col]:
            continue
        p, t = maps[b, 3 * m, row, col].sigmoid().item(), heat[b, m, 0, row, col].item()
        off = 1 - (p * t + (1 - p) * (1 - t))
        heats[m].append(-(off**2) * (t * math.log(p) + (1 - t) * math.log(1 - p)))
        if inside[b, m, row, col]:
            way = (maps[b, 3 * m + 1 + axis, row, col] - offset[b, m, axis, row, col] for axis in range(2))
            ways[m].append(sum(abs(value.item()) for value in way))
    expected = [statistics.mean(statistics.mean(one) for one in both) for both in (heats, ways)]

    def loss(valid):
        target = ObjectCenters(torch.cat([heat, offset], 2), valid, inside)
        batch = replace(labelled(inside), targets={"centers": target})
        return CentersLoss(0.1, 0.7)(Outputs({"centers": maps}, maps, {}), batch)

    assert loss(valid).item() == pytest.approx(0.1 * expected[0] + 0.7 * expected[1], rel=1e-5)
    assert loss(torch.zeros_like(valid)) == 0


def test_centers_compare_maps_with_classes_of_objects():
    target = ObjectCenters(torch.zeros(1, 2, 3, 4, 4), *torch.ones(2, 1, 2, 4, 4, dtype=torch.bool))
    batch = replace(labelled(torch.ones(1, 1, 4, 4) > 0), targets={"centers": target})
    three = Outputs({"centers": torch.zeros(1, 3, 4, 4)}, torch.zeros(()), {})
    with pytest.raises(InputError, match=r"makes 3 maps but the data has 2 classes.*set head.centers.out_channels=6"):
        CentersLoss()(three, batch)
    with pytest.raises(InputError, match="batches have no target 'centers'"):
        CentersLoss()(three, labelled(torch.ones(1, 1, 4, 4) > 0))
    with pytest.raises(InputError, match="there is no head 'centers'"):
        CentersLoss()(outputs_of(torch.zeros(1, 1, 4, 4)), batch)
