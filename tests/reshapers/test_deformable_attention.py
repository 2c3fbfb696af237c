"""Deformable attention against the published module, loops over samples, and drawn points."""

import math
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from rounding import rounding
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import DeformableAttention, FeatureShape, FixedRig

FIXTURE = Path(__file__).parent / "fixtures" / "deformable_attention.pt"
SCALES = (FeatureShape(4, 4, 6, 6, 8, 3.5), FeatureShape(3, 2, 3, 6, 16, 0.0))
GRID = BEVGrid((-4.0, 4.0), (-3.0, 3.0), 2.0)  # 4×3


@pytest.fixture(scope="module")
def original() -> dict:
    """Run of BEVFormer's layers at fundamentalvision/BEVFormer 66b65f3, projects/mmdet3d_plugin/bevformer/modules.

    Two ``MyCustomBaseTransformerLayer`` of (cross_attn, norm, ffn, norm) around ``SpatialCrossAttention``, with
    ``ms_deform_attn_core_pytorch`` of fundamentalvision/Deformable-DETR at 11169a6: 3 cameras, 2 samples of one rig,
    maps of 5×7 and 3×4, 4×5 queries, 3 heights, 16 channels, 4 heads, 6 points, random weights; ``encoder_bev`` after
    both, ``alone_bev`` after the first one's attention. Points lie up to a third of an image outside of it.
    """
    return torch.load(FIXTURE, weights_only=True)


def like_original(**options) -> DeformableAttention:
    scales = [FeatureShape(16, 5, 7, 3, 8), FeatureShape(16, 3, 4, 3, 16)]
    options = {"heights_m": (0, 1, 2), "camera_embedding": True, **options}
    return DeformableAttention(scales, BEVGrid((0, 4), (0, 5), 1), dim=16, heads=4, points=6, **options)


def built(**options) -> DeformableAttention:
    """Return a reshaper whose offsets and attention differ between cells."""
    torch.manual_seed(0)
    reshaper = DeformableAttention(
        SCALES, GRID, **{"dim": 8, "heads": 2, "points": 4, "heights_m": (0, 0.8), **options}
    )
    with torch.no_grad():
        reshaper.query.normal_()
        for name, parameter in reshaper.named_parameters():
            if "norm" not in name and "query" not in name and ".offsets.bias" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return reshaper.double()


def images(batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(batch, 6, x.channels, x.height, x.width, generator=generator, dtype=torch.float64) for x in SCALES
    )


@pytest.mark.parametrize("part", ["encoder", "alone"])
def test_output_equals_the_published_module(part: str, original) -> None:
    reshaper = like_original(layers=2) if part == "encoder" else like_original(attention_only=True)
    reshaper.load_original(original[part])
    located = reshaper.locate_original(original["points"], original["seen"])
    bev = reshaper.gather((original["features_0"], original["features_1"]), located)
    torch.testing.assert_close(bev.flip(2).flatten(2).mT, original[f"{part}_bev"], atol=2e-5, rtol=1e-5)


def test_published_cells_keep_their_positions(original, rig) -> None:
    """The original counts rows from behind, ours from ahead: queries must stay with their geometry."""
    reshaper = like_original(layers=2).load_original(original["encoder"])
    theirs = original["encoder"]["bev_embedding.weight"].view(4, 5, 16)
    for row in range(4):
        assert torch.equal(reshaper.query.view(4, 5, 16)[row], theirs[3 - row])

    one = DeformableAttention(FeatureShape(16, 4, 6, 6, 8, 3.5), GRID, dim=16, heads=4, points=4, heights_m=(0, 1))
    cameras, x = rig(2, 6), torch.randn(2, 6, 16, 4, 6)
    ground = GRID.centers().flip(0).flatten(0, 1)  # farthest behind first
    points = torch.cat([ground.repeat_interleave(2, 0), torch.tensor([0.0, 1.0]).repeat(len(ground))[:, None]], dim=1)
    pixels, depth = cameras.project(points.expand(2, -1, -1))
    fractions = (pixels + 0.5) / torch.tensor([48.0, 32.0])
    located = one.locate_original(
        *(x.unflatten(2, (-1, 2)).transpose(0, 1) for x in (fractions, cameras.sees(pixels, depth)))
    )
    torch.testing.assert_close(one.gather((x,), located), one(x, cameras), atol=1e-4, rtol=1e-4)


