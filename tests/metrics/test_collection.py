"""Metrics of other packages: what they may return, and in which direction their values improve."""

from typing import Any

import pytest
import torch
from batches import labelled, outputs_of
from torch import Tensor, nn

from bevreshape.config.build_task import build_metrics
from bevreshape.config.groups import build_named
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics import BEVIoU, BEVMetric, RoadMetric, collected, improvement, values_besides_iou
from bevreshape.objectives import BCE
from bevreshape.objectives.base import scalar
from bevreshape.training.schedule import make_early_stop
from bevreshape.training.task import BEVTask

GRID = BEVGrid((0, 4), (-2, 2), 1.0)


class Returns(BEVMetric):
    """A metric that returns what it was given, and cannot compute without a batch where ``needs_batch``."""

    count: Tensor

    def __init__(self, returned: Any, higher_is_better: bool | None = None, needs_batch: bool = False) -> None:
        super().__init__()
        self.returned, self.needs_batch = returned, needs_batch
        self.higher = higher_is_better
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: object, batch: object) -> None:
        self.count += 1

    def improves(self, name: str) -> bool | None:
        return self.higher

    def compute(self) -> Any:
        if self.needs_batch and self.count == 0:
            raise RuntimeError("no batch")
        return self.returned


def task(**metrics: BEVMetric) -> BEVTask:
    return BEVTask(nn.Linear(1, 1), {"a": BCE(), "b": BCE()}, metrics)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (torch.ones(3), r"a tensor of shape \(3,\) as 'own'"),
        ({"a": torch.ones(2, 2)}, r"a tensor of shape \(2, 2\) as 'a'"),
        ({"a": "good"}, "'good' as 'a'"),
        ({1: torch.ones(())}, r"a tensor of shape \(\) as 1"),
        (None, "None as 'own'"),
    ],
)
def test_a_value_that_is_no_scalar_names_the_metric(returned: Any, found: str) -> None:
    metrics = collected({"own": Returns(returned)}, "val")
    metrics.update(outputs_of(torch.zeros(1, 1, 4, 4)), labelled(torch.zeros(1, 1, 4, 4)))
    with pytest.raises(InputError, match=rf"^metric\.own: Returns\.compute returns {found}; return scalar tensors"):
        metrics.compute()


def test_scalars_are_named_by_stage_and_listed_by_metric() -> None:
    one, two = Returns(torch.tensor(2.0)), Returns({"x/y": torch.tensor(3.0), "x/z": torch.tensor([4.0])})
    metrics = collected({"one": one, "iou": BEVIoU(("road",), GRID), "two": two, "idle": Returns({})}, "test")
    target = torch.zeros(1, 1, *GRID.shape)
    metrics.update(outputs_of(target), labelled(target))
    found = metrics.compute()
    assert {"test/one", "test/x/y", "test/x/z", "test/iou/road"} <= set(found)
    assert values_besides_iou(metrics) == [{"one": 2.0}, {"x/y": 3.0, "x/z": 4.0}]


def test_a_class_that_is_no_metric_of_batches_is_refused() -> None:
    for name in ("torchmetrics.MeanMetric", "torch.nn.Identity"):
        with pytest.raises(InputError, match=r"^metric\.own: \w+ is no BEVMetric; derive it from bevreshape\.metrics"):
            build_metrics({"own": {"_target_": name}}, ("road",), GRID)


def test_an_objective_that_returns_no_scalar_is_named() -> None:
    for returned, found in ((torch.ones(4), r"a tensor of shape \(4,\)"), (1.5, "1.5")):
        with pytest.raises(InputError, match=rf"^objective\.own: BCE returns {found}; return a scalar tensor"):
            scalar("own", BCE(), returned)


def test_a_module_without_forward_is_no_objective() -> None:
    with pytest.raises(InputError, match=r"^objective\.own: Module has no forward, so it is no objective"):
        build_named("objective", {"own": {"_target_": "torch.nn.Module"}})
    with pytest.raises(InputError, match=r"^objective\.own: \w+Path has no forward"):
        build_named("objective", {"own": {"_target_": "pathlib.Path"}})


def test_direction_of_any_value_of_any_metric() -> None:
    metrics = collected(
        {
            "iou": BEVIoU(("road",), GRID),
            "kitti": RoadMetric(("road",), BEVGrid((0, 50), (-20, 20), 1.0)),
            "error": Returns({"height/error_m": torch.ones(())}, higher_is_better=False),
            "score": Returns(torch.ones(()), higher_is_better=True),
            "silent": Returns({"x": torch.ones(())}),
        },
        "val",
    )
    for key, wanted in (
        ("val/iou/mean", "max"),
        ("val/iou/road", "max"),
        ("val/kitti/road/urban/max_f", "max"),
        ("val/kitti/road/urban/fpr", "min"),
        ("val/height/error_m", "min"),
        ("val/score", "max"),
        ("val/unknown", None),
        ("iou/mean", None),
    ):
        assert improvement(metrics, key) == wanted, key
    for key, name in (("val/x", "Returns"), ("val/best_threshold/road", "BEVIoU")):
        with pytest.raises(InputError, match=rf"{name} does not state whether a higher .* its class attribute"):
            improvement(metrics, key)


def test_a_metric_that_needs_a_batch_may_give_any_other_key() -> None:
    shy = Returns({"x": torch.ones(())}, higher_is_better=False, needs_batch=True)
    assert improvement(collected({"iou": BEVIoU(("road",), GRID), "shy": shy}, "val"), "val/x") == "min"
    assert not shy.update_called


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val/loss", "min"), ("val/a_loss", "min"), ("val/iou/road", "max"), ("val/e", "min")]
)
def test_early_stopping_monitors_any_logged_value(monitor: str, mode: str) -> None:
    own = task(iou=BEVIoU(("road",), GRID), e=Returns(torch.ones(()), higher_is_better=False))
    stop = make_early_stop({"early_stopping": {"patience": 2, "monitor": monitor}}, own)
    assert stop is not None
    assert (stop.monitor, stop.mode, stop.patience) == (monitor, mode, 2)


def test_early_stopping_refuses_what_nothing_gives() -> None:
    assert make_early_stop({"early_stopping": {"monitor": "val/none", "patience": None}}, task()) is None
    with pytest.raises(InputError, match=r"monitor=val/iou/mean but no metric gives it; set monitor=val/loss or val/a"):
        make_early_stop({"early_stopping": {"patience": 1}}, task())
