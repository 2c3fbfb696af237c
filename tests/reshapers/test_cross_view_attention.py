"""Cross-view attention against the original's output and loops."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import CrossViewAttention, FeatureShape

GRID = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 2.0)  # 4×3
SOURCE = FeatureShape(3, 4, 6, 6, 8, 3.5)


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    """Two scales of CVT's ``Encoder``, its backbone replaced by given features, batch 2, three cameras: inputs,
    weights, coordinates and output (github.com/bradyz/cross_view_transformers at 4de6e64)."""
    return torch.load(Path(__file__).parent / "fixtures" / "cross_view_attention.pt", weights_only=True)


def weights_of(original: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("state."): value for name, value in original.items() if name.startswith("state.")}


def as_the_original() -> CrossViewAttention:
    sources = (FeatureShape(6, 4, 6, 3, 16), FeatureShape(20, 2, 3, 3, 32))
    grid = BEVGrid((-15.0, 15.0), (-18.0, 18.0), 6.0)  # 5×6
    return CrossViewAttention(sources, grid, dim=16, heads=2, dim_head=6, middle=[1, 2]).eval()


def with_its_coordinates(reshaper: CrossViewAttention, original: dict[str, Tensor]) -> Tensor:
    ego_from_cam, cam_from_pixel = original["E_inv"], original["I_inv"]
    rays = [
        (ego_from_cam[..., :3, :3] @ cam_from_pixel @ original[f"image_plane_{scale}"].flatten(1)).mT
        for scale in (0, 1)
    ]
    located = reshaper.encode(rays, ego_from_cam[..., :3, 3], original["grid"][:2].permute(1, 2, 0))
    return reshaper.gather((original["features_0"], original["features_1"]), located)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_output_equals_the_original(prefix: str, original) -> None:
    reshaper = as_the_original()
    extra = {"backbone.layers.0.weight": torch.zeros(3), "cross_views.0.image_plane": torch.zeros(1, 1, 3, 4, 6)}
    reshaper.load_original({prefix + name: value for name, value in (weights_of(original) | extra).items()})
    torch.testing.assert_close(with_its_coordinates(reshaper, original), original["output"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("stands_m", [0.0, 100.0])
def test_queries_near_a_camera_are_exact(stands_m: float) -> None:
    """With O equal to G a cell's embedding is a small difference of large values."""
    torch.manual_seed(0)
    reshaper = CrossViewAttention(SOURCE, GRID, dim=64, middle=0)
    view = reshaper.views[0]
    with torch.no_grad():
        view.embedding.center.weight[:, :2] = view.embedding.cell.weight
        view.embedding.center.weight[:, 3] = view.embedding.cell.bias
    centers = torch.tensor([stands_m, 0.0, 1.5]).expand(1, 6, 3)
    ground = GRID.centers().flatten(0, 1) + torch.tensor([stands_m, 0.0])
    bev = torch.randn(2, len(ground), 64)
    found = view.to_q.of_sum(bev, view.embedding.seen_cells(ground, centers), view.embedding.cell_weight(torch.float32))
    view.double()
    away = ground.double() @ view.embedding.cell.weight.mT + view.embedding.cell.bias
    away = away - view.embedding.center(torch.cat([centers, torch.ones(1, 6, 1)], -1).double())[:, :, None]
    unit = away / torch.linalg.vector_norm(away, dim=-1, keepdim=True)  # b n q d
    exact = view.to_q.linear(view.to_q.norm(unit + bev.double()[:, None]))
    torch.testing.assert_close(found.double(), exact, atol=2e-4, rtol=0)


def test_training_equals_the_original(original) -> None:
    reshaper = as_the_original().train()
    reshaper.load_original(weights_of(original))
    bev = with_its_coordinates(reshaper, original)
    torch.testing.assert_close(bev, original["output_training"], atol=5e-5, rtol=1e-5)
    theirs = weights_of(original) | {
        name.removeprefix("after."): value for name, value in original.items() if name.startswith("after.")
    }
    after = as_the_original()
    after.load_original(theirs)
    for name, value in reshaper.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, after.state_dict()[name], atol=1e-5, rtol=1e-5)
        if name.endswith("num_batches_tracked"):
            assert value == theirs["layers.0.0.bn1.num_batches_tracked"] + 1