def test_weights_of_a_whole_encoder_are_separated(original) -> None:
    """Temporal self-attention comes first in every published layer, and what is behind it counts on from there."""
    names = {"attentions.0.": "attentions.1.", "norms.1.": "norms.2.", "norms.0.": "norms.1."}
    whole = {}
    for name, value in original["encoder"].items():
        if name.startswith("layers."):
            old = next((old for old in names if old in name), "ffns")
            name = "head.transformer.encoder." + name.replace(old, names.get(old, old))
        whole[name] = value
    for layer in range(2):
        whole[f"head.transformer.encoder.layers.{layer}.attentions.0.sampling_offsets.weight"] = torch.zeros(1)
        whole[f"head.transformer.encoder.layers.{layer}.norms.0.bias"] = torch.zeros(1)
    once, again = like_original(layers=2), like_original(layers=2)
    once.load_original(original["encoder"])
    again.load_original(whole)
    for name, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_of_another_module_are_refused(original) -> None:
    with pytest.raises(
        InputError, match=r"fit: layers\.1\.attention\S* is missing there; layers\.1\S* is missing there and \d+ more;"
    ):
        like_original(layers=2).load_original(
            {k: v for k, v in original["encoder"].items() if not k.startswith("layers.1.")}
        )
    with pytest.raises(InputError, match=r"fit: camera_embedding is unknown here; layers\.1\S* is unknown here and"):
        like_original(camera_embedding=False).load_original(original["encoder"])
    with pytest.raises(InputError, match=r"fit: decoder\.layers\.0\.norms\.0\.bias is unknown here;"):
        like_original(layers=2).load_original({**original["encoder"], "decoder.layers.0.norms.0.bias": torch.zeros(16)})
    with pytest.raises(InputError, match=r"query is \(21, 16\) there and \(20, 16\) here"):
        like_original(layers=2).load_original({**original["encoder"], "bev_embedding.weight": torch.zeros(21, 16)})
    reshaper = like_original(attention_only=True)
    before = reshaper.query.clone()
    reshaper.load_original({k: v for k, v in original["alone"].items() if "embed" not in k})
    assert torch.equal(reshaper.query, before)
    assert (reshaper.level_embedding == 0).all()


def read(feature: np.ndarray, x: float, y: float) -> np.ndarray:
    """Sample (c, h, w) at column x and row y, bilinearly, 0 outside."""
    total = np.zeros(len(feature))
    for j in (math.floor(x), math.floor(x) + 1):
        for i in (math.floor(y), math.floor(y) + 1):
            if 0 <= j < feature.shape[2] and 0 <= i < feature.shape[1]:
                total += (1 - abs(x - j)) * (1 - abs(y - i)) * feature[:, i, j]
    return total


