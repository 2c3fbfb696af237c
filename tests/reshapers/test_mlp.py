"""The fully connected layer equals its formula."""

import math
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import IPM, MLP, FeatureShape

SOURCE = FeatureShape(3, 2, 4)
RIG = FeatureShape(3, 2, 4, cameras=2)
FIXTURE = Path(__file__).parent / "fixtures" / "mlp.pt"
"""Outputs of pbw-Berwin/View-Parsing-Network at 9ccfcce, TransformModule, and of Tsinghua-MARS-Lab/HDMapNet at 7911227,
ViewTransformation."""


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
    ("activation", "sigma"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("gelu", lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2),
        ("tanh", np.tanh),
        ("none", lambda x: x),
    ],
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
    cameras: Cameras = replace(rig(1, 2), camera_mask=torch.tensor([[True, False]]))
    empty = x.clone()
    empty[:, 1] = 0
    assert torch.equal(mlp(x, cameras), mlp(empty))


@pytest.mark.parametrize(("option", "message"), [({"activation": "rleu"}, "relu"), ({"views": "per_veiw"}, "per_view")])
def test_unknown_names_are_refused(option, message) -> None:
    with pytest.raises(InputError, match=f"did you mean {message}"):
        MLP(SOURCE, (5, 3), **option)


def test_initialisation_keeps_variance_in_hidden_layers_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 32)
    mlp = MLP(FeatureShape(64, 16, 32), (40, 40), hidden=[300, 200], activation="none")
    hidden = mlp.layers[1](mlp.layers[0](x.reshape(1, 256, 512)))
    assert 0.9 < hidden.std() < 1.1
    assert 0.09 < mlp(x).std() < 0.11


@pytest.fixture(scope="module")
def originals() -> dict:
    return torch.load(FIXTURE, weights_only=True)


def test_output_of_the_original_vpn(originals) -> None:
    case = originals["vpn"]
    mlp = MLP(FeatureShape(4, 3, 3, cameras=2), (3, 3), hidden=[9])
    prefixed = {f"module.transform_module.{key}": value for key, value in case["state_dict"].items()}
    for weights in (case["state_dict"], prefixed):
        torch.nn.init.zeros_(mlp.layers[0].weight)
        mlp.load_original(weights)
        torch.testing.assert_close(mlp(case["features"]), case["output"], atol=1e-5, rtol=1e-5)


