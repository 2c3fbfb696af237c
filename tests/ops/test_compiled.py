"""Many models of one class are compiled, each for itself."""

import pytest
import torch
from torch import nn

from bevreshape.ops.compiled import LIMITS, any_number_of_models, compile_alone


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
