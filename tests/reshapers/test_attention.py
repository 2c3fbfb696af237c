"""Cross- and self-attention equal their equations, and depend on order as the article claims."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from rounding import rounding
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import CrossAttention, FeatureShape, SelfAttention
from bevreshape.reshapers.attention import Attention

SOURCE = FeatureShape(8, 3, 4)
PLAIN = {"attention_only": True, "token_encoding": "none", "query_encoding": "none"}


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def cross(source: FeatureShape = SOURCE, **options) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(source, (5, 2), **{"dim": 12, "heads": 3, **options}).double()


def projections(attention: Attention) -> list[np.ndarray]:
    """Return Wq, Wk and Wv, which multiply from the right."""
    return [layer.weight.detach().numpy().T for layer in (attention.to_q, attention.to_k, attention.to_v)]


def loops(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Compute softmax attention, one query and one head at a time."""
    out = np.zeros((len(q), v.shape[1]))
    d = q.shape[1] // heads
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        for i in range(len(q)):
            scores = np.array([q[i, part] @ k[j, part] / np.sqrt(d) for j in range(len(k))])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out[i, part] = sum(weight * row for weight, row in zip(weights, v[:, part], strict=True))
    return out


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("cameras", [1, 2])
def test_cross_attention_equals_the_equation(heads: int, cameras: int) -> None:
    reshaper, x = cross(replace(SOURCE, cameras=cameras), heads=heads, **PLAIN), doubles(2, cameras, 8, 3, 4)
    w_q, w_k, w_v = projections(reshaper.attention)
    bev = reshaper(x).detach().numpy()
    for sample in range(2):
        tokens = np.array([x[sample, n, :, i, j].numpy() for n in range(cameras) for i in range(3) for j in range(4)])
        expected = loops(reshaper.query.detach().numpy() @ w_q, tokens @ w_k, tokens @ w_v, heads)
        np.testing.assert_allclose(bev[sample].transpose(1, 2, 0).reshape(10, 12), expected, atol=1e-12)


@pytest.mark.parametrize("divide", [False, True])
def test_linear_kernel_equals_the_articles_identity(divide: bool) -> None:
    reshaper = cross(heads=1, kernel="linear", divide_by_tokens=divide, **PLAIN)
    x = doubles(2, 8, 3, 4)
    w_q, w_k, w_v = projections(reshaper.attention)
    tokens = x.numpy().reshape(2, 8, 12).transpose(0, 2, 1)  # X
    expected = reshaper.query.detach().numpy() @ w_q @ w_k.T @ (tokens.transpose(0, 2, 1) @ tokens) @ w_v
    expected /= 12 if divide else 1
    np.testing.assert_allclose(
        reshaper(x).detach().numpy().transpose(0, 2, 3, 1).reshape(2, 10, 12), expected, atol=1e-12
    )


def test_linear_kernel_costs_no_product_of_queries_and_tokens() -> None:
    tokens, queries, dim = 128, 96, 16
    attention = Attention(dim, dim, dim, heads=4, kernel="linear")
    x = torch.zeros(1, tokens, dim)
    with FlopCounterMode(display=False) as counter:
        attention(torch.zeros(1, queries, dim), x, x)
    assert counter.get_total_flops() == 2 * dim * dim * (queries + 2 * tokens) + 2 * dim * dim // 4 * (tokens + queries)


