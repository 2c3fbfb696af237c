"""Test the contract of all data sources, found by listing the configs."""

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from batches import labelled, outputs_of

from bevreshape.config.construct import locate
from bevreshape.data.batch import BEVSource
from bevreshape.data.names import check_classes
from bevreshape.data.sources.nuscenes import NuScenesSource
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.iou import BEVIoU

CONF = Path(__file__).resolve().parents[3] / "conf" / "data"
TARGETS = sorted(
    {node["_target_"] for path in CONF.glob("*.yaml") if "_target_" in (node := yaml.safe_load(path.read_text()))}
)


def signature(owner: type, name: str) -> tuple[list[tuple[str, Any, Any, bool]], Any]:
    """Return a method's parameters without self (name, kind, type, whether optional) and its return type."""
    method = getattr(owner, name)
    hints = get_type_hints(method)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    described = [(p.name, p.kind, hints[p.name], p.default is not p.empty) for p in parameters]
    return described, hints["return"]


@pytest.mark.parametrize("target", TARGETS)
def test_sources_implement_the_protocol_exactly(target: str) -> None:
    """LightningCLI's parser compares names and types of parameters, and types returned, for equality."""
    source = locate(target)
    protocol = BEVSource
    methods = [name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if not name.startswith("_")]
    assert {"prepare", "split", "make_targets"} <= set(methods)
    for name in methods:
        assert signature(source, name) == signature(protocol, name), name


def test_every_source_is_listed() -> None:
    assert len(TARGETS) == 5
    assert any(locate(target) is NuScenesSource for target in TARGETS)


def test_the_metric_refuses_names_that_collide_with_its_keys() -> None:
    grid = BEVGrid((0, 8), (-4, 4), 1)
    metric = BEVIoU(["Mean", "a b", "mean_2", "0-2m", "möglich"], grid)
    cells = (1, 5, *grid.shape)
    metric.update(outputs_of(torch.zeros(cells)), labelled(torch.zeros(cells)))
    keys = list(metric.compute())
    assert len(keys) == len(set(keys)) == 5 * (3 + len(metric.bands)) + 2
    for names in (["mean"], ["a/0-2m", "a"], ["a", "a"], ["a "], ["\ud800"]):
        with pytest.raises(InputError, match=r"metrics: class|must be a list of text"):
            BEVIoU(names, grid)
        with pytest.raises(InputError, match="here: class"):
            check_classes(names, "here")
    with pytest.raises(InputError, match="here: class 7 is int, not a text"):
        check_classes([7], "here")
