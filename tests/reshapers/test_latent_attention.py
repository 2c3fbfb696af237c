"""Latent attention, against the published module and against loops over tokens, latents and cells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import rounding
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import FeatureShape, LatentAttention

# valeoai/LaRa at cc83d7dc05c92620562a71b785efbde6a7bfdcbe: LaRaEncoder and LaRaDecoder with CamMatrixInputEmbedding and
# the three query generators, run with random weights
ORIGINAL = torch.load(Path(__file__).parent / "fixtures" / "latent_attention.pt", weights_only=True)
OPTIONS = {
    "coordinates": {"dim": 16, "ray_dim": 8, "depth": 2},
    "fourier": {"dim": 8, "ray_dim": 6, "depth": 1, "plucker": True, "layer_scale": 1e-5},
    "learned": {"dim": 8, "ray_dim": 6, "depth": 1},
}

every_query = pytest.mark.parametrize("query", OPTIONS)


def original(query: str, **options) -> tuple[LatentAttention, dict[str, Tensor]]:
    case = ORIGINAL[query]
    rows, cols = case["bev"].shape[-2:]
    reshaper = LatentAttention(
        FeatureShape(8, 2, 3, 2, stride=8),
        BEVGrid((-rows / 2, rows / 2), (-cols / 2, cols / 2), 1.0),
        **{"query": query, "latents": 5, "read_heads": 4, "heads": 2, **OPTIONS[query], **options},
    )
    return reshaper, case


@every_query
@pytest.mark.parametrize("prefix", ["", "network."])
def test_output_equals_the_published_module(query: str, prefix: str) -> None:
    reshaper, case = original(query)
    state = {prefix + key: value for key, value in case["state"].items()}
    reshaper.load_original(state | {f"{prefix}cam_encoder.up.weight": torch.zeros(1)})
    bev = reshaper.gather(case["features"], reshaper.embed(case["rays"], case["cells"]))
    if query == "learned":  # these cells keep their order of this package, whatever is passed
        bev = bev.flip(-1, -2)
    torch.testing.assert_close(bev, case["bev"], atol=1e-5, rtol=1e-5)


@every_query
def test_around_the_vehicle_rays_and_cells_are_the_published_ones_too(query: str) -> None:
    """The original's row 0 is farthest behind and its column 0 farthest right."""
    reshaper, case = original(query)
    reshaper.load_original(case["state"])
    pose = torch.eye(4).repeat(2, 2, 1, 1)
    pose[..., :3, :3], pose[..., :3, 3] = case["rotations"], case["translations"]
    bev = reshaper(case["features"], Cameras(case["intrinsics"], pose, (16, 24)))
    torch.testing.assert_close(bev.flip(-1, -2), case["bev"], atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_are_refused() -> None:
    reshaper, case = original("coordinates")
    state = dict(case["state"])
    del state["latent_encoder.latent"]
    with pytest.raises(InputError, match="latents is missing"):
        reshaper.load_original(state)
    residual = {key.replace("cross_attention.0.", "cross_attention.0.module.module."): v for key, v in state.items()}
    with pytest.raises(InputError, match=r"is missing there.*cross_attention\.0\.module\S* is unknown here"):
        reshaper.load_original(residual)
    with pytest.raises(InputError, match=r"latents is \(5, 16\) there and \(7, 16\) here"):
        original("coordinates", latents=7)[0].load_original(case["state"])


def norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * (1 + torch.erf(torch.tensor(v / 2**0.5, dtype=torch.float64)).item()) for v in x])


def block(queries, tokens, w, name: str, heads: int, residual: bool = True) -> list[np.ndarray]:
    """One query and one head at a time."""
    norm_tokens = f"{name}.norm_tokens" if f"{name}.norm_tokens.weight" in w else f"{name}.norm"
    seen = [norm(token, w, norm_tokens) for token in tokens]
    keys = [linear(token, w, f"{name}.attention.to_k") for token in seen]
    values = [linear(token, w, f"{name}.attention.to_v") for token in seen]
    results = []
    for query in queries:
        q = linear(norm(query, w, f"{name}.norm"), w, f"{name}.attention.to_q")
        d, gathered = len(q) // heads, []
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            shares = np.exp([q[part] @ key[part] / np.sqrt(d) for key in keys])
            gathered.append(
                sum(share * value[part] for share, value in zip(shares / shares.sum(), values, strict=True))
            )
        x = linear(np.concatenate(gathered), w, f"{name}.out")
        x = x * w.get(f"{name}.scales.0", 1.0) + (query if residual else 0.0)
        inner = gelu(linear(norm(x, w, f"{name}.feedforward.0"), w, f"{name}.feedforward.1.0"))
        results.append(x + w.get(f"{name}.scales.1", 1.0) * linear(inner, w, f"{name}.feedforward.1.2"))
    return results


def ray(cameras: Cameras, n: int, u: float, v: float) -> np.ndarray:
    pose, intrinsics = cameras.ego_from_cam[0, n].double().numpy(), cameras.intrinsics[0, n].double().numpy()
    direction = pose[:3, :3] @ np.linalg.solve(intrinsics, [u, v, 1.0])
    return np.concatenate([pose[:3, 3], direction / np.linalg.norm(direction)])