def test_output_of_the_original_hdmapnet(originals) -> None:
    case = originals["hdmapnet"]
    mlp = MLP(FeatureShape(4, 2, 4, cameras=3), (3, 5), hidden=[15]).load_original(case["state_dict"])
    torch.testing.assert_close(mlp.per_camera(case["features"]), case["output"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mlp(case["features"]), case["output"].sum(1), atol=1e-5, rtol=1e-5)


def test_other_weights_are_refused(originals) -> None:
    weights = originals["hdmapnet"]["state_dict"]
    source = FeatureShape(4, 2, 4, cameras=3)
    built = MLP(source, (3, 5), hidden=[15])
    with pytest.raises(InputError, match=r"lacks \['1\.2\.bias'\]"):
        built.load_original({key: value for key, value in weights.items() if key != "hw_mat.1.2.bias"})
    with pytest.raises(InputError, match=r"has \['2\.0\.bias', '2\.0\.weight', .* left over"):
        MLP(FeatureShape(4, 2, 4, cameras=2), (3, 5), hidden=[15]).load_original(weights)
    with pytest.raises(InputError, match=r"has \['encoder\.weight'\] left over"):
        built.load_original({**weights, "encoder.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"weight 0 of the original is \(15, 8\) but \(14, 8\) here"):
        MLP(source, (3, 5), hidden=[14]).load_original(weights)
    for option in ({"views": "joint"}, {"activation": "gelu"}, {"channels": 4}, {"rank": 2}, {"calibration": True}):
        grid = BEVGrid((0.0, 3.0), (0.0, 5.0), 1.0)
        with pytest.raises(InputError, match="leave views, rank"):
            MLP(source, grid, hidden=[15], **option).load_original(weights)


def test_per_camera_has_no_meaning_for_one_w_over_all() -> None:
    with pytest.raises(InputError, match="needs views=per_view"):
        MLP(RIG, (5, 3), views="joint").per_camera(torch.zeros(1, 2, 3, 2, 4))


@pytest.mark.parametrize("views", ["per_view", "joint"])
def test_low_rank_fits_the_best_approximation_of_w(views) -> None:
    torch.manual_seed(0)
    full = MLP(RIG, (5, 3), views=views, activation="none").double()
    low = MLP(RIG, (5, 3), views=views, activation="none", rank=4).double()
    u, s, v = torch.linalg.svd(full.layers[0].weight.detach(), full_matrices=False)
    low.load_state_dict(
        {
            "layers.0.inner.weight": v[:, :4],
            "layers.0.outer.weight": u[:, :, :4] * s[:, None, :4],
            "layers.0.outer.bias": full.layers[0].bias.detach(),
        }
    )
    missed = (full.layers[0].weight - low.layers[0].weight).square().sum((1, 2)).sqrt()
    torch.testing.assert_close(missed, s[:, 4:].square().sum(1).sqrt())
    x = doubles((2, 2, 3, 2, 4))
    full.layers[0].weight.data.copy_(low.layers[0].weight)
    torch.testing.assert_close(low(x), full(x))


def test_low_rank_is_of_the_layers_that_it_makes_smaller() -> None:
    mlp = MLP(FeatureShape(3, 8, 8), (10, 10), hidden=[6], rank=5)
    count = sum(p.numel() for p in mlp.parameters())
    assert count == (5 * (64 + 6) + 6) + (5 * (6 + 100) + 100)
    assert sum(p.numel() for p in MLP(SOURCE, (5, 3), hidden=[30], rank=7).parameters()) == (8 * 30 + 30) + 7 * 45 + 15


def test_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"rank=6 does not make W of 15×8 smaller; choose 1 to 5"):
        MLP(SOURCE, (5, 3), rank=6)
    MLP(SOURCE, (5, 3), rank=5)


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_large_products_are_those_of_float64(cameras, channels_last) -> None:
    torch.manual_seed(0)
    mlp = MLP(FeatureShape(128, 20, 20, cameras=cameras), (20, 20))
    x = torch.randn(2, cameras, 128, 20, 20)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    w, bias = (part.detach().double() for part in (mlp.layers[0].weight, mlp.layers[0].bias))
    expected = torch.einsum("not,bnct->bnco", w, x.double().flatten(3)) + bias[:, 0, None]
    expected = expected.relu().sum(1).unflatten(2, (20, 20))
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            torch.testing.assert_close(mlp(x).double(), expected, atol=1e-5, rtol=1e-5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mlp(x)
    assert counter.get_total_flops() == 2 * cameras * 2 * 128 * 400 * 400


def test_gradient_of_w_has_the_layout_of_w() -> None:
    mlp = MLP(RIG, (5, 3), hidden=[6])
    mlp(doubles((2, 2, 3, 2, 4)).float()).sum().backward()
    gradients = torch.autograd.grad(mlp(doubles((2, 2, 3, 2, 4)).float()).sum(), [la.weight for la in mlp.layers])
    assert all(gradient.is_contiguous() for gradient in gradients)


@pytest.mark.parametrize("options", [{}, {"views": "joint"}, {"calibration": True}, {"rank": 2, "hidden": [5]}])
def test_values_of_a_dropped_camera_are_not_read(options, rig) -> None:
    torch.manual_seed(0)
    mlp = MLP(FeatureShape(3, 4, 6, cameras=2, stride=8), GRID, **options)
    rigs: Cameras = replace(rig(2, 2), camera_mask=torch.tensor([[True, False], [True, True]]))
    x = torch.randn(2, 2, 3, 4, 6)
    expected = mlp(x, rigs)
    x[0, 1] = torch.nan
    rigs.ego_from_cam[0, 1] = rigs.intrinsics[0, 1] = torch.nan
    bev = mlp(x, rigs)
    torch.testing.assert_close(bev, expected)
    bev.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mlp.parameters())
    if not mlp.joint:
        torch.testing.assert_close(mlp.per_camera(x, rigs).sum(1), bev)
        assert (mlp.per_camera(x, rigs)[0, 1] == 0).all()


GRID = BEVGrid((2.0, 8.0), (-3.0, 3.0), 1.0)
CALIBRATED = FeatureShape(3, 4, 6, cameras=2, stride=8, offset_px=3.5)


def calibrated(**options) -> MLP:
    torch.manual_seed(0)
    mlp = MLP(CALIBRATED, GRID, calibration=True, **options).double()
    torch.nn.init.normal_(mlp.rectify.outer.weight, std=0.05)
    torch.nn.init.normal_(mlp.rectify.inner.bias)
    return mlp


def test_calibrated_mapping_starts_as_the_plain_one(rig) -> None:
    torch.manual_seed(0)
    plain = MLP(CALIBRATED, GRID)
    torch.manual_seed(0)
    mlp, x = MLP(CALIBRATED, GRID, calibration=True), torch.randn(2, 2, 3, 4, 6)
    torch.testing.assert_close(mlp(x, rig(2, 2)), plain(x))
    with pytest.raises(InputError, match=r"call it as reshaper\(features, cameras\)"):
        mlp(x)


@pytest.mark.parametrize("views", ["per_view", "joint"])
def test_calibrated_mapping_is_its_formula(views, rig) -> None:
    mlp, rigs, x = calibrated(views=views, activation="none"), rig(2, 2), doubles((2, 2, 3, 4, 6))
    inner, outer = mlp.rectify.inner, mlp.rectify.outer
    (weight, bias) = arrays(mlp)[0]
    expected = np.zeros((2, 3, 36)) + (bias[0] if views == "joint" else bias.sum(0))
    for sample in range(2):
        for camera in range(2):
            k, pose = (
                rigs.intrinsics[sample, camera].double().numpy(),
                rigs.ego_from_cam[sample, camera].double().numpy(),
            )
            numbers = [k[0, 0] / 48, k[0, 1] / 48, (k[0, 2] + 0.5) / 48, k[1, 1] / 32, (k[1, 2] + 0.5) / 32]
            numbers += [pose[row, column] for row in range(3) for column in range(2)] + list(pose[:3, 3])
            waves = [number * 2.0**octave for number in numbers for octave in range(5)]
            z = np.array(numbers + [math.sin(a) for a in waves] + [math.cos(a) for a in waves])
            z = inner.weight[camera].detach().numpy() @ z + inner.bias[camera, 0].detach().numpy()
            z = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in z])
            z = outer.weight[camera].detach().numpy() @ z + outer.bias[camera, 0].detach().numpy()
            rows, columns = np.eye(4) + z[:16].reshape(4, 4), np.eye(6) + z[16:].reshape(6, 6)
            mapping = (weight[0][:, 24 * camera :][:, :24] if views == "joint" else weight[camera]) @ np.kron(
                rows, columns
            )
            expected[sample] += x[sample, camera].numpy().reshape(3, 24) @ mapping.T
    # the rig is float32
    np.testing.assert_allclose(mlp(x, rigs).detach().numpy().reshape(2, 3, 36), expected, atol=1e-5)