def test_weights_that_do_not_fit_are_named(original) -> None:
    weights = weights_of(original)
    removed = weights.pop("cross_views.1.cam_embed.weight")
    with pytest.raises(
        InputError, match=r"views\.1\.embedding\.center\.weight is missing there; views\.1\.camera is unknown here"
    ):
        as_the_original().load_original(weights | {"cross_views.1.camera": removed})
    weights["cross_views.1.cam_embed.weight"] = removed[:, :3]
    with pytest.raises(InputError, match=r"views\.1\.embedding\.center\.weight is \(16, 3\) there and \(16, 4\) here"):
        as_the_original().load_original(weights)


def layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)


def projected(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return linear(layer_norm(x, weights, f"{name}.norm"), weights, f"{name}.linear")


def seen(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    mean, var = weights[f"{name}.norm.running_mean"], weights[f"{name}.norm.running_var"]
    x = (x - mean) / np.sqrt(var + 1e-5) * weights[f"{name}.norm.weight"] + weights[f"{name}.norm.bias"]
    return weights[f"{name}.linear.weight"] @ np.maximum(x, 0)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def by_loops(reshaper: CrossViewAttention, features: Tensor, cameras: Cameras, heads: int, skip: bool) -> np.ndarray:
    """One scale, one sample, without blocks: cell by cell, camera by camera, token by token."""
    state = {name: value.double().numpy() for name, value in reshaper.state_dict().items()}
    prior = state["prior"]
    w = {name.removeprefix("views.0."): value for name, value in state.items()}
    out = np.zeros_like(prior)
    _, n, _, height, width = features.shape
    for row, col in np.ndindex(4, 3):
        x, y = 4.0 - 2.0 * (row + 0.5), 3.0 - 2.0 * (col + 0.5)
        logits, values = [], []
        for camera in range(n):
            if cameras.camera_mask is not None and not cameras.camera_mask[0, camera]:
                continue
            ego_from_cam = cameras.ego_from_cam[0, camera].double().numpy()
            centre = linear(ego_from_cam[:, 3], w, "embedding.center")
            query = projected(
                unit(linear(np.array([x, y]), w, "embedding.cell") - centre) + prior[:, row, col], w, "to_q"
            )
            for i, j in np.ndindex(height, width):
                pixel = np.array([8 * j + 3.5, 8 * i + 3.5, 1.0])
                point = np.linalg.inv(cameras.intrinsics[0, camera].double().numpy()) @ pixel
                ray = unit(linear(ego_from_cam @ np.append(point, 1.0), w, "embedding.point") - centre)
                feature = features[0, camera, :, i, j].double().numpy()
                if "embed_key.linear.weight" in w:
                    ray = ray + seen(feature, w, "embed_key")
                key = projected(ray, w, "to_k")
                logits.append((query * key).reshape(heads, -1).sum(1) / math.sqrt(len(key) / heads))
                values.append(projected(seen(feature, w, "embed_value"), w, "to_v").reshape(heads, -1))
        weights = np.exp(logits) / np.exp(logits).sum(0)  # tokens heads
        found = linear(np.einsum("ta,tae->ae", weights, np.array(values)).ravel(), w, "project")
        z = layer_norm(found + prior[:, row, col] if skip else found, w, "prenorm")
        hidden = linear(z, w, "feedforward.0")
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        out[:, row, col] = layer_norm(z + linear(hidden, w, "feedforward.2"), w, "postnorm")
    return out


def shaken(reshaper: CrossViewAttention) -> CrossViewAttention:
    """Return a reshaper with norms that differ from the identity."""
    with torch.no_grad():
        for value in reshaper.parameters():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
        for name, value in reshaper.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.3)
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return reshaper.eval()


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, None),
        ({"skip": False, "dim": 2}, [True, False, True, True, False, True]),
        ({"image_features": False, "qkv_bias": False}, None),
    ],
)
def test_output_equals_loops_over_cells_cameras_and_tokens(options, mask, rig) -> None:
    torch.manual_seed(0)
    reshaper = shaken(
        CrossViewAttention(SOURCE, GRID, **({"dim": 8, "heads": 2, "dim_head": 4, "middle": 0} | options))
    )
    cameras = rig(1, 6) if mask is None else replace(rig(1, 6), camera_mask=torch.tensor([mask]))
    features = torch.randn(1, 6, 3, 4, 6)
    expected = by_loops(reshaper, features, cameras, heads=2, skip=options.get("skip", True))
    with torch.no_grad():
        np.testing.assert_allclose(reshaper(features, cameras)[0].numpy(), expected, atol=2e-5)