@pytest.mark.parametrize("plucker", [False, True])
@pytest.mark.parametrize("mask", [None, [True, False, True]])
@every_query
def test_output_equals_the_equations(query: str, mask: list[bool] | None, plucker: bool, rig) -> None:
    """On a grid ahead of the vehicle and a little to its right."""
    torch.manual_seed(0)
    grid = BEVGrid((1.0, 4.0), (-1.5, 0.5), 0.5)  # 6×4
    reshaper = LatentAttention(
        FeatureShape(4, 2, 3, 3, stride=16, offset_px=7.5), grid, dim=12, latents=3, depth=2, read_heads=3, heads=2,
        plucker=plucker, query=query, query_bands=3, layer_scale=0.5,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in reshaper.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    cameras = rig(1, 3)
    if mask is not None:
        cameras = replace(cameras, camera_mask=torch.tensor([mask]))
    x = torch.randn(1, 3, 4, 2, 3, dtype=torch.float64)
    w = {key: value.numpy() for key, value in reshaper.state_dict().items()}

    def embed(coordinates: np.ndarray, name: str) -> np.ndarray:
        return linear(gelu(linear(coordinates, w, f"{name}.first")), w, f"{name}.second")

    tokens = []
    for n in range(3):
        for i in range(2):
            for j in range(3):
                at = ray(cameras, n, 16 * j + 7.5, 16 * i + 7.5)
                at = np.concatenate([at, np.cross(at[:3], at[3:])]) if plucker else at
                if mask is None or mask[n]:
                    tokens.append(np.concatenate([x[0, n, :, i, j].numpy(), embed(at, "embed_rays")]))
    latents = block(w["latents"], tokens, w, "read", 3)
    for number in range(2):
        latents = block(latents, latents, w, f"think.{number}", 2)
    bev = reshaper(x, cameras)[0].detach().numpy()
    for row in range(6):
        for col in range(4):
            # of the cell centres the farthest ahead is at 3.75 m, the farthest aside at -1.25 m
            ahead, left = (4.0 - (row + 0.5) * 0.5) / 3.75, (0.5 - (col + 0.5) * 0.5) / 1.25
            inputs = {
                "coordinates": np.array([ahead, left, np.hypot(ahead, left)]),
                # from -3.75 m to 3.75 m are 16 cells, from -1.25 m to 1.25 m are 6
                "fourier": np.array(
                    [ahead, left]
                    + [np.sin(np.pi * f * ahead) for f in (1, 4.5, 8)]
                    + [np.sin(np.pi * f * left) for f in (1, 2, 3)]
                    + [np.cos(np.pi * f * ahead) for f in (1, 4.5, 8)]
                    + [np.cos(np.pi * f * left) for f in (1, 2, 3)]
                ),
                "learned": w["cells"][row * 4 + col] if query == "learned" else None,
            }[query]
            expected = block([embed(inputs, "embed_cells")], latents, w, "write", 2, residual=False)[0]
            np.testing.assert_allclose(bev[:, row, col], expected, atol=rounding(512, float(np.abs(bev).max())))


def test_nan_of_a_dropped_camera_does_not_spread(rig) -> None:
    torch.manual_seed(0)
    reshaper = LatentAttention(FeatureShape(4, 2, 3, 2, stride=16, offset_px=7.5), BEVGrid((-2, 2), (-2, 2), 1.0))
    cameras = replace(rig(1, 2), camera_mask=torch.tensor([[True, False]]))
    x = torch.randn(1, 2, 4, 2, 3)
    expected = reshaper(x, cameras)
    broken = replace(cameras, intrinsics=cameras.intrinsics.clone())
    broken.intrinsics[:, 1] = torch.nan
    x = torch.where(cameras.camera_mask[..., None, None, None], x, torch.nan).requires_grad_()
    bev = reshaper(x, broken)
    assert torch.equal(bev, expected)
    bev.sum().backward()
    assert x.grad[:, 0].abs().max() > 0
    assert (x.grad[:, 1] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in reshaper.parameters())


def test_no_product_of_tokens_and_latents_is_kept(rig) -> None:
    """The same holds for cells and latents: the widest saved tensor has the channels of a token."""
    torch.manual_seed(0)
    source = FeatureShape(4, 16, 24, 2, stride=2)  # 768 tokens
    reshaper = LatentAttention(source, BEVGrid((-15, 15), (-15, 15), 1.0), dim=8, latents=128, read_heads=2, heads=2)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        reshaper(torch.randn(1, 2, 4, 16, 24), rig(1, 2))
    assert max(kept) == 900 * 8
    assert 768 * 8 in kept


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"query": "coords"}, "did you mean coordinates"),
        ({"read_heads": 5}, "dim=64 cannot be divided among heads=5"),
        ({"heads": 7}, "dim=64 cannot be divided among heads=7"),
    ],
)
def test_invalid_options_are_refused(option, message) -> None:
    with pytest.raises(InputError, match=message):
        LatentAttention(FeatureShape(4, 2, 3), BEVGrid((-2, 2), (-2, 2), 1.0), **option)
