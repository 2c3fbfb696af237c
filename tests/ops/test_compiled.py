"""Many models of one class are compiled, each for itself."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bevreshape.analysis.costs import Workload
from bevreshape.ops.compiled import LIMITS, any_number_of_models, compile_alone
from bevreshape.reshapers import FeatureShape, Pool
from bevreshape.training.task import BEVTask


class Scaled(nn.Module):
    def __init__(self, factor: int, broken: bool) -> None:
        super().__init__()
        self.factor, self.broken = factor, broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        if self.broken:
            torch._dynamo.graph_break()
        return x * self.factor


@pytest.mark.parametrize("broken", [False, True])
def test_more_than_eight_models_are_compiled(broken: bool) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    models = [compile_alone(Scaled(factor, broken), backend=backend, dynamic=False) for factor in range(2, 14)]
    with any_number_of_models():
        for factor, model in zip(range(2, 14), models, strict=True):
            assert model(torch.ones(1)).item() == 2 * factor
    made = len(graphs)
    assert made >= len(models)  # what is equal before a graph break may be shared
    for factor, model in zip(range(2, 14), models, strict=True):
        assert model(torch.ones(1)).item() == 2 * factor
    assert len(graphs) == made  # nothing is compiled again


def test_limits_are_those_of_this_torch() -> None:
    names = next(names for names in LIMITS if hasattr(torch._dynamo.config, names[0]))
    before = [getattr(torch._dynamo.config, name) for name in names]
    with any_number_of_models():
        assert all(getattr(torch._dynamo.config, name) > 1000 for name in names)
    assert [getattr(torch._dynamo.config, name) for name in names] == before


@pytest.mark.usefixtures("no_shape_checks")  # they are not compiled
def test_workloads_and_tasks_are_compiled_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond torch's limit of compilations of one function."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiles = torch.compile
    monkeypatch.setattr("torch.compile", lambda function, **_: compiles(function, backend=backend, dynamic=False))
    for channels in range(2, 14):
        reshaper = Pool(FeatureShape(channels, 4, 8), (4, 4)).eval()
        before = len(graphs)
        Workload(reshaper, (torch.ones(1, 1, channels, 4, 8), None), form="compiled").forward()
        assert len(graphs) > before
    batch: Any = SimpleNamespace(images=torch.ones(1), cameras=torch.ones(1))
    for factor in range(2, 14):
        task = BEVTask(Summed(factor), {}, {})
        task.compile_training()
        before = len(graphs)
        assert task(batch).item() == factor + 1
        assert len(graphs) > before


class Summed(Scaled):
    """A model of images and cameras."""

    def __init__(self, factor: int) -> None:
        super().__init__(factor, broken=False)

    def forward(self, images: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
        return images * self.factor + cameras