def one_by_one(reshaper: DeformableAttention, features: list[np.ndarray], cameras: Cameras, b: int) -> np.ndarray:
    """The equations in float64, a sample at a time: (RC, d)."""
    weights = {name: value.numpy() for name, value in reshaper.state_dict().items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    heads, points, dim = reshaper.atlas.heads, reshaper.points, reshaper.out_channels
    heights, height, width = reshaper.heights_m, *cameras.image_size
    rows, cols = GRID.shape
    query, asking = weights["query"], np.zeros((rows * cols, dim))
    if reshaper.position is not None:
        row, col = weights["position.0"], weights["position.1"]
        asking = np.stack([np.concatenate([col[i % cols], row[i // cols]]) for i in range(rows * cols)])
    for number, layer in enumerate(reshaper.layers):
        at = f"layers.{number}"
        found = np.zeros_like(query)
        for cell in range(rows * cols):
            x = 4.0 - (cell // cols + 0.5) * 2
            y = 3.0 - (cell % cols + 0.5) * 2
            offsets = linear(query[cell] + asking[cell], f"{at}.attention.offsets").reshape(2, heads, 2, points)
            scores = np.exp(linear(query[cell] + asking[cell], f"{at}.attention.weights").reshape(heads, 2 * points))
            scores = (scores / scores.sum(1, keepdims=True)).reshape(heads, 2, points)
            views = []
            for n in range(6):
                if not bool(cameras.full_mask[b, n]):
                    continue
                reference = []
                for z in heights:
                    point = np.linalg.inv(cameras.ego_from_cam[b, n].double().numpy()) @ [x, y, z, 1.0]
                    u, v, depth = cameras.intrinsics[b, n].double().numpy() @ point[:3]
                    reference.append((u / depth, v / depth) if depth > 1e-3 else None)
                if not any(p and -0.5 <= p[0] < width - 0.5 and -0.5 <= p[1] < height - 0.5 for p in reference):
                    continue
                view = np.zeros((heads, dim // heads))
                for scale, source in enumerate(SCALES):
                    tokens = linear(np.moveaxis(features[scale][b, n], 0, -1), f"project.{scale}")
                    tokens = tokens + weights["level_embedding"][scale]
                    if reshaper.camera_embedding is not None:
                        tokens = tokens + weights["camera_embedding"][n]
                    value = np.moveaxis(linear(tokens, f"{at}.attention.value"), -1, 0)
                    value = value.reshape(heads, dim // heads, *value.shape[1:])
                    for head in range(heads):
                        for p in range(points):
                            place = reference[p % len(heights)]
                            if place is not None:
                                u, v = ((xy - source.offset_px) / source.stride for xy in place)
                                dx, dy = offsets[:, head, scale, p]
                                view[head] += scores[head, scale, p] * read(value[head], u + dx, v + dy)
                views.append(view.reshape(dim))
            found[cell] = np.mean(views, axis=0) if views else 0
        query = query + linear(found, f"{at}.attention.out")
        if not layer.attention_only:
            query = norm(query, f"{at}.norm")
            hidden = np.maximum(linear(query, f"{at}.feedforward.0"), 0)
            query = norm(query + linear(hidden, f"{at}.feedforward.2"), f"{at}.norm_out")
    return query


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 2, "query_position": True, "camera_embedding": True}, {"attention_only": True, "heads": 4}],
)
def test_every_sample_one_by_one(options: dict, rig) -> None:
    reshaper, x = built(**options), images()
    cameras = replace(rig(2, 6), camera_mask=torch.tensor([[True] * 6, [True, False, True, True, False, False]]))
    bev = reshaper(x, cameras).detach()
    for b in range(2):
        expected = one_by_one(reshaper, [scale.numpy() for scale in x], cameras, b)
        # projections are in float32
        np.testing.assert_allclose(bev[b].flatten(1).T.numpy(), expected, atol=2e-5)


@pytest.fixture
def no_own_backward(monkeypatch):
    """Use the path of devices other than the CPU, with torch's backward."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def gradients(reshaper: DeformableAttention, cameras: Cameras) -> dict[str, Tensor]:
    x = tuple(scale.requires_grad_() for scale in images())
    bev = reshaper(x, cameras)
    reshaper.zero_grad()
    bev.backward(torch.randn(bev.shape, generator=torch.Generator().manual_seed(2), dtype=bev.dtype))
    found = {name: value.grad for name, value in reshaper.named_parameters()}
    return {"bev": bev.detach(), **found, **{f"x{i}": scale.grad for i, scale in enumerate(x)}}


def test_custom_backward_equals_torchs(rig, request) -> None:
    reshaper, cameras = built(layers=2, query_position=True), rig(2, 6)
    own = gradients(reshaper, cameras)
    request.getfixturevalue("no_own_backward")
    for name, value in gradients(reshaper, cameras).items():
        torch.testing.assert_close(own[name], value, msg=lambda text, name=name: f"{name}: {text}")
        assert value.abs().max() > 0, name


def looking_straight(source: FeatureShape, grid: BEVGrid) -> DeformableAttention:
    """Return a reshaper that samples exactly the cells' projections."""
    reshaper = DeformableAttention(source, grid, dim=2, heads=1, points=1, heights_m=[0.0], attention_only=True)
    attention = reshaper.layers[0].attention
    with torch.no_grad():
        for parameter in (reshaper.query, reshaper.level_embedding, attention.offsets.bias):
            parameter.zero_()
        for linear in (attention.value, attention.out):
            linear.weight.copy_(torch.eye(2))
    return reshaper


@pytest.mark.parametrize(("stride", "offset_px"), [(8, 0.0), (8, 3.5), (4, 1.5)])
@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (7, 0), (7, 5), (3, 2)])
def test_a_point_drawn_at_a_cells_projection_appears_in_its_cell(stride, offset_px, cell) -> None:
    grid, image_size = BEVGrid((2.0, 10.0), (-3.0, 3.0), 1.0), (192, 256)
    pose = torch.eye(4)  # 12 m above the grid, pointing down, with the image's top ahead
    pose[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    pose[:3, 3] = torch.tensor([5.8, 0.3, 12.0])
    k = torch.tensor([[190.0, 0, 126], [0, 195, 97], [0, 0, 1]])
    cameras = Cameras(k[None, None], pose[None, None], image_size)
    x, y = 10.0 - (cell[0] + 0.5), 3.0 - (cell[1] + 0.5)
    u, v = 126 + 190 * (0.3 - y) / 12, 97 + 195 * (5.8 - x) / 12
    h, w = image_size[0] // stride, image_size[1] // stride
    at_v, at_u = (axis * stride + offset_px for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    spot = torch.exp(-((at_u - u) ** 2 + (at_v - v) ** 2) / (2 * 6.0**2))  # 6 pixels, a third of a cell
    bev = looking_straight(FeatureShape(2, h, w, 1, stride, offset_px), grid)(spot.expand(1, 2, h, w), cameras)[0, 0]
    assert np.unravel_index(bev.argmax().item(), grid.shape) == cell
    assert bev[cell] > 0.65  # without the offset of 3.5 pixels it would be 0.55
    assert (bev > 0.3).sum() == 1


def test_initial_offsets_of_heads_form_a_ring() -> None:
    reshaper = DeformableAttention(FeatureShape(8, 4, 6), GRID, dim=8, heads=8, points=4)
    attention = reshaper.layers[0].attention
    assert (attention.offsets.weight == 0).all()
    assert (attention.weights.weight == 0).all()
    x, y = attention.offsets.bias.detach().view(2, 8, 4)
    circle = rounding(4, 4 * 2 * math.pi)  # angles are rounded up to 2 π, points four features away
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, (right, down) in enumerate(directions):
        torch.testing.assert_close(x[head], right * torch.arange(1.0, 5.0), atol=circle, rtol=0)
        torch.testing.assert_close(y[head], down * torch.arange(1.0, 5.0), atol=circle, rtol=0)


def test_a_cell_that_no_camera_sees_does_not_depend_on_features(rig) -> None:
    cameras = replace(rig(1, 6), camera_mask=torch.arange(6)[None] == 0)  # faces ahead
    reshaper = built(layers=2)
    x, other = images(1), tuple(5 * scale + 1 for scale in images(1))
    changed = (reshaper(x, cameras) - reshaper(other, cameras)).abs().amax(1)[0]  # 4 3
    assert (changed[:2] > 1e-3).any()
    assert (changed[2:] == 0).all()


def test_values_of_a_dropped_camera_have_no_effect(rig) -> None:
    """Its sample has fewer pairs than another, which leaves empty slots."""
    mask = torch.tensor([[False] + [True] * 5, [True] * 6, [False] * 6])
    cameras, reshaper, x = replace(rig(3, 6), camera_mask=mask), built(), images(3)
    expected = reshaper(x, cameras)
    spoiled = tuple(torch.where(mask[..., None, None, None], scale, torch.nan).requires_grad_() for scale in x)
    bev = reshaper(spoiled, cameras)
    torch.testing.assert_close(bev, expected)
    bev.square().sum().backward()
    for parameter in reshaper.layers.parameters():
        assert parameter.grad is not None
    offsets = reshaper.layers[0].attention.offsets.weight.grad
    assert offsets is not None
    assert offsets.isfinite().all()


def test_nan_weights_give_nan_output(rig) -> None:
    reshaper = built()
    with torch.no_grad():
        reshaper.query[3] = torch.nan
    bev = reshaper(images(), rig(2, 6)).flatten(2)
    assert bev[:, :, 3].isnan().all()
    assert bev[:, :, 4:].isfinite().all()


def test_camera_embeddings_tie_weights_to_the_order_of_cameras(rig) -> None:
    cameras, order = rig(1, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = Cameras(cameras.intrinsics[:, order], cameras.ego_from_cam[:, order], cameras.image_size)
    for embedding in (False, True):
        reshaper, x = built(camera_embedding=embedding), images(1)
        same = torch.allclose(reshaper(tuple(scale[:, order] for scale in x), moved), reshaper(x, cameras), atol=1e-5)
        assert same != embedding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 20}, r"dim=20 cannot be divided among heads=8"),
        ({"points": 6}, r"points=6 cannot be divided among 4 heights_m"),
        ({"dim": 9, "heads": 3, "query_position": True}, r"dim=9 cannot hold a row's and a column's position"),
    ],
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeformableAttention(SCALES, GRID, **options)


class Fixed(nn.Module):
    """Features of two scales, as an exported program of a fixed rig has them."""

    def __init__(self, reshaper: DeformableAttention) -> None:
        super().__init__()
        self.reshaper = reshaper

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.reshaper((first, second))


@pytest.fixture
def no_shape_checks():
    """Shape annotations compare sizes, which would pin a symbolic batch to the example's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
def test_a_fixed_rig_exports_with_any_batch(rig) -> None:
    """The fixed rig holds visible pairs only; the exported program holds all."""
    module = Fixed(FixedRig(built(layers=2).eval(), rig(1, 6)))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(module, images(3), dynamic_shapes=(batch, batch), strict=False)
    for size in (3, 1):
        torch.testing.assert_close(program.module()(*images(size)), module(*images(size)), atol=1e-5, rtol=1e-5)