def test_calibration_is_the_same_after_a_resize(rig) -> None:
    mlp, rigs, x = calibrated(), rig(1, 2), doubles((1, 2, 3, 4, 6))
    torch.testing.assert_close(mlp(x, rigs.resized((40, 54))), mlp(x, rigs), atol=1e-5, rtol=1e-5)
    turned = replace(rigs, ego_from_cam=rigs.ego_from_cam.flip(1))
    assert not torch.allclose(mlp(x, turned), mlp(x, rigs), atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"views": "joint"}, {"rank": 2, "hidden": [5]}])
def test_calibrated_gradients_are_those_of_finite_differences(options, rig) -> None:
    mlp, rigs = calibrated(**options), rig(1, 2)
    names = [name for name, _ in mlp.named_parameters()]

    def run(x, *parameters):
        return functional_call(mlp, dict(zip(names, parameters, strict=True)), (x, rigs))

    x = doubles((1, 2, 3, 4, 6)).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *mlp.parameters()), fast_mode=True)


def test_calibrated_mapping_at_lower_precision(rig) -> None:
    mlp, rigs, x = calibrated(), rig(2, 2), doubles((2, 2, 3, 4, 6))
    exact = mlp(x, rigs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mlp.float()(x.float(), rigs)
    torch.testing.assert_close(mixed.double(), exact, atol=0.05, rtol=0.05)
    half = mlp.bfloat16()(x.bfloat16(), rigs)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, atol=0.05, rtol=0.05)


