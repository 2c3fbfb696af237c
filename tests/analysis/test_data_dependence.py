"""Data dependence is exactly 0 for a fixed mapping, and equals its formula otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bevreshape.analysis.costs import ring
from bevreshape.analysis.data_dependence import data_dependence, relative_spread
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import IPM, MLP, Bilinear, CrossAttention, FeatureShape, Pool, SelfAttention, StridedConv

GRID = BEVGrid((0.0, 3.0), (-1.0, 1.0), 1.0)  # 3×2
SOURCE = FeatureShape(4, 2, 3, cameras=2, stride=16, offset_px=7.5)


def rig(batch: int) -> Cameras:
    return ring(2, (32, 48), batch, torch.device("cpu"), 4.0)


def inputs(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Cameras]]:
    """Five samples in batches of two, two and one."""
    x = torch.randn(5, 2, 4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return [(part, rig(len(part))) for part in x.split(2)]


@pytest.mark.parametrize("probes", [None, 3])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MLP, {"activation": "none"}),
        (MLP, {"activation": "none", "views": "joint", "rank": 2, "channels": 3}),
        (MLP, {"activation": "none", "hidden": [5]}),
        (Pool, {}),
        (StridedConv, {}),
        (IPM, {}),
        (Bilinear, {"compress": False}),
    ],
)
def test_a_fixed_mapping_has_no_data_dependence(cls, options, probes) -> None:
    torch.manual_seed(0)
    assert data_dependence(cls(SOURCE, GRID, **options), inputs(), probes=probes) == 0.0


@pytest.mark.parametrize("probes", [None, 3])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MLP, {}),
        (MLP, {"hidden": [5]}),
        (MLP, {"activation": "tanh"}),
        (Pool, {"mode": "max"}),
        (CrossAttention, {"dim": 8}),
        (CrossAttention, {"dim": 8, "kernel": "linear"}),
        (SelfAttention, {"dim": 8}),
    ],
)
def test_image_dependent_mappings_have_data_dependence(cls, options, probes) -> None:
    torch.manual_seed(0)
    assert data_dependence(cls(SOURCE, GRID, **options), inputs(), probes=probes) > 1e-3


def test_data_dependence_of_a_hidden_relu_layer() -> None:
    torch.manual_seed(0)
    mlp = MLP(replace(SOURCE, cameras=1), GRID, hidden=[7], activation="relu").double()
    batches = [x[:, :1] for x, _ in inputs(torch.float64)]
    (w1, b1), (w2, b2) = ((layer.weight[0].detach().numpy(), layer.bias[0, 0].detach().numpy()) for layer in mlp.layers)
    norms = []
    for sample in torch.cat(batches)[:, 0]:
        square = np.zeros((6, 6))
        for channel in sample.flatten(1).numpy():  # each channel alone, the same W
            opened = w1 @ channel + b1 > 0
            out = w2 @ np.where(opened, w1 @ channel + b1, 0) + b2 > 0
            square += ((w2 * opened) @ w1 * out[:, None]) ** 2
        norms.append(np.sqrt(square))
    mean, variance = np.mean(norms, axis=0), np.var(norms, axis=0, ddof=1)
    expected = np.sqrt(variance.sum() / (mean**2).sum())
    assert data_dependence(mlp, [(x, None) for x in batches]) == pytest.approx(expected, rel=1e-9)
    assert 0.05 < expected < 2


def test_geometric_mapping_depends_on_the_calibration_alone() -> None:
    x = torch.ones(1, 2, 4, 2, 3)
    moved = replace(rig(1), intrinsics=rig(1).intrinsics * torch.tensor([1.1, 1.1, 1.0])[:, None])
    assert data_dependence(IPM(SOURCE, GRID), [(x, rig(1)), (x, moved)]) > 1e-2


def test_relative_spread_equals_its_formula_for_every_batching() -> None:
    weights = torch.rand(6, 3, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = weights.numpy()
    expected = np.sqrt(values.var(0, ddof=1).sum() / (values.mean(0) ** 2).sum())
    for sizes in ([6], [1, 2, 3], [5, 1]):
        assert relative_spread(weights.split(sizes)) == pytest.approx(expected, rel=1e-12)
    assert relative_spread([1000 * weights]) == pytest.approx(expected, rel=1e-12)
    assert relative_spread([torch.tensor([[1.0, 2.0], [-1.0, -2.0]])]) == np.inf
    assert relative_spread([torch.zeros(3, 2)]) == 0.0
    third = torch.full((7, 5), 1 / 3)  # whose sum over seven is rounded
    assert relative_spread([third]) == 0.0


def test_selected_cells_only() -> None:
    torch.manual_seed(0)
    mlp = MLP(replace(SOURCE, cameras=1), GRID).double()
    with torch.no_grad():
        mlp.layers[0].bias[..., 3] = 100.0  # never closed by its relu
    given = [(x[:, :1], None) for x, _ in inputs(torch.float64)]
    assert data_dependence(mlp, given, cells=[(1, 1)]) == 0.0
    assert data_dependence(mlp, given, cells=[(1, 0)]) > 0.0


def test_bad_input_is_refused() -> None:
    pool = Pool(SOURCE, GRID)
    with pytest.raises(InputError, match="1 samples have no spread"):
        data_dependence(pool, inputs()[2:])
    with pytest.raises(InputError, match="0 samples"):
        data_dependence(pool, [])
    with pytest.raises(InputError, match=r"\(3,\) follow on \(2,\)"):
        relative_spread([torch.ones(1, 2), torch.ones(1, 3)])
