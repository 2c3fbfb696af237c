"""The column attention against the published modules, and against loops over columns, heads and tokens."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from polar_oracle import depths_by_scale, read_maps
from torch import Tensor

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import ColumnAttention, FeatureShape
from bevreshape.reshapers.column_attention import RayGeometry

FIXTURE = Path(__file__).parent / "fixtures" / "column_attention.pt"
GRID = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 0.5)


def scales(cameras: int) -> tuple[FeatureShape, FeatureShape]:
    fine = FeatureShape(channels=4, height=4, width=6, cameras=cameras, stride=8, offset_px=3.5)
    return fine, replace(fine, height=2, width=3, stride=16, offset_px=2.0)


def published() -> tuple[ColumnAttention, dict[str, Tensor]]:
    """Two ``Transformer`` and ``sample_polar2cart`` of avishkarsaha/translating-images-into-maps at commit a452fe7, put
    together as its ``PyrOccTranDetr_S_0904_old_rep100x100_out100x100`` does: weights, features, the positions given to
    ``grid_sample``, and the output."""
    saved = torch.load(FIXTURE, weights_only=True)
    sources = [FeatureShape(12, *saved[f"features.{i}"].shape[-2:], stride=8 * 2**i) for i in range(2)]
    reshaper = ColumnAttention(
        sources, BEVGrid((0.0, 6.0), (-3.0, 3.0), 1.0), depth_m=(1.0, 3.0, 7.0), dim_feedforward=(20, 10)
    )
    return reshaper, saved


def weights(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("state."): value for key, value in saved.items() if key.startswith("state.")}


def test_published_weights_and_positions_give_the_published_output() -> None:
    reshaper, saved = published()
    reshaper.load_original(weights(saved))
    columns, bins, scale = [], [], []
    for i in reversed(range(2)):  # the nearest band first, as its output is laid out
        x, z = saved[f"grid.{i}"].flatten(1, 2).unbind(-1)  # -1..1 between centres of the first and the last
        columns.append((x + 1) / 2 * (reshaper.sources[i].width - 1))
        bins.append((z + 1) / 2 * (reshaper.maps.bands[i].bins - 1))
        scale.append(torch.full_like(x, i, dtype=torch.long))
    column, bin_, number = (torch.cat(values, dim=1)[:, None] for values in (columns, bins, scale))  # b n p
    positions = reshaper.maps.corners(column, bin_, number, torch.ones_like(column))
    features = tuple(saved[f"features.{i}"][:, None] for i in range(2))
    torch.testing.assert_close(
        reshaper.gather(features, RayGeometry(positions, None)), saved["output"], atol=1e-4, rtol=1e-4
    )


def test_one_published_transformer_leaves_the_queries() -> None:
    whole, saved = published()
    whole.load_original(weights(saved))
    one = ColumnAttention(whole.sources[1], GRID, depth_m=(1.0, 3.0), bin_m=1.0, dim_feedforward=10)
    queries = one.scales[0].query.detach().clone()
    state = {key.removeprefix("tbev16."): value for key, value in weights(saved).items() if key.startswith("tbev16.")}
    one.load_original(state)
    assert torch.equal(one.scales[0].query, queries)
    one.scales[0].query.data.copy_(saved["state.query_embed.weight"][0].expand(2, -1))
    column = saved["features.1"][0].permute(2, 1, 0)  # w h c
    torch.testing.assert_close(one.scales[0](column), whole.scales[1](column))


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max())
    return x / x.sum()


def attend(p: dict[str, np.ndarray], at: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """(t, d), (s, d), (s, d) → (t, d), one head and one query at a time."""
    d = q.shape[1]
    wq, wk, wv = np.split(p[f"{at}.to_qkv.weight"], 3)
    bq, bk, bv = np.split(p[f"{at}.to_qkv.bias"], 3)
    q, k, v = q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv
    out = np.zeros_like(q)
    for head in range(heads):
        own = slice(head * d // heads, (head + 1) * d // heads)
        for t in range(len(q)):
            out[t, own] = softmax(k[:, own] @ q[t, own] / math.sqrt(d / heads)) @ v[:, own]
    return out @ p[f"{at}.out.weight"].T + p[f"{at}.out.bias"]


def normalise(p: dict[str, np.ndarray], at: str, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return x * p[f"{at}.weight"] + p[f"{at}.bias"]


def feed(p: dict[str, np.ndarray], at: str, x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(x @ p[f"{at}.0.weight"].T + p[f"{at}.0.bias"], 0)
    return hidden @ p[f"{at}.2.weight"].T + p[f"{at}.2.bias"]


def wave(count: int, d: int, published: bool) -> np.ndarray:
    out = np.zeros((count, d))
    for i in range(count):
        for c in range(d):
            phase = i / 10000 ** (2 * (c // 2) / d)
            out[i, c] = math.cos(phase) if c % 2 and not published else math.sin(phase)
    return out


def translate(p: dict[str, np.ndarray], column: np.ndarray, bins: int, heads: int, published: bool) -> np.ndarray:
    """One column, (h, d), to its ray, (bins, d), by one layer of encoder and two of decoder."""
    place = wave(len(column), column.shape[1], published) + (column if published else 0)
    x = column
    x = normalise(p, "encoder.0.norms.0", x + attend(p, "encoder.0.attention", x + place, x + place, x, heads))
    x = normalise(p, "encoder.0.norms.1", x + feed(p, "encoder.0.feedforward", x))
    bev, query = wave(bins, column.shape[1], published), p["query"]
    for i in range(2):
        at = f"decoder.{i}"
        placed = bev + query
        bev = normalise(p, f"{at}.norms.0", bev + attend(p, f"{at}.self_attention", placed, placed, bev, heads))
        looked = attend(p, f"{at}.cross_attention", bev + query, x + place, x, heads)
        bev = normalise(p, f"{at}.norms.1", bev + looked)
        bev = normalise(p, f"{at}.norms.2", bev + feed(p, f"{at}.feedforward", bev))
    return normalise(p, "norm", bev)


@pytest.mark.parametrize("encoding", ["published", "sincos"])
def test_columns_heads_and_tokens_one_by_one(encoding: str, rig) -> None:
    cameras = replace(rig(1, 6), camera_mask=torch.tensor([[True, True, False, True, True, True]]))
    torch.manual_seed(0)
    reshaper = ColumnAttention(
        scales(6), GRID, heads=2, encoder_layers=1, encoding=encoding, depth_m=(0.6, 2.0, 4.1), bin_m=0.4
    ).double()
    for parameter in reshaper.parameters():
        torch.nn.init.normal_(parameter)
    x = [torch.randn(1, 6, 4, *shape, dtype=torch.float64) for shape in ((4, 6), (2, 3))]
    bev = reshaper(x, cameras)[0].detach().numpy()
    depths = depths_by_scale((8, 16), (0.6, 2.0, 4.1), 0.4)
    maps: list[list[np.ndarray]] = []
    for scale, features, own in zip(reshaper.scales, x, depths, strict=True):
        p = {name: value.numpy() for name, value in scale.state_dict().items()}
        images = features[0].numpy()
        maps.append(
            [
                np.stack(
                    [
                        translate(p, image[:, :, j].T, own.bins, 2, encoding == "published").T
                        for j in range(image.shape[2])
                    ],
                    axis=2,
                )
                for image in images
            ]
        )
    expected, counts, used = read_maps(reshaper, depths, maps, cameras)
    np.testing.assert_allclose(bev, expected, atol=2e-4)
    assert {0, 1, 2} <= set(counts.ravel())  # the rig covers all cases
    assert used == {0, 1}


@pytest.mark.parametrize("cell", [(0, 3), (0, 8), (4, 5), (3, 6)])
def test_a_cell_depends_on_its_column(cell: tuple[int, int], rig) -> None:
    cameras = rig(1, 1)
    reshaper = ColumnAttention(scales(1)[0], GRID)
    x = torch.randn(1, 1, 4, 4, 6, requires_grad=True)
    reshaper(x, cameras)[0, :, cell[0], cell[1]].square().sum().backward()
    ground = np.array([4.0 - (cell[0] + 0.5) / 2, 3.0 - (cell[1] + 0.5) / 2, 0.0])
    pose = cameras.ego_from_cam[0, 0].double().numpy()
    point = pose[:3, :3].T @ (ground - pose[:3, 3])
    u = 24.0 * point[0] / point[2] + 24.0
    column = np.clip((u - 3.5) / 8, 0, 5)
    seen = set(torch.nonzero(x.grad[0, 0].abs().sum((0, 1))).flatten().tolist())
    assert seen == {math.floor(column), math.ceil(column)}
    assert (cell[1] < 6) == (u < 24)  # left is left


def test_nan_of_a_dropped_camera_does_not_spread(rig) -> None:
    cameras = replace(rig(1, 6), camera_mask=torch.arange(6)[None] != 2)
    x = torch.randn(1, 6, 4, 4, 6)
    x[:, 2] = torch.nan
    cameras.ego_from_cam[:, 2] = torch.nan
    reshaper = ColumnAttention(scales(6)[0], GRID)
    bev = reshaper(x, cameras)
    bev.sum().backward()
    assert bev.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in reshaper.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "4 channels cannot be divided among heads=3"),
        ({"encoding": "sincoz"}, "did you mean sincos"),
        ({"dim_feedforward": (8,)}, r"dim_feedforward=\[8\] must be one width, or 2"),
        ({"depth_m": (1, 5)}, r"2 borders but 2 scales need 3"),
    ],
)
def test_invalid_options_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        ColumnAttention(scales(1), GRID, **options)


def test_scales_of_other_channels_are_refused() -> None:
    fine, coarse = scales(1)
    with pytest.raises(InputError, match=r"\[4, 8\] channels; all must have the same"):
        ColumnAttention((fine, replace(coarse, channels=8)), GRID)


def test_weights_that_do_not_fit_are_refused() -> None:
    reshaper, saved = published()
    state = weights(saved)
    with pytest.raises(
        InputError, match=r"scales\.1\.norm\.bias is missing there; scales\.1\.norm\.extra is unknown here"
    ):
        reshaper.load_original(
            {k.replace("tbev16.decoder.norm.bias", "tbev16.decoder.norm.extra"): v for k, v in state.items()}
        )
    other = ColumnAttention(reshaper.sources, reshaper.grid, depth_m=(1.0, 3.0, 7.0), dim_feedforward=20)
    with pytest.raises(InputError, match=r"feedforward\.0\.weight is \(10, 12\) there and \(20, 12\) here"):
        other.load_original(state)
    with pytest.raises(InputError, match=r"scales\.tbev16\S* is unknown here"):
        ColumnAttention(reshaper.sources[0], reshaper.grid, depth_m=(3.0, 7.0), dim_feedforward=20).load_original(state)