def test_calibrated_mapping_is_exported_for_any_batch(rig) -> None:
    class FromTensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = calibrated().float()

        def forward(self, x, intrinsics, ego_from_cam):
            return self.mlp(x, Cameras(intrinsics, ego_from_cam, (32, 48)))

    jaxtyping.config.update("jaxtyping_disable", True)  # shape annotations would pin the batch
    try:
        module, rigs = FromTensors().eval(), rig(3, 2)
        inputs = (torch.randn(3, 2, 3, 4, 6), rigs.intrinsics, rigs.ego_from_cam)
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        program = torch.export.export(module, inputs, dynamic_shapes=(batch, batch, batch), strict=False)
        cut = tuple(value[:2] for value in inputs)
        torch.testing.assert_close(program.module()(*cut), module(*cut), atol=1e-5, rtol=1e-5)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_calibrated_mapping_learns_to_follow_the_camera() -> None:
    """IPM under changing pitch and height is learned for unseen poses; without calibration it is not."""
    source = FeatureShape(4, 6, 8, stride=8, offset_px=3.5)
    ipm, draw = IPM(source, GRID), torch.Generator().manual_seed(0)

    def batch(size: int) -> tuple[torch.Tensor, Cameras]:
        pitch = math.radians(20) + math.radians(4) * torch.randn(size, generator=draw)
        pose = torch.eye(4).repeat(size, 1, 1, 1)
        sin, cos, zero = pitch.sin(), pitch.cos(), torch.zeros(size)
        axes = [torch.stack(axis, -1) for axis in ((zero, zero - 1, zero), (-sin, zero, -cos), (cos, zero, -sin))]
        pose[:, 0, :3, :3] = torch.stack(axes, -1)
        pose[:, 0, 2, 3] = 1.5 + 0.2 * torch.randn(size, generator=draw)
        intrinsics = torch.tensor([[32.0, 0, 31.5], [0, 32, 23.5], [0, 0, 1]]).expand(size, 1, 3, 3)
        return torch.randn(size, 1, 4, 6, 8, generator=draw), Cameras(intrinsics, pose, (48, 64))

    x, rigs = batch(1024)
    truth = ipm(x, rigs)
    tried, unseen = torch.arange(1024).split([896, 128])

    def missed(mlp: MLP, some: torch.Tensor) -> torch.Tensor:
        bev = mlp(x[some], Cameras(rigs.intrinsics[some], rigs.ego_from_cam[some], rigs.image_size))
        return (bev - truth[some]).square().mean() / truth.square().mean()

    left = []
    for calibration in (False, True):
        torch.manual_seed(0)
        mlp = MLP(source, GRID, activation="none", calibration=calibration)
        optimizer = torch.optim.Adam(mlp.parameters(), 5e-3)
        for _ in range(100):
            loss = missed(mlp, tried[torch.randint(len(tried), (16,))])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left.append(missed(mlp, unseen).item())
    assert left[0] > 0.15
    assert left[1] < left[0] / 2
