"""Effective weights, against loops over outputs, closed forms, and bilinear weights from projections one by one."""

from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bevreshape.reshapers as package
from bevreshape.analysis.costs import ring
from bevreshape.analysis.effective_weights import (
    attention_held,
    attention_weights,
    cell_raster,
    jacobian_norm,
    mlp_weights,
)
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import (
    IPM,
    MLP,
    Bilinear,
    CrossAttention,
    CrossViewAttention,
    FeatureShape,
    FixedRig,
    GeometricReshaper,
    LatentAttention,
    Pool,
    Reshaper,
    SelfAttention,
    StridedConv,
)

RESHAPERS: list[type[Reshaper]] = [
    member
    for name in package.__all__
    if issubclass(member := getattr(package, name), Reshaper) and member not in (Reshaper, GeometricReshaper, FixedRig)
]

R = TypeVar("R", bound=Reshaper)

IMAGE_SIZE = (32, 48)
GRID = BEVGrid((0.0, 3.0), (-1.0, 1.0), 1.0)  # 3×2
SOURCE = FeatureShape(4, 2, 3, cameras=2, stride=16, offset_px=7.5)


def cameras(batch: int, count: int, reach_m: float = 4.0) -> Cameras:
    rig = ring(count, IMAGE_SIZE, batch, torch.device("cpu"), reach_m)
    return replace(rig, intrinsics=rig.intrinsics.double(), ego_from_cam=rig.ego_from_cam.double())


