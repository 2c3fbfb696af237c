"""Kernel attention against the published module and loops over cells, cameras and features."""

from dataclasses import replace
from math import erf
from pathlib import Path

import numpy as np
import pytest
import torch
from rigs import tall_camera
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.ops.windows import Windows
from bevreshape.reshapers import FeatureShape, KernelAttention

FIXTURE = Path(__file__).parent / "fixtures" / "kernel_attention.pt"
"""``GeometryKernelEncoder`` of https://github.com/hustvl/GKT, commit 104c27f66799f620e54eb0242509ee3b041ae426
(segmentation/cross_view_transformer/model/geometry_kernel_transformer_encoder.py), with dim 16, 2 heads of 8, the
published kernel 7 × 1 after a convolution of 1 × 7, 1 bottleneck a scale, weights and statistics drawn at random: its
input and output, its state without the backbone, and the coordinates it used."""

GRID = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 1.0)  # 8×6


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return torch.load(FIXTURE, weights_only=True)


def weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[9:]: value for name, value in published.items() if name.startswith("original.")}


def as_published(**options: object) -> KernelAttention:
    sources = FeatureShape(6, 8, 12, 3, stride=4), FeatureShape(8, 4, 6, 3, stride=8)
    grid = BEVGrid((-12.0, 12.0), (-8.0, 8.0), 4.0)
    return KernelAttention(sources, grid, **{"dim": 16, "heads": 2, "bottlenecks": 1} | options)


def published_geometry(published: dict[str, Tensor]) -> tuple[list[Tensor], list[Windows]]:
    """Points on the rays of every scale, and windows."""
    windows = [
        Windows(published[f"windows.{scale}"].long(), published[f"valid.{scale}"].unsqueeze(-1).expand(-1, -1, -1, 7))
        for scale in range(2)
    ]
    return [published[f"points.{scale}"] for scale in range(2)], windows


def test_parity_with_the_published_module(published) -> None:
    reshaper = as_published().eval().load_original(weights(published))
    features = [published[f"features.{scale}"] for scale in range(2)]
    points, windows = published_geometry(published)
    places = reshaper.place(published["ground"], published["centers"], points, windows, average_unseen=True)
    located = reshaper.prepare(places)
    torch.testing.assert_close(reshaper.gather(features, located), published["bev"], atol=1e-4, rtol=1e-4)
    ours = reshaper.prepare(reshaper.place(published["ground"], published["centers"], points, windows))
    assert not torch.allclose(reshaper.gather(features, ours), published["bev"], atol=1e-2)


def test_weights_that_do_not_fit_are_refused(published) -> None:
    given = weights(published)
    other = {
        name.replace("cross_views.0.cross_attn.proj.bias", "backbone.stem"): value for name, value in given.items()
    }
    with pytest.raises(InputError, match=r"scales\.0\.proj\.bias is missing there; backbone\.stem is unknown here"):
        as_published().load_original(other)
    with pytest.raises(InputError, match=r"middle\.0\.1\.bn1\.bias is missing there; .*as many scales and bottlenecks"):
        as_published(bottlenecks=2).load_original(given)
    with pytest.raises(InputError, match=r"scales\.1\.context\.weight is \(8, 8, 1, 7\) there and \(8, 8, 1, 5\) here"):
        as_published(context_kernel=[1, 5]).load_original(given)


