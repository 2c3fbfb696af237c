"""PYVA's output, its equations in loops, and the loss of its cycle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape, MLPAttention

FIXTURE = Path(__file__).parent / "fixtures" / "mlp_attention.pt"
"""Output of JonDoe-297/cross-view at 957691b, CycledViewProjection and CrossViewTransformer."""

SOURCE = FeatureShape(8, 2, 4, cameras=2, stride=8)
GRID = (5, 3)


@pytest.fixture(scope="module")
def original() -> dict:
    return torch.load(FIXTURE, weights_only=True)


def cycle(reshaper: MLPAttention, x: torch.Tensor, cameras: Cameras | None = None) -> torch.Tensor:
    """The cycle's error in one forward of training."""
    _, auxiliary = reshaper.train().forward_with_auxiliary(x, cameras)
    return auxiliary["cycle"] / reshaper.cycle_weight


def double(**options) -> MLPAttention:
    torch.manual_seed(0)
    reshaper = MLPAttention(SOURCE, GRID, **options).double()
    for parameter in reshaper.parameters():
        parameter.data *= 2  # else attention has hardly any effect
    return reshaper


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_output_of_the_original(original) -> None:
    x, weights = original["features"], original["state_dict"]
    built = MLPAttention(FeatureShape(16, 4, 4), (4, 4), residual="image").load_original({**weights, "epoch": 7})
    torch.testing.assert_close(built(x), original["output"], atol=1e-5, rtol=1e-5)
    error = (x - original["retransformed"]).abs().mean()
    torch.testing.assert_close(cycle(built, x), error, atol=1e-6, rtol=1e-6)
    right = MLPAttention(FeatureShape(16, 4, 4), (4, 4)).load_original(weights)
    assert not torch.allclose(right(x), original["output"], atol=0.1)


