"""The fully connected layer is exactly its formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.reshapers import MLP, FeatureShape

SOURCE = FeatureShape(3, 2, 4)
RIG = FeatureShape(3, 2, 4, cameras=2)


def arrays(mlp: MLP) -> list[tuple[np.ndarray, np.ndarray]]:
    """W and b of every layer: (groups, cells, tokens), (groups, cells)."""
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, 0]) for layer in mlp.layers]


def doubles(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def double_mlp(source: FeatureShape, **options) -> MLP:
    torch.manual_seed(0)
    mlp = MLP(source, (5, 3), **options).double()
    for layer in mlp.layers:
        torch.nn.init.normal_(layer.bias)
    return mlp


@pytest.mark.parametrize(
    ("activation", "sigma"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh), ("none", lambda x: x)]
)
def test_single_layer_is_w_x_plus_b(activation, sigma) -> None:
    mlp, x = double_mlp(SOURCE, activation=activation), doubles((2, 3, 2, 4))
    ((weight, bias),) = arrays(mlp)
    tokens = x.numpy().reshape(2, 3, 8).transpose(0, 2, 1)  # X is hw × c
    expected = sigma(np.einsum("ot,btc->boc", weight[0], tokens) + bias[0][:, None])
    assert weight[0].shape == (15, 8)  # (H'W') × (HW)
    np.testing.assert_allclose(mlp(x).detach().numpy().reshape(2, 3, 15).transpose(0, 2, 1), expected, atol=1e-12)


def test_hidden_layers_and_channel_projection() -> None:
    mlp, x = double_mlp(SOURCE, hidden=[7, 6], channels=5), doubles((2, 3, 2, 4))
    tokens = np.einsum("bct,dc->bdt", x.numpy().reshape(2, 3, 8), mlp.project.weight.detach().numpy()[:, :, 0, 0])
    for weight, bias in arrays(mlp):
        tokens = np.maximum(np.einsum("ot,bdt->bdo", weight[0], tokens) + bias[0], 0)
    assert mlp.out_channels == 5
    np.testing.assert_allclose(mlp(x).detach().numpy().reshape(2, 5, 15), tokens, atol=1e-12)


def test_per_view_sums_activated_views() -> None:
    mlp, x = double_mlp(RIG, hidden=[6]), doubles((2, 2, 3, 2, 4))
    expected = np.zeros((2, 3, 15))
    for view in range(2):
        tokens = x.numpy()[:, view].reshape(2, 3, 8)
        for weight, bias in arrays(mlp):
            tokens = np.maximum(np.einsum("ot,bct->bco", weight[view], tokens) + bias[view], 0)
        expected += tokens
    np.testing.assert_allclose(mlp(x).detach().numpy().reshape(2, 3, 15), expected, atol=1e-12)


def test_joint_has_one_w_over_the_tokens_of_all_views() -> None:
    mlp, x = double_mlp(RIG, views="joint"), doubles((2, 2, 3, 2, 4))
    ((weight, bias),) = arrays(mlp)
    tokens = x.numpy().reshape(2, 2, 3, 8).transpose(0, 2, 1, 3).reshape(2, 3, 16)
    expected = np.maximum(np.einsum("ot,bct->bco", weight[0], tokens) + bias[0], 0)
    np.testing.assert_allclose(mlp(x).detach().numpy().reshape(2, 3, 15), expected, atol=1e-12)


def test_joint_reads_a_dropped_camera_as_zeros(rig) -> None:
    mlp, x = double_mlp(RIG, views="joint"), doubles((1, 2, 3, 2, 4))
    cameras: Cameras = replace(rig(1, 2), mask=torch.tensor([[True, False]]))
    empty = x.clone()
    empty[:, 1] = 0
    assert torch.equal(mlp(x, cameras), mlp(empty))


@pytest.mark.parametrize(("option", "message"), [({"activation": "rleu"}, "relu"), ({"views": "per_veiw"}, "per_view")])
def test_unknown_names_are_refused(option, message) -> None:
    with pytest.raises(InputError, match=f"did you mean {message}"):
        MLP(SOURCE, (5, 3), **option)


def test_initialisation_keeps_the_variance_but_starts_quietly() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 32)
    mlp = MLP(FeatureShape(64, 16, 32), (40, 40), hidden=[300, 200], activation="none")
    hidden = mlp.layers[1](mlp.layers[0](x.reshape(1, 256, 512)))
    assert 0.9 < hidden.std() < 1.1
    assert 0.09 < mlp(x).std() < 0.11