def doubles(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(cls: type[R], source: FeatureShape = SOURCE, grid=GRID, **options) -> R:
    torch.manual_seed(0)
    return cls(source, grid, **options).double()


def jacobian(bev: Tensor, x: Tensor, sample: int, cell: tuple[int, int]) -> Tensor:
    """Return ∂O_q/∂X of one sample, (d, n, c, h, w), one output at a time, from the whole batch."""
    outputs = bev[sample, :, *cell]
    return torch.stack([torch.autograd.grad(out, x, retain_graph=True)[0][sample] for out in outputs])


@pytest.mark.parametrize("cls", RESHAPERS, ids=lambda cls: cls.__name__)
def test_jacobian_norm_of_every_reshaper_equals_loops(cls: type[Reshaper]) -> None:
    narrow = {"dim": 8, "heads": 2, "latents": 4} if cls is LatentAttention else {}  # by far the slowest
    reshaper, x = build(cls, **narrow).eval(), doubles(2, 2, 4, 2, 3)
    rig = replace(cameras(2, 2), camera_mask=torch.tensor([[True, True], [True, False]]))
    cells = [(0, 0), (1, 1), (2, 0)]
    found = jacobian_norm(reshaper, x, rig, cells=cells, copies=2)
    assert found.shape == (2, 3, 2, 2, 3)
    leaf = x.clone().requires_grad_()
    bev = reshaper(leaf, rig)
    for sample in range(2):
        for number, cell in enumerate(cells[: 2 if sample else 1]):  # one alone, and one that is a second copy
            expected = jacobian(bev, leaf, sample, cell).square().sum((0, 2)).sqrt()
            torch.testing.assert_close(found[sample, number], expected, atol=1e-12, rtol=1e-9)
    assert (found[0] > 0).any()
    assert (found[1, :, 1] == 0).all()


@pytest.mark.parametrize("options", [{"hidden": [5], "activation": "gelu"}, {"activation": "tanh", "views": "joint"}])
def test_jacobian_norm_equals_finite_differences(options) -> None:
    reshaper, x = build(MLP, **options), doubles(1, 2, 4, 2, 3)
    with torch.no_grad():
        square = torch.zeros(6, 2, 2, 3, dtype=torch.float64)
        for n, c, i, j in np.ndindex(2, 4, 2, 3):
            step = torch.zeros_like(x)
            step[0, n, c, i, j] = 1e-5
            change = (reshaper(x + step) - reshaper(x - step)) / 2e-5
            square[:, n, i, j] += change[0].square().sum(0).flatten()
    torch.testing.assert_close(jacobian_norm(reshaper, x)[0], square.sqrt(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("scale", [0, 1])
def test_tokens_of_several_scales(scale: int) -> None:
    sources = [SOURCE, FeatureShape(3, 1, 2, cameras=2, stride=32, offset_px=15.5)]
    torch.manual_seed(0)
    reshaper = CrossViewAttention(sources, GRID, dim=8, heads=2, dim_head=4).double().eval()
    given, rig = [doubles(1, 2, 4, 2, 3), doubles(1, 2, 3, 1, 2)], cameras(1, 2)
    found = jacobian_norm(reshaper, given, rig, cells=[(1, 1)], scale=scale)
    leaves = [x.clone().requires_grad_() for x in given]
    expected = jacobian(reshaper(leaves, rig), leaves[scale], 0, (1, 1)).square().sum((0, 2)).sqrt()
    torch.testing.assert_close(found[0, 0], expected, atol=1e-12, rtol=1e-9)


class Own(nn.Module):
    """A user's module: not a Reshaper, one camera, features of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features).square()


def test_module_of_a_third_party() -> None:
    torch.manual_seed(0)
    own, x = Own(), torch.randn(2, 2, 3, 4)
    found = jacobian_norm(own, x)
    assert found.shape == (2, 12, 1, 3, 4)
    weight, bias = own.conv.weight.detach()[:, :, 0, 0], own.conv.bias.detach()
    out = torch.einsum("dc,bchw->bdhw", weight, x) + bias[:, None, None]
    strength = (2 * out).square().mul(weight.square().sum(1)[:, None, None]).sum(1).sqrt().flatten(1)  # each on itself
    torch.testing.assert_close(found.flatten(2), torch.diag_embed(strength))


def mlp(**options) -> MLP:
    return build(MLP, **{"activation": "none", **options})


@pytest.mark.parametrize("views", ["per_view", "joint"])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_jacobian_of_one_layer_is_its_w(views: str, rank: int | None) -> None:
    """√c·|W_qk| before the activation."""
    reshaper, x = mlp(views=views, rank=rank), doubles(2, 2, 4, 2, 3)
    matrix = reshaper.layers[0].weight.detach().numpy()  # 2 6 6, or 1 6 12
    expected = np.zeros((6, 2, 2, 3))
    for q, n, i, j in np.ndindex(6, 2, 2, 3):
        expected[q, n, i, j] = matrix[n, q, 3 * i + j] if views == "per_view" else matrix[0, q, 6 * n + 3 * i + j]
    np.testing.assert_array_equal(mlp_weights(reshaper).numpy(), expected)
    np.testing.assert_array_equal(mlp_weights(reshaper, cells=[(2, 1), (0, 1)]).numpy(), expected[[5, 1]])
    found = jacobian_norm(reshaper, x).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(2 * np.abs(expected), found.shape), rtol=1e-12)


def test_a_projection_of_channels_scales_w() -> None:
    reshaper, x = mlp(channels=5), doubles(1, 2, 4, 2, 3)
    projection = reshaper.project.weight.detach().norm()
    torch.testing.assert_close(
        jacobian_norm(reshaper, x)[0], projection * mlp_weights(reshaper).abs(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("options", [{"hidden": [5]}, {"calibration": True}])
def test_mlp_without_a_single_w_is_refused(options) -> None:
    with pytest.raises(InputError, match="take jacobian_norm"):
        mlp_weights(build(MLP, **options))


def heads_of(reshaper: CrossAttention, x: np.ndarray, there: list[bool]) -> np.ndarray:
    """Return A of one sample, (a, q, n·t), one score at a time, for sinusoidal encodings or none."""
    a, attention_only = reshaper.attention.heads, reshaper.attention_only
    norm = (lambda rows: rows) if attention_only else standardised
    query = norm(reshaper.query.detach().numpy())
    keys = norm(x)
    if reshaper.encode_queries.kind == "sinusoidal":
        query = query + reshaper.encode_queries.wave.numpy()
        of_camera = reshaper.encode_tokens.learned.detach().numpy()[:, 0]
        keys = keys + np.concatenate([reshaper.encode_tokens.wave.numpy() + vector for vector in of_camera])
    q = query @ reshaper.attention.to_q.weight.detach().numpy().T
    k = keys @ reshaper.attention.to_k.weight.detach().numpy().T
    d = q.shape[1] // a
    out = np.zeros((a, len(q), len(k)))
    for head in range(a):
        part = slice(head * d, (head + 1) * d)
        for i in range(len(q)):
            scores = np.array([q[i, part] @ k[j, part] for j in range(len(k))])
            if reshaper.attention.kernel == "softmax":
                scores = np.exp(scores / np.sqrt(d))
                out[head, i] = scores * there / (scores * there).sum()
            else:
                out[head, i] = scores * there / sum(there)
    return out


def standardised(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)


def tokens_of(x: Tensor) -> np.ndarray:
    """Rearrange (n, c, h, w) → (n·h·w, c), one token at a time."""
    n, _, h, w = x.shape
    return np.array([x[camera, :, i, j].numpy() for camera in range(n) for i in range(h) for j in range(w)])


@pytest.mark.parametrize("kernel", ["softmax", "linear"])
@pytest.mark.parametrize("encoding", ["none", "sinusoidal"])
@pytest.mark.parametrize(("attention_only", "normalised"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("mask", [None, [True, False]])
def test_jacobian_of_cross_attention_with_fixed_a_equals_its_matrices(
    kernel: str, encoding: str, attention_only: bool, normalised: bool, mask: list[bool] | None
) -> None:
    """The norm is ‖Σ_heads A_qk·Wv·Wo‖_F, times the derivative of the norm if values are normalised."""
    options = {"token_encoding": encoding, "query_encoding": encoding, "mlp_ratio": 0, "normalise_values": normalised}
    reshaper = build(CrossAttention, dim=8, heads=2, kernel=kernel, attention_only=attention_only, **options)
    x, rig = (
        doubles(2, 2, 4, 2, 3),
        replace(cameras(2, 2), camera_mask=None if mask is None else torch.tensor([mask, mask])),
    )
    cells = [(0, 1), (2, 1)]
    weights = attention_weights(reshaper, x, rig, cells=cells)
    assert weights.shape == (2, 2, 2, 2, 2, 3)
    with attention_held(reshaper):
        held = jacobian_norm(reshaper, x, rig, cells=cells)
    free = jacobian_norm(reshaper, x, rig, cells=cells)
    assert not torch.allclose(held, free, rtol=1e-2)  # A depends on X
    w_v = reshaper.attention.to_v.weight.detach().numpy().T.reshape(4, 2, 4)  # c a d
    w_o = np.eye(8) if attention_only else reshaper.out.weight.detach().numpy().T
    w_o = w_o.reshape(2, 4, 8)
    for sample in range(2):
        tokens = tokens_of(x[sample])
        matrix = heads_of(reshaper, tokens, [mask is None or mask[n] for n in range(2) for _ in range(6)])
        np.testing.assert_allclose(weights[sample].reshape(2, 2, 12).numpy(), matrix[:, [1, 5]], atol=1e-12)
        for number, q in enumerate([1, 5]):
            for k in range(12):
                block = sum(matrix[head, q, k] * w_v[:, head] @ w_o[head] for head in range(2))  # c d
                if normalised:
                    unit, sigma = standardised(tokens[k : k + 1])[0], np.sqrt(tokens[k].var() + 1e-5)
                    block = (np.eye(4) - 1 / 4 - np.outer(unit, unit) / 4) / sigma @ block
                expected = np.linalg.norm(block)
                assert held[sample, number].flatten()[k].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kernel", ["softmax", "linear"])
def test_rotary_matrices_times_values_are_the_output(kernel: str) -> None:
    reshaper = build(
        CrossAttention,
        dim=8,
        heads=2,
        kernel=kernel,
        token_encoding="rotary",
        query_encoding="rotary",
        attention_only=True,
    )
    x = doubles(2, 2, 4, 2, 3)
    weights = attention_weights(reshaper, x)
    values = torch.einsum("bnchw,dc->bnhwd", x, reshaper.attention.to_v.weight.detach()).unflatten(-1, (2, 4))
    expected = torch.einsum("baqnhw,bnhwad->badq", weights, values).reshape(2, 8, 3, 2)
    torch.testing.assert_close(reshaper(x).detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("encoding", ["none", "sinusoidal", "rotary"])
def test_matrices_of_self_attention_are_resized_and_averaged_like_its_output(encoding: str) -> None:
    reshaper, x = (
        build(SelfAttention, dim=8, heads=2, token_encoding=encoding, attention_only=True),
        doubles(2, 2, 4, 2, 3),
    )
    rig = replace(cameras(2, 2), camera_mask=torch.tensor([[True, True], [False, True]]))
    weights = attention_weights(reshaper, x, rig)
    values = torch.einsum("bnchw,dc->bnhwd", x, reshaper.attention.to_v.weight.detach()).unflatten(-1, (2, 4))
    expected = torch.einsum("baqnhw,bnhwad->badq", weights, values).reshape(2, 8, 3, 2)
    torch.testing.assert_close(reshaper(x, rig).detach(), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(weights.sum((3, 4, 5)), torch.ones(2, 2, 6, dtype=torch.float64))
    w_v = reshaper.attention.to_v.weight.detach().unflatten(0, (2, 4))  # a d c
    with attention_held(reshaper):
        held = jacobian_norm(reshaper, x, rig)
    expected = torch.einsum("baqnhw,adc->bqnhwadc", weights, w_v).flatten(5).norm(dim=-1)
    torch.testing.assert_close(held, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("scale", [0, 1])
def test_matrices_of_cross_view_attention_times_values_are_the_output(scale: int) -> None:
    sources = [SOURCE, FeatureShape(3, 1, 2, cameras=2, stride=32, offset_px=15.5)]
    torch.manual_seed(0)
    reshaper = CrossViewAttention(sources, GRID, dim=8, heads=2, dim_head=4).double().eval()
    given = [doubles(2, 2, 4, 2, 3), doubles(2, 2, 3, 1, 2)]
    rig = replace(cameras(2, 2), camera_mask=torch.tensor([[True, True], [False, False]]))
    view, seen = reshaper.views[scale], {}
    view.project.register_forward_pre_hook(lambda _, found: seen.update(found=found[0]))
    view.to_v.register_forward_hook(lambda *_: pytest.fail("to_v is not called"))
    tokens = view._tokens
    view._tokens = lambda *given: seen.setdefault("tokens", tokens(*given))
    weights = reshaper.attention_weights(given, rig, scale=scale).detach()
    values = seen["tokens"][1].unflatten(-1, (2, 4))  # b n t a e
    expected = torch.einsum("baqnt,bntae->bqae", weights.flatten(4), values).flatten(2)
    torch.testing.assert_close(seen["found"][0], expected[0], atol=1e-12, rtol=0)
    assert (weights[1] == 0).all()
    torch.testing.assert_close(weights[0].sum((2, 3, 4)), torch.ones(2, 6, dtype=torch.float64))
    if scale == 0:
        found = attention_weights(reshaper, given, rig, cells=[(1, 0)])
        torch.testing.assert_close(found, weights[:, :, 2:3], atol=1e-15, rtol=0)


@pytest.mark.parametrize(
    ("cls", "kernel"), [(CrossAttention, "softmax"), (CrossAttention, "linear"), (SelfAttention, "")]
)
def test_attention_weights_without_cameras_are_zero(cls: type[Reshaper], kernel: str) -> None:
    options = {"kernel": kernel} if kernel else {}
    rig = replace(cameras(2, 2), camera_mask=torch.tensor([[True, False], [False, False]]))
    weights = attention_weights(build(cls, dim=8, **options), doubles(2, 2, 4, 2, 3), rig)
    assert (weights[1] == 0).all()
    assert (weights[0, :, :, 1] == 0).all()
    assert (weights[0, :, :, 0] != 0).any()


def test_reshapers_without_attention_are_refused() -> None:
    with pytest.raises(InputError, match="MLP offers no attention matrix; take jacobian_norm"):
        attention_weights(build(MLP), doubles(1, 2, 4, 2, 3))
    with pytest.raises(InputError, match="MLP holds no"), attention_held(build(MLP)):
        pass
    with pytest.raises(InputError, match="2 × 4 × 2×3"):
        attention_weights(build(CrossAttention, dim=8), doubles(1, 2, 4, 3, 3))


@pytest.mark.parametrize("probes", [4, 100])
def test_probes_are_unbiased_with_the_stated_variance(probes: int) -> None:
    reshaper, x, cells = build(CrossAttention, dim=8, heads=2), doubles(1, 2, 4, 2, 3), [(0, 0), (1, 1), (2, 0)]
    leaf = x.clone().requires_grad_()
    blocks = torch.stack([jacobian(reshaper(leaf), leaf, 0, cell) for cell in cells])  # q d n c h w
    gram = torch.einsum("qinchw,qjnchw->qnhwij", blocks, blocks)
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    variance = 2 * (gram.square().sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).square().sum(-1)) / probes
    found = torch.cat(
        [jacobian_norm(reshaper, x, cells=cells, probes=probes, seed=seed, copies=2) for seed in range(8)]
    )
    z = (found.square() - square) / variance.sqrt()  # 8 · 36; those of one cell and seed are correlated
    assert abs(z.mean().item()) < 0.5
    assert 0.5 < z.square().mean().item() < 1.5


def test_probes_depend_on_the_seed_alone() -> None:
    reshaper, x = build(CrossAttention, dim=8), doubles(1, 2, 4, 2, 3)
    first = jacobian_norm(reshaper, x, probes=3, copies=2)
    torch.manual_seed(7)
    torch.testing.assert_close(jacobian_norm(reshaper, x.expand(2, -1, -1, -1, -1), probes=3)[1], first[0])
    assert not torch.allclose(jacobian_norm(reshaper, x, probes=3, seed=1), first, rtol=1e-2)


def bilinear_weights(rig: Cameras, source: FeatureShape, grid: BEVGrid, heights_m: list[float]) -> np.ndarray:
    """Return (q, n, h, w): the four taps of every point above a cell in every camera that sees it, averaged."""
    h, w = source.height, source.width
    out = np.zeros((grid.rows * grid.cols, source.cameras, h, w))
    for q in range(len(out)):
        ahead = grid.forward_m[1] - (q // grid.cols + 0.5) * grid.cell_m
        left = grid.left_m[1] - (q % grid.cols + 0.5) * grid.cell_m
        for z in heights_m:
            seen = []
            for n in range(source.cameras):
                x, y, depth, _ = np.linalg.inv(rig.ego_from_cam[0, n].numpy()) @ [ahead, left, z, 1.0]
                u, v, _ = rig.intrinsics[0, n].numpy() @ [x / depth, y / depth, 1.0]
                if depth > 0 and -0.5 <= u < IMAGE_SIZE[1] - 0.5 and -0.5 <= v < IMAGE_SIZE[0] - 0.5:
                    seen.append((n, (u - source.offset_px) / source.stride, (v - source.offset_px) / source.stride))
            for n, j, i in seen:
                j, i = np.clip(j, 0, w - 1), np.clip(i, 0, h - 1)
                near = np.outer(np.maximum(0, 1 - abs(np.arange(h) - i)), np.maximum(0, 1 - abs(np.arange(w) - j)))
                out[q, n] += near / len(seen)
    return out


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", ["ipm", "bilinear"])
def test_weights_of_projecting_reshapers_are_bilinear(count: int, fixed: bool, name: str) -> None:
    source, grid = FeatureShape(4, 4, 6, count, stride=8, offset_px=3.5), BEVGrid((-3.0, 4.0), (-3.0, 3.0), 0.5)
    rig = cameras(1, count, reach_m=20.0)
    reshaper: Reshaper = build(IPM, source, grid)
    heights = [0.0]
    if name == "bilinear":
        reshaper, heights = build(Bilinear, source, grid, heights=2, height_m=(0.0, 0.4), compress=False), [0.1, 0.3]
    if fixed:
        reshaper = FixedRig(reshaper.eval(), rig)
    found = jacobian_norm(reshaper, doubles(1, count, 4, 4, 6), None if fixed else rig)[0]
    expected = 2 * bilinear_weights(rig, source, grid, heights)  # √c = 2
    assert ((expected > 0).sum((1, 2, 3)) > 4).any() == (count == 6 or name == "bilinear")  # some are seen twice
    assert (expected.sum((1, 2, 3)) == 0).any()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_weights_of_pool_are_its_bins() -> None:
    source = FeatureShape(4, 4, 6, cameras=2)
    found = jacobian_norm(build(Pool, source, (2, 3)), doubles(1, 2, 4, 4, 6))[0]
    for q, n, i, j in np.ndindex(6, 2, 4, 6):
        inside = (i // 2, j // 2) == (q // 3, q % 3)
        assert found[q, n, i, j].item() == pytest.approx(2 / 4 / 2 if inside else 0.0)  # √c, 4 tokens, 2 cameras


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_gradients_are_restored(training: bool) -> None:
    reshaper = build(CrossViewAttention).train(training)
    reshaper.middle.train(not training)
    modes = [module.training for module in reshaper.modules()]
    state = {name: value.clone() for name, value in reshaper.state_dict().items()}
    x, rig = doubles(2, 2, 4, 2, 3), cameras(2, 2)
    with torch.inference_mode():
        first = jacobian_norm(reshaper, x.clone(), rig, cells=[(0, 0)], probes=2)
        attention_weights(reshaper, x.clone(), rig)
    with torch.no_grad():
        assert torch.equal(jacobian_norm(reshaper, x, rig, cells=[(0, 0)], probes=2), first)
    with pytest.raises(InputError, match="outside"):
        jacobian_norm(reshaper, x, rig, cells=[(9, 9)])
    attention = build(CrossAttention, dim=8)
    before = attention(x)
    with attention_held(attention):
        assert torch.equal(attention(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in attention.modules())
    torch.testing.assert_close(jacobian_norm(reshaper, x, rig, cells=[(0, 0)], probes=2), first)
    assert not first.requires_grad
    assert [module.training for module in reshaper.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in reshaper.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in reshaper.parameters())
    assert x.grad is None
    assert not x.requires_grad


def test_random_state_does_not_change() -> None:
    reshaper, x = build(StridedConv), doubles(1, 2, 4, 2, 3)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    jacobian_norm(reshaper, x, probes=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_precisions() -> None:
    reshaper, x = build(CrossAttention, dim=8), doubles(1, 2, 4, 2, 3)
    exact = jacobian_norm(reshaper, x)
    single = jacobian_norm(reshaper.float(), x.float())
    torch.testing.assert_close(single, exact.float(), rtol=1e-3, atol=1e-5)
    half = jacobian_norm(reshaper.bfloat16(), x.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact.float(), rtol=0.1, atol=0.02)


def test_cell_raster_is_even() -> None:
    assert cell_raster((6, 4), 2) == [(1, 1), (1, 3), (4, 1), (4, 3)]
    assert cell_raster((5, 5), 5) == [(i, j) for i in range(5) for j in range(5)]
    assert cell_raster((2, 9), 3) == [(i, j) for i in range(2) for j in (1, 4, 7)]
    steps = np.diff(sorted({row for row, _ in cell_raster((200, 200), 20)}))
    assert (steps == 10).all()
    with pytest.raises(InputError, match="k=0 of 6×4"):
        cell_raster((6, 4), 0)


class Detached(nn.Module):
    """A module that detaches its output."""

    def forward(self, features: Tensor) -> Tensor:
        return features.detach()


def test_bad_input_is_refused() -> None:
    reshaper, x = build(MLP), doubles(1, 2, 4, 2, 3)
    for cell in [(3, 0), (0, 2), (-1, 0)]:
        with pytest.raises(InputError, match=r"outside the map of 3×2"):
            jacobian_norm(reshaper, x, cells=[(0, 0), cell])
    with pytest.raises(InputError, match="there is none"):
        jacobian_norm(reshaper, x, cells=[])
    with pytest.raises(InputError, match="no scale 1 of 1"):
        jacobian_norm(reshaper, x, scale=1)
    with pytest.raises(InputError, match="probes=0 and copies=16"):
        jacobian_norm(reshaper, x, probes=0)
    with pytest.raises(InputError, match="probes=None and copies=0"):
        jacobian_norm(reshaper, x, copies=0)
    with pytest.raises(InputError, match="of 1 samples but the calibration is of 2"):
        jacobian_norm(reshaper, x, cameras(2, 2))
    with pytest.raises(InputError, match=r"built for 2 × 4 × 2×3"):
        jacobian_norm(reshaper, x[:, :1])
    with pytest.raises(InputError, match="no gradient passes through Detached"):
        jacobian_norm(Detached(), torch.zeros(1, 2, 3, 4))
    with pytest.raises(InputError, match=r"Flatten gives \(16, 24\)"):
        jacobian_norm(nn.Flatten(), torch.zeros(1, 2, 3, 4))