def test_other_weights_are_refused(original) -> None:
    weights = original["state_dict"]
    built = MLPAttention(FeatureShape(16, 4, 4), (4, 4))
    with pytest.raises(InputError, match=r"fuse\.bias is missing there; fuse\.weight is missing there;"):
        built.load_original({key: value for key, value in weights.items() if not key.startswith("f_conv")})
    with pytest.raises(InputError, match=r"original decoder\.weight is unknown here"):
        built.load_original({**weights, "decoder.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"retransform\.0\.weight is \(16, 16\) there and \(16, 12\) here"):
        MLPAttention(FeatureShape(16, 4, 4), (4, 3)).load_original(weights)


@pytest.mark.parametrize("hidden", [None, 6])
def test_output_is_the_equations_in_loops(hidden) -> None:
    reshaper, x = double(hidden=hidden), doubles(2, 2, 8, 2, 4)
    own = {name: value.numpy() for name, value in reshaper.state_dict().items()}

    def mlp(name: str, tokens: np.ndarray) -> np.ndarray:
        for layer in ("0", "2"):
            tokens = np.maximum(tokens @ own[f"{name}.{layer}.weight"].T + own[f"{name}.{layer}.bias"], 0)
        return tokens

    def conv(name: str, tokens: np.ndarray) -> np.ndarray:
        return own[f"{name}.weight"][:, :, 0, 0] @ tokens + own[f"{name}.bias"][:, None]

    expected = np.zeros((2, 8, 5, 3))
    for sample in range(2):
        for camera in range(2):
            image = x[sample, camera].numpy().reshape(8, 8)
            bev = mlp("transform", image)
            q, k, v = conv("to_q", bev), conv("to_k", image), conv("to_v", mlp("retransform", bev))
            stacked, score = np.zeros((16, 7, 5)), np.zeros((5, 3))  # a border of zeros
            for cell in range(15):
                row, col = divmod(cell, 3)
                relevance = [float(k[:, token] @ q[:, cell]) for token in range(8)]
                score[row, col] = max(relevance)
                stacked[:, row + 1, col + 1] = np.concatenate([bev[:, cell], v[:, int(np.argmax(relevance))]])
            for row in range(5):
                for col in range(3):
                    window = stacked[:, row : row + 3, col : col + 3]
                    fused = (own["fuse.weight"] * window).sum((1, 2, 3)) + own["fuse.bias"]
                    expected[sample, :, row, col] += (bev[:, 3 * row + col] + fused * score[row, col]) / 2
    np.testing.assert_allclose(reshaper(x).detach().numpy(), expected, atol=1e-12)


def test_gradient_is_that_of_a_maximum_over_the_whole_relevance() -> None:
    reshaper, x = double(), doubles(1, 2, 8, 2, 4)
    reshaper(x).square().sum().backward()
    own = {name: parameter.grad.clone() for name, parameter in reshaper.named_parameters()}
    reshaper.zero_grad()
    z = x[0].flatten(2)
    bev = reshaper.transform(z)
    q, k, v = (conv(t[..., None])[..., 0] for conv, t in (
        (reshaper.to_q, bev), (reshaper.to_k, z), (reshaper.to_v, reshaper.retransform(bev))
    ))  # fmt: skip
    score, chosen = (k.mT @ q).max(1)
    found = torch.stack([v[i][:, chosen[i]] for i in range(2)])
    fused = reshaper.fuse(torch.cat([bev, found], 1).unflatten(2, GRID))
    (bev.unflatten(2, GRID) + fused * score.unflatten(1, GRID)[:, None]).mean(0).square().sum().backward()
    for name, parameter in reshaper.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, msg=name)


def test_cycle_loss_averages_over_present_cameras(rig) -> None:
    torch.manual_seed(0)
    source = FeatureShape(8, 4, 6, cameras=2, stride=8)
    reshaper, x = MLPAttention(source, GRID), torch.randn(2, 2, 8, 4, 6)
    back = reshaper.retransform(reshaper.transform(x.flatten(3))).unflatten(3, (4, 6))
    error = (x - back).abs().mean((2, 3, 4))
    torch.testing.assert_close(cycle(reshaper, x), error.mean())
    rigs = replace(rig(2, 2), camera_mask=torch.tensor([[True, False], [True, True]]))
    x[0, 1] = torch.nan
    loss = cycle(reshaper, x, rigs)
    torch.testing.assert_close(loss, (error[0, 0] + error[1].mean()) / 2)
    (loss + reshaper(x, rigs).sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in reshaper.parameters())


def test_cycle_loss_trains_the_reconstruction() -> None:
    torch.manual_seed(0)
    reshaper, x = MLPAttention(FeatureShape(4, 3, 3), (4, 4)), torch.rand(8, 4, 3, 3)
    optimizer = torch.optim.Adam([*reshaper.transform.parameters(), *reshaper.retransform.parameters()], 1e-2)
    before = cycle(reshaper, x).item()
    for _ in range(150):
        loss = cycle(reshaper, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < before / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": "bve"}, "did you mean bev"),
        ({"residual": "image"}, r"features of 2×4 to 5×3 cells"),
    ],
)
def test_invalid_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        MLPAttention(SOURCE, GRID, **options)


def test_the_cycle_joins_the_loss_in_training_alone(rig) -> None:
    torch.manual_seed(0)
    reshaper = MLPAttention(FeatureShape(3, 4, 6, 6, 8, 3.5), (8, 6), cycle_weight=0.5)
    x, rigs = torch.rand(2, 6, 3, 4, 6), rig(2, 6)
    model = BEVModel(torch.nn.Identity(), reshaper, {})
    trained, evaluated = model.train()(x, rigs), model.eval()(x, rigs)
    assert evaluated.auxiliary == {}
    torch.testing.assert_close(trained.bev, evaluated.bev)
    torch.testing.assert_close(trained.auxiliary["cycle"], 0.5 * cycle(reshaper, x, rigs))
    trained.auxiliary["cycle"].backward()
    assert reshaper.retransform[0].weight.grad.abs().max() > 0
    reshaper.cycle_weight = 0.0
    assert model.train()(x, rigs).auxiliary == {}