def compass() -> CrossViewAttention:
    """Weights that compare bearings: cells and rays are embedded by their direction on the ground from the camera."""
    grid = BEVGrid((-6.0, 6.0), (-4.0, 4.0), 1.0)  # 12×8
    reshaper = CrossViewAttention(
        FeatureShape(1, 16, 24, 6, 2, 0.5), grid, dim=4, heads=1, dim_head=4, middle=0, skip=False, image_features=False
    )
    xy = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # of mean 0, its length is that of (x, y)
    view, four = reshaper.views[0], torch.eye(4)
    values = {
        "embedding.cell.weight": xy,
        "embedding.point.weight": torch.cat([xy, torch.zeros(4, 2)], dim=1),
        "embedding.center.weight": torch.cat([xy, torch.zeros(4, 2)], dim=1),
        "embed_value.linear.weight": torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),
        "to_q.linear.weight": 20 * four,
        "to_k.linear.weight": 20 * four,
        "to_v.linear.weight": four,
        "project.weight": four,
        "feedforward.2.weight": torch.zeros(4, 8),
    }
    with torch.no_grad():
        reshaper.prior.zero_()
        for name, value in view.named_parameters():
            if name.endswith("bias"):
                value.zero_()
        for name, value in values.items():
            view.get_parameter(name).copy_(value)
    return reshaper.eval()


@pytest.mark.parametrize("cell", [(0, 0), (0, 7), (11, 0), (11, 7), (0, 3), (5, 0), (6, 7)])
def test_a_point_drawn_at_a_projection_appears_at_its_bearing(cell, rig) -> None:
    """Left is left and ahead is up; attention depends on bearings, distance along a ray must be learned."""
    reshaper, cameras = compass(), rig(1, 6)
    x, y = 6.0 - (cell[0] + 0.5), 4.0 - (cell[1] + 0.5)
    pixels, depth = cameras.project(torch.tensor([[[x, y, 0.0]]]))
    features = torch.zeros(1, 6, 1, 16, 24)
    for camera in torch.nonzero(cameras.sees(pixels, depth)[0, :, 0]).flatten().tolist():
        column, _ = ((pixels[0, camera, 0] - 0.5) / 2).round().int().tolist()
        features[0, camera, 0, :, max(0, column - 1) : column + 2] = 1.0
    assert features.any()
    with torch.no_grad():
        lit = reshaper(features, cameras)[0, 0]
    assert lit[cell] > 0.9
    bearing = math.atan2(y, x)
    for row, col in np.ndindex(12, 8):
        other = math.atan2(4.0 - (col + 0.5), 6.0 - (row + 0.5)) - bearing
        apart = abs(math.degrees(math.atan2(math.sin(other), math.cos(other))))
        assert apart < 35 or lit[row, col] < 0.1, (row, col)