@pytest.mark.parametrize("kernel", ["softmax", "linear"])
@pytest.mark.parametrize("attention_only", [True, False])
def test_cross_attention_is_invariant_to_the_order_of_tokens(kernel: str, attention_only: bool) -> None:
    options = {"kernel": kernel, "attention_only": attention_only}
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    x = doubles(2, 8, 12)
    shuffled = x[..., order].unflatten(-1, (3, 4))
    without = cross(token_encoding="none", **options)
    torch.testing.assert_close(without(shuffled), without(x.unflatten(-1, (3, 4))), atol=1e-12, rtol=0)
    learned = cross(token_encoding="learned", **options)
    before = learned(x.unflatten(-1, (3, 4)))
    assert not torch.allclose(learned(shuffled), before, atol=1e-3)
    with torch.no_grad():
        learned.encode_tokens.learned.copy_(learned.encode_tokens.learned[:, order])
    torch.testing.assert_close(learned(shuffled), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", ["softmax", "linear"])
def test_dropped_cameras_have_no_tokens(kernel: str, rig) -> None:
    source = replace(SOURCE, cameras=3)
    three, one = (cross(s, kernel=kernel, token_encoding="none") for s in (source, SOURCE))
    one.load_state_dict(three.state_dict())
    x = doubles(1, 3, 8, 3, 4)
    cameras = replace(rig(1, 3), camera_mask=torch.tensor([[False, True, False]]))
    torch.testing.assert_close(three(x, cameras), one(x[:, 1:2]), atol=1e-12, rtol=0)


FACING = FeatureShape(8, 4, 6, cameras=2, stride=8, offset_px=3.5)
CELLS = BEVGrid((0.0, 5.0), (-1.0, 1.0), 1.0)


def given_rays(**options) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(FACING, CELLS, **{"dim": 12, "heads": 3, "calibration": True, **options}).double()


def test_keys_hold_the_direction_of_every_ray_and_values_do_not(rig) -> None:
    reshaper, x, cameras = given_rays(**PLAIN), doubles(2, 2, 8, 4, 6), rig(2, 2)
    w_q, w_k, w_v = projections(reshaper.attention)
    weight = reshaper.encode_rays.weight.detach().numpy()
    bev = reshaper(x, cameras).detach().numpy()
    for sample in range(2):
        tokens, directions = [], []
        for n, row, col in np.ndindex(2, 4, 6):
            tokens.append(x[sample, n, :, row, col].numpy())
            pixel = np.array([8 * col + 3.5, 8 * row + 3.5, 1.0])
            ray = np.linalg.inv(cameras.intrinsics[sample, n].double().numpy()) @ pixel
            ray = cameras.ego_from_cam[sample, n, :3, :3].double().numpy() @ ray
            azimuth, elevation = np.arctan2(ray[1], ray[0]), np.arcsin(ray[2] / np.linalg.norm(ray))
            phase = np.array([angle * 2.0**k for angle in (azimuth, elevation) for k in range(6)])
            directions.append(weight @ np.concatenate([np.sin(phase), np.cos(phase)]))
        keys = (np.array(tokens) + np.array(directions)) @ w_k
        expected = loops(reshaper.query.detach().numpy() @ w_q, keys, np.array(tokens) @ w_v, 3)
        np.testing.assert_allclose(bev[sample].transpose(1, 2, 0).reshape(10, 12), expected, atol=1e-4)


def test_rotating_the_rig_changes_only_the_azimuth_of_rays(rig) -> None:
    cameras = rig(1, 2)
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    turned = replace(cameras, ego_from_cam=turn @ cameras.ego_from_cam)
    encode = given_rays().encode_rays
    before, after = (encode.waves(each)[0].double().unflatten(-1, (2, 2, 6)) for each in (cameras, turned))
    sin, cos = before.unbind(1)
    angle = torch.tensor([0.3 * 2.0**k for k in range(6)], dtype=torch.float64)
    rotated = [sin[:, 0] * angle.cos() + cos[:, 0] * angle.sin(), cos[:, 0] * angle.cos() - sin[:, 0] * angle.sin()]
    torch.testing.assert_close(after[:, :, 0], torch.stack(rotated, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(after[:, :, 1], before[:, :, 1], atol=1e-4, rtol=0)


def test_calibrated_cameras_are_interchangeable(rig) -> None:
    x, cameras = doubles(2, 2, 8, 4, 6), rig(2, 2)
    swapped = replace(cameras, intrinsics=cameras.intrinsics.flip(1), ego_from_cam=cameras.ego_from_cam.flip(1))
    reshaper = given_rays(token_encoding="none")
    torch.testing.assert_close(reshaper(x.flip(1), swapped), reshaper(x, cameras), atol=1e-12, rtol=0)
    assert not torch.allclose(reshaper(x, swapped), reshaper(x, cameras), atol=1e-4)


def test_a_dropped_cameras_calibration_does_not_matter(rig) -> None:
    x, mask = doubles(1, 2, 8, 4, 6), torch.tensor([[True, False]])
    cameras = replace(rig(1, 2), camera_mask=mask)
    broken = replace(cameras, intrinsics=torch.where(mask[..., None, None], cameras.intrinsics, 0))
    reshaper = given_rays()
    torch.testing.assert_close(reshaper(x, broken), reshaper(x, cameras))


def test_directions_are_exact_in_every_precision(rig) -> None:
    reshaper, x, cameras = given_rays(), doubles(2, 2, 8, 4, 6), rig(2, 2)
    exact = reshaper(x, cameras)
    torch.testing.assert_close(reshaper.float()(x.float(), cameras).double(), exact, atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = reshaper(x.float(), cameras)
    half = reshaper.bfloat16()(x.bfloat16(), cameras)
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        torch.testing.assert_close(found.double(), exact, atol=rounding(25, exact, torch.bfloat16), rtol=0)


def test_ray_encoding_has_gradients(rig) -> None:
    reshaper, x, cameras = given_rays(attention_only=True), doubles(1, 2, 8, 4, 6), rig(1, 2)

    def output(weight: torch.Tensor) -> torch.Tensor:
        return functional_call(reshaper, {"encode_rays.weight": weight}, (x, cameras))

    assert torch.autograd.gradcheck(output, reshaper.encode_rays.weight.detach().requires_grad_(), fast_mode=True)


def test_directions_need_a_calibration_and_metres(rig) -> None:
    with pytest.raises(InputError, match=r"call it as reshaper\(features, cameras\)"):
        given_rays()(doubles(1, 2, 8, 4, 6))
    with pytest.raises(InputError, match="pass a BEVGrid"):
        cross(calibration=True)
    assert not cross().needs_cameras


@pytest.mark.parametrize("normalise_values", [None, False, True])
def test_default_cross_attention_equals_a_residual_block(normalise_values: bool | None) -> None:
    options = {} if normalise_values is None else {"normalise_values": normalise_values}
    reshaper = cross(token_encoding="learned", query_encoding="learned", mlp_ratio=2, **options)
    x = doubles(1, 8, 3, 4)
    state = {name: value.numpy() for name, value in reshaper.state_dict().items()}

    def norm(rows: np.ndarray) -> np.ndarray:  # a fresh LayerNorm has weight 1 and bias 0
        return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)

    tokens = x[0].numpy().reshape(8, 12).T
    w_q, w_k, w_v = projections(reshaper.attention)
    q = (norm(state["query"]) + state["encode_queries.learned"][0]) @ w_q
    values = norm(tokens) if normalise_values else tokens
    attended = loops(q, (norm(tokens) + state["encode_tokens.learned"][0]) @ w_k, values @ w_v, 3)
    bev = state["query"] + attended @ state["out.weight"].T + state["out.bias"]
    inner = torch.from_numpy(norm(bev) @ state["feedforward.1.0.weight"].T + state["feedforward.1.0.bias"])
    gelu = (0.5 * inner * (1 + torch.erf(inner / 2**0.5))).numpy()
    bev = bev + gelu @ state["feedforward.1.2.weight"].T + state["feedforward.1.2.bias"]
    np.testing.assert_allclose(reshaper(x)[0].detach().numpy().transpose(1, 2, 0).reshape(10, 12), bev, atol=1e-12)


def test_normalised_values_lose_mean_and_length() -> None:
    """Mean and length of a token do not reach the output."""
    one, x = FeatureShape(16, 1, 1), doubles(3, 16, 1, 1)
    for normalise_values in (False, True):
        reshaper = cross(one, dim=24, normalise_values=normalise_values, mlp_ratio=0)
        changed = reshaper(7 * x + 5) - reshaper(x)
        if normalise_values:
            assert changed.abs().max() < 1e-4  # LayerNorm's epsilon
        else:
            assert changed.abs().max() > 1
        inputs = x[:1].clone().requires_grad_()
        jacobian = torch.autograd.functional.jacobian(lambda x, of=reshaper: of(x)[0, :, 0, 0], inputs)
        lost = torch.linalg.svdvals(jacobian.flatten(1)) < 1e-4
        assert lost.sum() == 2 if normalise_values else not lost.any()


def self_attention(grid: tuple[int, int] = (3, 4), **options) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(SOURCE, grid, **{"dim": 12, "heads": 3, **options}).double()


def test_self_attention_equals_the_equation_and_keeps_the_shape() -> None:
    reshaper, x = self_attention(attention_only=True, token_encoding="none"), doubles(2, 8, 3, 4)
    w_q, w_k, w_v = projections(reshaper.attention)
    for sample in range(2):
        tokens = x[sample].numpy().reshape(8, 12).T
        expected = loops(tokens @ w_q, tokens @ w_k, tokens @ w_v, 3)
        out = reshaper(x)[sample].detach().numpy().transpose(1, 2, 0).reshape(12, 12)
        np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("attention_only", [True, False])
def test_self_attention_is_equivariant_to_the_order_of_tokens(attention_only: bool) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    x = doubles(2, 8, 12)
    shuffled = x[..., order].unflatten(-1, (3, 4))
    without = self_attention(attention_only=attention_only, token_encoding="none")
    expected = without(x.unflatten(-1, (3, 4))).flatten(2)[..., order]
    torch.testing.assert_close(without(shuffled).flatten(2), expected, atol=1e-12, rtol=0)
    placed = self_attention(attention_only=attention_only)
    expected = placed(x.unflatten(-1, (3, 4))).flatten(2)[..., order]
    assert not torch.allclose(placed(shuffled).flatten(2), expected, atol=1e-3)


ROTARY = {"attention_only": True, "token_encoding": "rotary", "query_encoding": "rotary", "dim": 16, "heads": 2}


def turned_products(q: np.ndarray, k: np.ndarray, queries: tuple[int, int], keys: tuple[int, int]) -> np.ndarray:
    """Return ``Re Σ q̄·k·exp(i·ω·(p_k - p_q))`` of one head of 8 channels, one pair of positions at a time."""
    products = np.zeros((len(q), len(k)))
    for i in range(len(q)):
        for j in range(len(k)):
            for axis in range(2):
                at_q = (divmod(i, queries[1])[axis] + 0.5) / queries[axis]
                at_k = (divmod(j % (keys[0] * keys[1]), keys[1])[axis] + 0.5) / keys[axis]
                for m, omega in enumerate((math.pi / 2 * max(queries[axis], keys[axis]), math.pi)):
                    channel = 2 * axis + m
                    pair = complex(q[i, channel], -q[i, channel + 4]) * complex(k[j, channel], k[j, channel + 4])
                    products[i, j] += (pair * np.exp(1j * omega * (at_k - at_q))).real
    return products


@pytest.mark.parametrize("kernel", ["softmax", "linear"])
@pytest.mark.parametrize("mask", [None, [True, False]])
def test_rotary_cross_attention_depends_on_distances(kernel: str, mask, rig) -> None:
    reshaper = cross(replace(SOURCE, cameras=2), kernel=kernel, **ROTARY)
    x = doubles(1, 2, 8, 3, 4)
    cameras = replace(rig(1, 2), camera_mask=None if mask is None else torch.tensor([mask]))
    w_q, w_k, w_v = projections(reshaper.attention)
    tokens = np.array([x[0, n, :, i, j].numpy() for n in range(2) for i in range(3) for j in range(4)])
    of_camera = reshaper.encode_tokens.learned.detach().numpy().repeat(12, 1).reshape(24, 8)
    q, k, v = reshaper.query.detach().numpy() @ w_q, (tokens + of_camera) @ w_k, tokens @ w_v
    there = slice(None) if mask is None else slice(12)
    expected = np.zeros((10, 16))
    for head in (slice(8), slice(8, 16)):
        weights = turned_products(q[:, head], k[there, head], (5, 2), (3, 4))
        if kernel == "softmax":
            weights = np.exp(weights / np.sqrt(8))
            weights /= weights.sum(1, keepdims=True)
        else:
            weights /= weights.shape[1]
        expected[:, head] = weights @ v[there, head]
    bev = reshaper(x, cameras)[0].detach().numpy().transpose(1, 2, 0).reshape(10, 16)
    np.testing.assert_allclose(bev, expected, atol=1e-6)


def test_rotary_self_attention_depends_on_distances() -> None:
    reshaper = self_attention(attention_only=True, token_encoding="rotary", dim=16, heads=2)
    x = doubles(1, 8, 3, 4)
    w_q, w_k, w_v = projections(reshaper.attention)
    tokens = x[0].numpy().reshape(8, 12).T
    expected = np.zeros((12, 16))
    for head in (slice(8), slice(8, 16)):
        weights = np.exp(turned_products((tokens @ w_q)[:, head], (tokens @ w_k)[:, head], (3, 4), (3, 4)) / np.sqrt(8))
        expected[:, head] = weights / weights.sum(1, keepdims=True) @ (tokens @ w_v)[:, head]
    out = reshaper(x)[0].detach().numpy().transpose(1, 2, 0).reshape(12, 16)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_self_attention_is_resized_by_half_pixels() -> None:
    x = doubles(1, 8, 3, 4)
    kept, resized = self_attention(), self_attention((7, 9))
    expected = cv2.resize(kept(x)[0].detach().numpy().transpose(1, 2, 0), (9, 7), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resized(x)[0].detach().numpy().transpose(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kernel": "sofmax"}, "did you mean softmax"),
        ({"token_encoding": "sinus"}, "did you mean sinusoidal"),
        ({"query_encoding": "leaned"}, "did you mean learned"),
        ({"dim": 10, "query_encoding": "none"}, "dim=10 cannot be divided among heads=3"),
        ({"dim": 6}, "6 channels .* multiple of 4"),
        ({"token_encoding": "rotary"}, "token_encoding=rotary and query_encoding=sinusoidal .* both"),
        (
            {"token_encoding": "none", "query_encoding": "rotary"},
            "token_encoding=none and query_encoding=rotary .* both",
        ),
        ({"token_encoding": "rotary", "query_encoding": "rotary", "heads": 2}, "head of 6 channels"),
    ],
)
def test_invalid_options_are_refused(option, message) -> None:
    with pytest.raises(InputError, match=message):
        cross(**option)