def normalised(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    y = layer.weight.detach().numpy() @ x
    return y if layer.bias is None else y + layer.bias.detach().numpy()


def chain(x: np.ndarray, layers: torch.nn.Sequential) -> np.ndarray:
    for layer in layers:
        if isinstance(layer, torch.nn.LayerNorm):
            x = normalised(x, layer)
        elif isinstance(layer, torch.nn.Linear):
            x = linear(x, layer)
        elif isinstance(layer, torch.nn.ReLU):
            x = np.maximum(x, 0)
        else:
            x = np.array([0.5 * v * (1 + erf(v / 2**0.5)) for v in x])
    return x


def direction(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def widened(image: np.ndarray, conv: torch.nn.Conv2d, i: int, j: int) -> np.ndarray:
    """Apply the convolution at one position of (c, h, w), with zero padding."""
    kernel = conv.weight.detach().numpy()
    total = conv.bias.detach().numpy().copy()
    for a in range(kernel.shape[2]):
        for b in range(kernel.shape[3]):
            y, x = i + a - kernel.shape[2] // 2, j + b - kernel.shape[3] // 2
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                total += kernel[:, :, a, b] @ image[:, y, x]
    return total


def window_of(position: float, size: int, cells: int) -> list[int]:
    """Return the integers nearest to a position, without those outside 0..cells − 1 except the nearest."""
    near = sorted(range(-size - 2, cells + size + 2), key=lambda cell: abs(cell - position))
    return [cell for cell in near[:size] if 0 <= cell < cells] or [cell for cell in near if 0 <= cell < cells][:1]


@pytest.mark.parametrize(
    ("window", "context_kernel", "drop", "offset_px"),
    [((3, 1), (1, 3), None, 3.5), ((2, 3), (3, 1), 4, 3.5), ((7, 1), None, 0, 7.0), ((1, 1), None, None, 0.0)],
)
def test_against_a_loop(window, context_kernel, drop, offset_px, rig) -> None:
    torch.manual_seed(3)
    source = FeatureShape(5, 4, 6, 6, stride=8, offset_px=offset_px)
    options = {
        "dim": 8,
        "heads": 2,
        "kernel_size": window,
        "context_kernel": context_kernel,
        "height_m": 0.4,
        "bottlenecks": 0,
    }
    reshaper = KernelAttention(source, GRID, **options).double()
    for parameter in reshaper.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    cameras = rig(1, 6)
    cameras = replace(cameras, intrinsics=cameras.intrinsics.double(), ego_from_cam=cameras.ego_from_cam.double())
    if drop is not None:
        cameras = replace(cameras, camera_mask=(torch.arange(6) != drop)[None])
    x = torch.randn(1, 6, 5, 4, 6, dtype=torch.float64)
    bev = reshaper(x, cameras)[0].detach().numpy()

    layers, images, prior = reshaper.scales[0], x[0].numpy(), reshaper.prior.detach().numpy()
    embedding = layers.embedding
    counts, cut = [], 0
    for row in range(8):
        for col in range(6):
            ground = np.array([4.0 - (row + 0.5), 3.0 - (col + 0.5)])
            start = prior[:, row, col]
            dots, values, seen = [], [], 0
            for n in range(6):
                pose, k = cameras.ego_from_cam[0, n].numpy(), cameras.intrinsics[0, n].numpy()
                point = np.linalg.inv(pose) @ [*ground, 0.4, 1.0]
                u, v, _ = k @ point[:3] / point[2]
                if n == drop or point[2] <= 0 or not (-0.5 <= u < 47.5 and -0.5 <= v < 31.5):
                    continue
                seen += 1
                center = linear(np.append(pose[:3, 3], 1), embedding.center)
                query = chain(start + direction(linear(ground, embedding.cell) - center), layers.to_q)
                rows, cols = window_of((v - offset_px) / 8, window[0], 4), window_of((u - offset_px) / 8, window[1], 6)
                cut += len(rows) * len(cols) < window[0] * window[1]
                for i in rows:
                    for j in cols:
                        one_deep = np.linalg.inv(k) @ [8 * j + offset_px, 8 * i + offset_px, 1.0]
                        feature = (
                            images[n, :, i, j] if context_kernel is None else widened(images[n], layers.context, i, j)
                        )
                        at = direction(linear(pose @ [*one_deep, 1.0], embedding.point) - center)
                        key = chain(at + chain(feature, layers.key), layers.to_k)
                        values.append(chain(chain(feature, layers.value), layers.to_v))
                        dots.append([query[:4] @ key[:4] / 2, query[4:] @ key[4:] / 2])
            found = np.zeros(8)
            for head in range(2):
                w = np.exp([d[head] for d in dots])
                for weight, value in zip(w / w.sum(), values, strict=True):
                    found[4 * head : 4 * head + 4] += weight * value[4 * head : 4 * head + 4]
            z = normalised(start + linear(found, layers.proj), layers.prenorm)
            z = normalised(z + chain(z, layers.feedforward), layers.postnorm)
            np.testing.assert_allclose(bev[:, row, col], z, atol=1e-6)
            counts.append(seen)
    assert {0, 1, 2} <= set(counts)  # the rig covers all three cases
    assert (cut > 0) == (window != (1, 1))


@pytest.mark.parametrize("height_m", [0.0, 1.5])
@pytest.mark.parametrize(("stride", "offset_px"), [(8, 0.0), (8, 3.5), (8, 7.0), (4, 1.5)])
@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (7, 0), (7, 5), (3, 2)])
def test_a_feature_at_a_cells_projection_appears_in_its_cell(height_m, stride, offset_px, cell) -> None:
    cameras = tall_camera(-2.0)
    torch.manual_seed(0)
    source = FeatureShape(4, 192 // stride, 256 // stride, 1, stride, offset_px)
    options = {"dim": 16, "kernel_size": [1, 1], "context_kernel": None, "height_m": height_m, "bottlenecks": 0}
    reshaper = KernelAttention(source, GRID, **options)
    point = np.linalg.inv(cameras.ego_from_cam[0, 0].double().numpy())
    point = point @ [4.0 - (cell[0] + 0.5), 3.0 - (cell[1] + 0.5), height_m, 1.0]
    u, v, _ = cameras.intrinsics[0, 0].double().numpy() @ point[:3] / point[2]
    dark = torch.randn(4)[None, None, :, None, None].expand(1, 1, 4, source.height, source.width)
    spot = dark.clone()
    spot[..., round((v - offset_px) / stride), round((u - offset_px) / stride)] += torch.tensor([3.0, -2.0, 0.0, 1.0])
    lit = (reshaper(spot, cameras) - reshaper(dark, cameras)).abs().amax(1)[0] > 1e-6
    assert lit.nonzero().tolist() == [list(cell)]


def test_a_cell_that_no_camera_sees_does_not_depend_on_images(rig) -> None:
    torch.manual_seed(0)
    reshaper = KernelAttention(FeatureShape(8, 4, 6, 1, 8, 3.5), GRID, bottlenecks=0)
    cameras = rig(1, 1)
    one, other = torch.randn(2, 1, 1, 8, 4, 6).unbind()
    changed = (reshaper(one, cameras) != reshaper(other, cameras)).any(1)[0]
    points = torch.cat([GRID.centers(), torch.ones(8, 6, 1)], dim=-1).flatten(0, 1)
    seen = cameras.sees(*cameras.project(points[None])).reshape(8, 6)
    assert torch.equal(changed, seen)
    assert 0 < seen.sum() < 48


def run(reshaper: KernelAttention, x: Tensor, cameras: Cameras) -> list[Tensor]:
    """Return the output and every gradient."""
    x = x.clone().requires_grad_()
    reshaper.zero_grad()
    bev = reshaper(x, cameras)
    (bev * torch.linspace(-1, 1, bev.numel()).view_as(bev)).sum().backward()
    return [bev.detach(), x.grad, *(parameter.grad.clone() for parameter in reshaper.parameters())]


@pytest.mark.parametrize("context_kernel", [(3, 3), None])
def test_reading_visible_features_only_has_the_same_result(context_kernel, rig, monkeypatch) -> None:
    torch.manual_seed(0)
    reshaper = KernelAttention(
        FeatureShape(4, 8, 12, 6, 4, 1.5), GRID, dim=8, kernel_size=(3, 1), context_kernel=context_kernel
    ).eval()
    cameras, x = rig(2, 6), torch.randn(2, 6, 4, 8, 12)
    (place,) = reshaper.locate(cameras)
    assert place.arranged.tokens.shape[1] < 6 * 8 * 12
    assert place.camera.shape[2] < 6
    few = run(reshaper, x, cameras)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (place,) = reshaper.locate(cameras)
    assert place.arranged.tokens.shape[1] == 6 * 8 * 12
    for one, other in zip(few, run(reshaper, x, cameras), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("all_are_read", [False, True])
def test_a_dropped_camera_may_hold_nan(all_are_read: bool, rig, monkeypatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: all_are_read)
    torch.manual_seed(0)
    reshaper = KernelAttention(FeatureShape(4, 8, 12, 6, 4, 1.5), GRID, dim=8).eval()
    mask = torch.tensor([[False, True, True, True, True, True], [True, False, True, True, False, False]])
    cameras, x = replace(rig(2, 6), camera_mask=mask), torch.randn(2, 6, 4, 8, 12)
    expected = run(reshaper, x, cameras)
    x[~mask], cameras.intrinsics[~mask], cameras.ego_from_cam[~mask] = torch.nan, torch.nan, torch.nan
    for one, other in zip(run(reshaper, x, cameras), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_samples_are_coupled_by_training_statistics_only(rig) -> None:
    torch.manual_seed(0)
    reshaper = KernelAttention(FeatureShape(8, 4, 6, 6, 8, 3.5), GRID)
    cameras, x = rig(2, 6), torch.randn(2, 6, 8, 4, 6)
    other = x.clone()
    other[1] += 1
    assert not torch.equal(reshaper(x, cameras)[0], reshaper(other, cameras)[0])
    reshaper.eval()
    assert torch.equal(reshaper(x, cameras)[0], reshaper(other, cameras)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 30}, r"dim=30 cannot be divided among heads=4"),
        ({"dim": 6, "heads": 3}, r"dim=6 .* by 4"),
        ({"context_kernel": [1, 4]}, r"context_kernel=\[1, 4\] .* both odd"),
    ],
)
def test_invalid_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        KernelAttention(FeatureShape(8, 4, 6), GRID, **options)