def test_statistics_exclude_images_of_dropped_cameras(rig) -> None:
    mask = torch.tensor([[True, True, False, True, False, True], [False, True, True, True, True, True]])
    features = 3 * torch.randn(2, 6, 3, 4, 6) + 1
    features[~mask] = torch.nan
    reshaper = CrossViewAttention(SOURCE, GRID)
    assert reshaper(features, replace(rig(2, 6), camera_mask=mask)).isfinite().all()
    there = features[mask].transpose(0, 1).flatten(1)  # c tokens
    for embedding in (reshaper.views[0].embed_key, reshaper.views[0].embed_value):
        torch.testing.assert_close(embedding.norm.running_mean, 0.1 * there.mean(1))
        torch.testing.assert_close(embedding.norm.running_var, 0.9 + 0.1 * there.var(1))
    before = {name: value.clone() for name, value in reshaper.views.named_buffers() if "running" in name}
    reshaper(features, replace(rig(2, 6), camera_mask=torch.zeros(2, 6, dtype=torch.bool)))
    after = dict(reshaper.views.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_invalid_calibration_of_a_dropped_camera_has_no_effect(rig) -> None:
    cameras, x = rig(1, 6), torch.randn(1, 6, 3, 4, 6)
    mask = torch.arange(6)[None] != 4
    broken = replace(cameras, intrinsics=torch.where(mask[..., None, None], cameras.intrinsics, 0.0), camera_mask=mask)
    broken.ego_from_cam[0, 4] = torch.nan
    reshaper = CrossViewAttention(SOURCE, GRID).eval()
    bev = reshaper(x, broken)
    assert torch.equal(bev, reshaper(x, replace(rig(1, 6), camera_mask=mask)))
    bev.square().sum().backward()
    assert all(value.grad.isfinite().all() for value in reshaper.parameters())


def test_scales_refine_the_map_in_turn(rig) -> None:
    coarse = FeatureShape(5, 2, 3, 6, 16, 7.5)
    features = torch.randn(1, 6, 3, 4, 6), torch.randn(1, 6, 5, 2, 3)
    both = CrossViewAttention((SOURCE, coarse), GRID, dim=8, middle=[1, 0]).eval()
    assert [len(blocks) for blocks in both.middle] == [1, 0]
    first = CrossViewAttention(SOURCE, GRID, dim=8, middle=1).eval()
    second = CrossViewAttention(coarse, GRID, dim=8, middle=0).eval()
    own = {
        name: value for name, value in both.state_dict().items() if name.startswith(("views.0.", "middle.0.", "prior"))
    }
    first.load_state_dict(own)
    other = {name.replace("views.1.", "views.0."): value for name, value in both.state_dict().items() if "s.1." in name}
    second.load_state_dict(other | {"prior": first(features[0], rig(1, 6))[0].detach()})
    torch.testing.assert_close(both(features, rig(1, 6)), second(features[1], rig(1, 6)))


class Largest(TorchDispatchMode):
    """Records the largest number of elements that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_cells_by_tokens_are_never_formed(rig) -> None:
    grid = BEVGrid((-4.0, 4.0), (-4.0, 4.0), 0.25)  # 32×32
    source = FeatureShape(3, 32, 48, 6, 1, 0.0)
    reshaper = CrossViewAttention(source, grid, dim=8, heads=2, dim_head=4)
    with Largest() as mode:
        reshaper(torch.randn(1, 6, 3, 32, 48), rig(1, 6)).sum().backward()
    assert mode.elements <= 6 * 32 * 48 * 10  # tokens times their channels with their rays'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"middle": [1, 2]}, r"middle=\[1, 2\] must give the number of blocks after each of 1 scales"),
        ({"dim": 6}, r"dim=6 is no multiple of 4; choose one, or middle=0"),
    ],
)
def test_invalid_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        CrossViewAttention(SOURCE, GRID, **options)


def _half(rank: int, folder: str, features: Tensor, cameras: Cameras) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    reshaper = torch.nn.SyncBatchNorm.convert_sync_batchnorm(CrossViewAttention(SOURCE, GRID, middle=0)).train()
    mine = slice(rank, rank + 1)
    features = features[mine].clone().requires_grad_()
    cameras = Cameras(cameras.intrinsics[mine], cameras.ego_from_cam[mine], cameras.image_size)
    reshaper(features, cameras).square().sum().backward()
    norm = reshaper.views[0].embed_value.norm
    torch.save((features.grad, norm.running_mean, norm.running_var), f"{folder}/out.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sync_batchnorm_counts_the_images_of_all_processes(tmp_path, rig) -> None:
    features, cameras = torch.randn(2, 6, 3, 4, 6), rig(2, 6)
    features[1] *= 3  # each process alone would have other statistics
    torch.multiprocessing.spawn(_half, (str(tmp_path), features, cameras), nprocs=2)
    torch.manual_seed(0)
    together = CrossViewAttention(SOURCE, GRID, middle=0).train()
    features.requires_grad_()
    together(features, cameras).square().sum().backward()
    norm = together.views[0].embed_value.norm
    for rank in range(2):
        gradient, mean, var = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(var, norm.running_var)
        torch.testing.assert_close(gradient, features.grad[rank : rank + 1], atol=1e-5, rtol=1e-4)
