"""Effect of permuted tokens, with encodings that stay or move along."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import Tensor, nn

from bevreshape.analysis.costs import ring
from bevreshape.analysis.gram import from_gram, gram
from bevreshape.analysis.permutation import PermutedReshaper, iou_when_permuted, permutation_error, permute_tokens
from bevreshape.analysis.token_encodings import moved_encodings, token_encodings
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import (
    IPM,
    MLP,
    CrossAttention,
    FeatureShape,
    FixedRig,
    MLPAttention,
    Pool,
    Reshaper,
    SelfAttention,
    StridedConv,
)
from bevreshape.reshapers.positional import PositionalEncoding

KINDS = ("none", "sinusoidal", "learned", "rotary")
ONE = FeatureShape(channels=8, height=3, width=4)
THREE = FeatureShape(channels=8, height=3, width=4, cameras=3)
EXACT = 1e-12


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shuffled(tokens: int, seed: int = 0) -> Tensor:
    return torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))


def cross(source: FeatureShape, kind: str, **options) -> CrossAttention:
    torch.manual_seed(0)
    queries = "rotary" if kind == "rotary" else "sinusoidal"
    return CrossAttention(
        source, (5, 2), dim=16, heads=2, token_encoding=kind, query_encoding=queries, **options
    ).double()


def self_attention(source: FeatureShape, kind: str, shape: tuple[int, int] = (3, 4), **options) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(source, shape, dim=16, heads=2, token_encoding=kind, **options).double()


def mlp(source: FeatureShape = ONE, **options) -> MLP:
    torch.manual_seed(0)
    return MLP(source, (5, 2), **options).double()


@pytest.mark.parametrize("together", [False, True])
def test_permute_tokens_equals_a_loop(together: bool) -> None:
    x, permutation = doubles(2, 3, 8, 3, 4), shuffled(36 if together else 12)
    expected = np.empty((2, 3, 8, 3, 4))
    for camera in range(3):
        for place in range(12):
            if together:
                from_camera, from_place = divmod(int(permutation[camera * 12 + place]), 12)
            else:
                from_camera, from_place = camera, int(permutation[place])
            expected[:, camera, :, place // 4, place % 4] = x[:, from_camera, :, from_place // 4, from_place % 4]
    np.testing.assert_array_equal(permute_tokens(x, permutation).numpy(), expected)
    if not together:
        np.testing.assert_array_equal(permute_tokens(x[:, 1], permutation).numpy(), expected[:, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [ONE, THREE], ids=["one camera", "three"])
@pytest.mark.parametrize("together", [False, True], ids=["each camera", "across cameras"])
@pytest.mark.parametrize("attention_only", [False, True], ids=["whole", "attention_only"])
def test_cross_attention_is_invariant_where_encodings_move_along(
    kind: str, source: FeatureShape, together: bool, attention_only: bool
) -> None:
    """A10 and A11: without encodings tokens are a set; encodings that stay encode the order, moved ones do not."""
    x = doubles(2, source.cameras, 8, 3, 4)
    permutation = shuffled(12 * (source.cameras if together else 1))
    reshaper = cross(source, kind, attention_only=attention_only)
    assert permutation_error(reshaper, x, permutation, move_encodings=True) < EXACT
    stays = permutation_error(reshaper, x, permutation)
    assert stays < EXACT if kind == "none" else stays > 1e-3


@pytest.mark.parametrize("kind", ["sinusoidal", "rotary"])
def test_camera_vectors_move_along(kind: str) -> None:
    """The rest of these encodings is the same for every camera, so only the cameras' vectors are exchanged."""
    x, cameras_change_places = doubles(2, 3, 8, 3, 4), torch.arange(36).roll(12)
    reshaper = cross(THREE, kind)
    assert permutation_error(reshaper, x, cameras_change_places) > 1e-3
    assert permutation_error(reshaper, x, cameras_change_places, move_encodings=True) < EXACT
    with torch.no_grad():
        reshaper.encode_tokens.learned.zero_()
    assert permutation_error(reshaper, x, cameras_change_places) < EXACT


def test_ray_directions_move_along() -> None:
    torch.manual_seed(0)
    source = FeatureShape(8, 4, 6, cameras=2, stride=8, offset_px=3.5)
    reshaper = CrossAttention(source, BEVGrid((0.0, 5.0), (-1.0, 1.0), 1.0), dim=12, heads=3, calibration=True).double()
    x, permutation, cameras = doubles(1, 2, 8, 4, 6), shuffled(48), ring(2, (32, 48), 1, torch.device("cpu"))
    assert permutation_error(reshaper, x, permutation, cameras, move_encodings=True) < EXACT
    assert permutation_error(reshaper, x, permutation, cameras) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [ONE, THREE], ids=["one camera", "three"])
def test_self_attention_is_equivariant_where_encodings_move_along(kind: str, source: FeatureShape) -> None:
    x, permutation = doubles(2, source.cameras, 8, 3, 4), shuffled(12)
    reshaper = self_attention(source, kind)
    assert permutation_error(reshaper, x, permutation, move_encodings=True, permute_output=True) < EXACT
    stays = permutation_error(reshaper, x, permutation, permute_output=True)
    assert stays < EXACT if kind == "none" else stays > 1e-3
    assert permutation_error(reshaper, x, permutation, move_encodings=True) > 0.1  # the output moves, too


@pytest.mark.parametrize("kind", ["sinusoidal", "learned", "rotary"])
def test_moved_encodings_go_with_tokens_of_every_camera(kind: str) -> None:
    """Tokens also move between cameras that self-attention processes separately."""
    x, permutation = doubles(2, 3, 8, 3, 4), torch.arange(36).view(3, 12).roll(1, 0)[:, shuffled(12)].flatten()
    within, across = shuffled(12), torch.tensor([2, 0, 1])
    reshaper = self_attention(THREE, kind, (3, 4))
    moved = PermutedReshaper(reshaper, permutation, move_encodings=True)(x)
    expected = PermutedReshaper(reshaper, within, move_encodings=True)(x[:, across])
    torch.testing.assert_close(moved, expected, atol=EXACT, rtol=EXACT)


def test_encodings_that_stay_belong_to_the_position() -> None:
    """The expected output is the attention equation with E, and with permuted E."""
    reshaper, x, permutation = cross(ONE, "sinusoidal", attention_only=True), doubles(1, 8, 3, 4), shuffled(12)
    tokens = x.flatten(2).mT[0]
    wave = reshaper.encode_tokens.wave
    for move, encoding in ((False, wave), (True, wave[permutation])):
        values = tokens[permutation]
        keys = values + encoding
        out = reshaper.attention(reshaper.encode_queries(reshaper.query)[None], keys[None], values[None])
        made = PermutedReshaper(reshaper, permutation, move_encodings=move)(x)
        torch.testing.assert_close(made.flatten(2).mT, out, atol=EXACT, rtol=EXACT)


def test_encodings_are_restored_afterwards() -> None:
    reshaper, x, permutation = cross(ONE, "sinusoidal"), doubles(2, 8, 3, 4), shuffled(12)
    before = reshaper(x)
    with moved_encodings(reshaper, permutation):
        assert not torch.allclose(reshaper(x), before, atol=1e-3)
    with pytest.raises(KeyError), moved_encodings(reshaper, permutation):
        raise KeyError
    assert torch.equal(reshaper(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in reshaper.modules())


def test_pooling_all_tokens_is_invariant_and_an_mlp_is_not() -> None:
    x, permutation = doubles(3, 8, 3, 4), shuffled(12)
    assert permutation_error(Pool(ONE, (1, 1)).double(), x, permutation) < EXACT
    network = mlp()
    with torch.no_grad():
        network.layers[0].weight.fill_(0.3)  # equal weights are invariant too
        assert permutation_error(network, x, permutation) < EXACT
    network = mlp()
    assert permutation_error(network, x, permutation) > 0.5
    same = permutation_error(network, x, permutation, move_encodings=True)
    assert same == permutation_error(network, x, permutation)  # there is nothing to move


def test_errors_are_relative_norms() -> None:
    network, x, permutation = mlp(activation="none"), doubles(3, 8, 3, 4), shuffled(12)
    weight = network.layers[0].weight[0].detach().numpy()  # cells tokens, bias 0
    tokens = x.flatten(2).numpy()
    out, moved = tokens @ weight.T, tokens[..., permutation.numpy()] @ weight.T
    change = np.linalg.norm(moved - out)
    assert permutation_error(network, x, permutation) == pytest.approx(change / np.linalg.norm(out))
    unrelated = np.linalg.norm(out[[2, 0, 1]] - out)
    assert permutation_error(network, x, permutation, relative_to="unrelated") == pytest.approx(change / unrelated)


def test_error_relative_to_unrelated_images() -> None:
    """A12: to an MLP that reads single tokens a permuted image of white noise is an unrelated one."""
    network = MLP(FeatureShape(4, 8, 8), (8, 8), activation="none")
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.eye(64))
    x = torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert permutation_error(network, x, shuffled(64), relative_to="unrelated") == pytest.approx(1, abs=0.05)
    assert permutation_error(network, x, torch.arange(64), relative_to="unrelated") == 0
    few = torch.arange(64)
    few[:16] = few[:16].flip(0)  # a quarter of the tokens
    assert permutation_error(network, x, few, relative_to="unrelated") == pytest.approx(math.sqrt(0.25), abs=0.05)


def test_training_under_one_permutation_recovers_fully() -> None:
    """W·P is as easy to learn as W; a permutation after training destroys the result."""
    permutation = shuffled(12)
    data, truth = doubles(64, 8, 3, 4), doubles(10, 12, seed=1)
    target = (data.flatten(2) @ truth.T).unflatten(-1, (5, 2))
    losses = []
    inner = [mlp(activation="none"), mlp(activation="none")]
    with torch.no_grad():
        inner[1].layers[0].weight.copy_(inner[0].layers[0].weight[..., permutation])
    for network in (inner[0], PermutedReshaper(inner[1], permutation)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        for _ in range(150):
            loss = (network(data) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    torch.testing.assert_close(inner[1].layers[0].weight, inner[0].layers[0].weight[..., permutation])
    assert permutation_error(inner[0], data, permutation, relative_to="unrelated") > 0.7


def test_permuted_reshaper_fulfils_the_contract() -> None:
    """It saves its permutation, passes cameras on, and keeps the auxiliary loss of the wrapped reshaper."""
    permutation = shuffled(12)
    permuted = PermutedReshaper(MLPAttention(ONE, (5, 2)), permutation)
    x = torch.randn(2, 8, 3, 4)
    bev, auxiliary = permuted.train().forward_with_auxiliary(x)
    assert bev.shape == (2, permuted.out_channels, 5, 2)
    assert auxiliary["cycle"] > 0
    other = PermutedReshaper(MLPAttention(ONE, (5, 2)), shuffled(12, seed=1))
    other.load_state_dict(permuted.state_dict())
    torch.testing.assert_close(other(x), bev)
    with pytest.raises(InputError, match=r"1 cameras × 8 channels × 4×3 but it was built for 1 × 8 × 3×4"):
        permuted(x.mT)
    assert {name for name, _ in permuted.named_parameters()} == {
        f"reshaper.{name}" for name, _ in permuted.reshaper.named_parameters()
    }


def rig(cameras: int, mask: Tensor | None = None) -> Cameras:
    """Return a camera that points straight down from 4 m: columns to the right, rows backward."""
    pose = torch.tensor([[0.0, -1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    intrinsics = torch.tensor([[4.0, 0.0, 1.5], [0.0, 4.0, 1.0], [0.0, 0.0, 1.0]])
    shape = (2, cameras, -1, -1)
    return Cameras(intrinsics.expand(*shape), pose.expand(*shape), (3, 4), mask)


def test_geometric_reshaper_samples_permuted_tokens_at_the_same_positions() -> None:
    ipm = IPM(ONE, BEVGrid((-1.5, 1.5), (-2.0, 2.0), 1.0))  # one cell per token
    x, permutation = torch.randn(2, 1, 8, 3, 4), shuffled(12)
    torch.testing.assert_close(ipm(x, rig(1)), x[:, 0])
    permuted = PermutedReshaper(ipm.eval(), permutation)
    torch.testing.assert_close(permuted(x, rig(1)), permute_tokens(x[:, 0], permutation))
    assert permutation_error(ipm, x, permutation, rig(1), permute_output=True) < 1e-6
    with pytest.raises(InputError, match="call it as reshaper"):
        permuted(x)
    fixed = FixedRig(ipm, Cameras(rig(1).intrinsics[:1], rig(1).ego_from_cam[:1], (3, 4)))
    torch.testing.assert_close(PermutedReshaper(fixed, permutation).eval()(x), permute_tokens(x[:, 0], permutation))
    assert permutation_error(fixed, x, permutation) > 0.5
    with pytest.raises(InputError, match="from the calibration"):
        PermutedReshaper(ipm, permutation, move_encodings=True)


def test_dropped_cameras() -> None:
    """A dropped camera's tokens stay excluded after a permutation; between cameras this is refused."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x, reshaper = doubles(2, 3, 8, 3, 4), cross(THREE, "none")
    assert permutation_error(reshaper, x, shuffled(12), rig(3, mask)) < EXACT
    each = (torch.arange(3)[:, None] * 12 + torch.stack([shuffled(12, seed) for seed in range(3)])).flatten()
    assert permutation_error(reshaper, x, each, rig(3, mask)) < EXACT
    assert permutation_error(reshaper, x, shuffled(36), rig(3, torch.ones_like(mask))) < EXACT
    with pytest.raises(InputError, match="from camera to camera, but cameras were dropped"):
        permutation_error(reshaper, x, shuffled(36), rig(3, mask))


def test_measuring_leaves_modes_and_random_state() -> None:
    class Noisy(Reshaper):
        def __init__(self) -> None:
            super().__init__(ONE, (3, 4), 8)
            self.inner = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(8))

        def reshape(self, features, cameras):
            return self.inner(features[:, 0])

    noisy, x = Noisy(), torch.randn(4, 8, 3, 4)
    noisy.inner[0].eval()
    state, buffers = torch.get_rng_state(), {name: value.clone() for name, value in noisy.named_buffers()}
    assert permutation_error(noisy, x, shuffled(12), permute_output=True) < 1e-6
    assert permutation_error(noisy, x, torch.arange(12), relative_to="unrelated") == 0
    assert [part.training for part in noisy.modules()] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in noisy.named_buffers())


class Own(Reshaper):
    """A third party's attention with an encoding of this package."""

    def __init__(self) -> None:
        super().__init__(ONE, (1, 1), 8)
        self.places = PositionalEncoding("learned", (3, 4), 8)

    def reshape(self, features, cameras):
        placed = self.places(features[:, 0].flatten(2).mT)  # b t c
        return (placed * placed.softmax(1)).sum(1)[..., None, None]


def test_registered_encodings_of_a_third_party() -> None:
    x, permutation = torch.randn(2, 8, 3, 4), shuffled(12)
    with pytest.raises(InputError, match="Own: it has positional encodings"):
        PermutedReshaper(Own(), permutation, move_encodings=True)
    own = Own()
    assert permutation_error(own, x, permutation) > 0.01

    class Registered(Own):
        pass

    token_encodings.register(Registered, lambda reshaper: [(reshaper.places, (0,))])
    assert permutation_error(Registered(), x, permutation, move_encodings=True) < 1e-6


@pytest.mark.parametrize("shape", [(2, 8, 3, 4), (2, 3, 8, 3, 4)])
def test_gram_is_invariant_to_the_order(shape: tuple[int, ...]) -> None:
    """A10: XᵀX = (PX)ᵀ(PX)."""
    x = doubles(*shape)
    tokens = int(np.prod(shape)) // 16
    matrix = x.numpy().reshape(2, -1, 8, 12).transpose(0, 1, 3, 2).reshape(2, -1, 8)
    np.testing.assert_allclose(gram(x), np.einsum("btc,bte->bce", matrix, matrix), atol=EXACT)
    moved = permute_tokens(x, shuffled(tokens))
    assert not torch.equal(moved, x)
    torch.testing.assert_close(gram(moved), gram(x), atol=EXACT, rtol=0)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("source", [ONE, THREE], ids=["one camera", "three"])
@pytest.mark.parametrize("queries", ["none", "learned"])
def test_linear_attention_is_the_simplified_form(heads: int, divide: bool, source: FeatureShape, queries: str) -> None:
    """A5: O = Ø·Wq·Wkᵀ·(XᵀX)·Wv to 1e-12, so that the order of tokens cannot matter."""
    torch.manual_seed(0)
    reshaper = CrossAttention(
        source, (5, 2), dim=8, heads=heads, kernel="linear", divide_by_tokens=divide, token_encoding="none",
        query_encoding=queries, attention_only=True,
    ).double()  # fmt: skip
    x = doubles(2, source.cameras, 8, 3, 4)
    out = reshaper(x)
    torch.testing.assert_close(from_gram(reshaper, gram(x)), out, atol=EXACT, rtol=0)
    q, k, v = (getattr(reshaper.attention, f"to_{name}").weight.detach().numpy().T for name in "qkv")
    tokens = x.numpy().transpose(0, 1, 3, 4, 2).reshape(2, -1, 8)
    query = reshaper.encode_queries(reshaper.query).detach().numpy()
    for a in range(heads):
        part = slice(8 // heads * a, 8 // heads * (a + 1))
        expected = query @ q[:, part] @ k[:, part].T @ tokens.transpose(0, 2, 1) @ tokens @ v[:, part]
        expected = expected / tokens.shape[1] if divide else expected
        np.testing.assert_allclose(out.detach().flatten(2).mT[..., part].numpy(), expected, atol=EXACT)


@pytest.mark.parametrize(
    "options", [{"kernel": "softmax"}, {"attention_only": False}, {"token_encoding": "sinusoidal"}]
)
def test_other_attention_has_no_simplified_form(options) -> None:
    options = {"kernel": "linear", "attention_only": True, "token_encoding": "none"} | options
    with pytest.raises(InputError, match="depends on more than XᵀX"):
        from_gram(CrossAttention(ONE, (5, 2), dim=8, heads=1, **options), torch.zeros(1, 8, 8))


def test_attention_without_encodings_ignores_word_order() -> None:
    """The article's example, A10 and A11: a single head without encodings cannot tell who chases whom."""
    cat, chases, dog = doubles(3, 8, seed=7)
    words = FeatureShape(channels=8, height=1, width=3)

    def tell_apart(reshaper: Reshaper) -> float:
        one, other = (
            reshaper.double()(torch.stack(sentence, -1)[None, :, None]).detach()
            for sentence in ((cat, chases, dog), (dog, chases, cat))
        )
        return ((one - other).norm() / one.norm()).item()

    torch.manual_seed(0)
    for kernel in ("softmax", "linear"):
        options = {"dim": 8, "heads": 1, "attention_only": True, "kernel": kernel}
        assert tell_apart(CrossAttention(words, (1, 2), token_encoding="none", **options)) < EXACT
        assert tell_apart(CrossAttention(words, (1, 2), token_encoding="sinusoidal", **options)) > 0.01
    assert tell_apart(MLP(words, (1, 2))) > 0.01
    spoken = SelfAttention(words, (1, 3), dim=8, heads=1, attention_only=True, token_encoding="none").double()
    sentence = torch.stack([cat, chases, dog], -1)[None, :, None]
    mirrored = torch.tensor([2, 1, 0])
    assert permutation_error(spoken, sentence, mirrored, permute_output=True) < EXACT  # every word has the same output
    assert permutation_error(spoken, sentence, mirrored) > 0.01


GRID = BEVGrid((0.0, 6.0), (-4.0, 4.0), 1.0)


def batches(count: int = 3) -> list[BEVBatch]:
    """Return images of 3×4 whose tokens are the pixels, and targets on 6×8 cells."""
    random = torch.Generator().manual_seed(4)
    made = []
    for _ in range(count):
        images = torch.rand(2, 1, 3, 3, 4, generator=random)
        target, valid = (torch.rand(2, 1, *GRID.shape, generator=random) < share for share in (0.4, 0.8))
        made.append(batch_of(images, rig(1), target, valid))
    return made


def whole_model(reshaper: Reshaper, seen: list | None = None) -> BEVModel:
    class Encoder(nn.Module):
        def forward(self, images):
            if seen is not None:
                seen.append(images)
            return images

    class Head(nn.Module):
        def forward(self, bev):
            mean = bev.mean(1, keepdim=True)
            return mean - mean.mean((2, 3), keepdim=True)  # about half of the cells are positive

    return BEVModel(Encoder(), reshaper, {"segmentation": nn.Sequential(Head(), nn.Upsample(GRID.shape))})


def iou_oracle(model: BEVModel, given: list[BEVBatch], permutation: Tensor | None) -> float:
    both = either = 0
    for batch in given:
        target = batch.targets["segmentation"]
        images = batch.images if permutation is None else permute_tokens(batch.images, permutation)
        predicted = model(images, batch.cameras).heads["segmentation"].detach() >= 0
        both += (predicted & target.value & target.valid).sum().item()
        either += ((predicted | target.value) & target.valid).sum().item()
    return both / either


def test_iou_when_permuted_is_that_of_permuted_features() -> None:
    torch.manual_seed(0)
    source, seen, permutation = FeatureShape(3, 3, 4), [], shuffled(12)
    model = whole_model(MLP(source, (3, 4), activation="none"), seen).train()
    metric = BEVIoU(["road"], GRID)
    found = iou_when_permuted(model, iter(batches()), metric, permutation)
    assert len(seen) == 6  # every image is encoded once intact and once as unrelated
    assert set(found) == {"intact", "permuted", "unrelated"}
    model.eval()
    other = [replace(batch, images=torch.cat([batch.images[-1:], batch.images[:-1]])) for batch in batches()]
    assert found["unrelated"]["iou/road"] == pytest.approx(iou_oracle(model, other, None))
    assert found["unrelated"]["iou/road"] != found["intact"]["iou/road"]
    intact, permuted = (iou_oracle(model, batches(), order) for order in (None, permutation))
    assert intact != permuted
    assert found["intact"]["iou/road"] == pytest.approx(intact)
    assert found["permuted"]["iou/mean"] == pytest.approx(permuted)
    assert metric.counts.sum() == 0


def test_unrelated_images_of_single_samples_are_the_previous_ones() -> None:
    torch.manual_seed(0)
    model = whole_model(MLP(FeatureShape(3, 3, 4), (3, 4), activation="none"), [])
    metric, permutation = BEVIoU(["road"], GRID), shuffled(12)
    first, second, *_ = batches()
    single = second[:1]
    found = iou_when_permuted(model, [first, single], metric, permutation)["unrelated"]["iou/road"]
    model.eval()
    images = torch.cat([first.images[-1:], first.images[:-1]]), first.images[-1:]
    other = [replace(batch, images=image) for batch, image in zip([first, single], images, strict=True)]
    assert found == pytest.approx(iou_oracle(model, other, None))
    with pytest.raises(InputError, match="the first batch has one sample"):
        iou_when_permuted(model, [single], metric, permutation)


def test_iou_when_permuted_with_encodings_moving_along() -> None:
    torch.manual_seed(0)
    model = whole_model(CrossAttention(FeatureShape(3, 3, 4), (3, 4), dim=8, heads=2, token_encoding="learned"))
    found = iou_when_permuted(model, batches(), BEVIoU(["road"], GRID), shuffled(12))
    assert found["encodings_moved"]["iou/road"] == found["intact"]["iou/road"]
    assert found["permuted"]["iou/road"] != found["intact"]["iou/road"]
    assert not any(module._forward_hooks for module in model.modules())
    trained_permuted = whole_model(PermutedReshaper(model.reshaper, shuffled(12, seed=1)))
    again = iou_when_permuted(trained_permuted, batches(), BEVIoU(["road"], GRID), shuffled(12, seed=1).argsort())
    assert set(again) == {"intact", "permuted", "unrelated"}  # its encodings are not registered
    assert again["permuted"]["iou/road"] == found["intact"]["iou/road"]  # put back in order


def test_unsuitable_batches_and_models_are_refused() -> None:
    model, metric = whole_model(StridedConv(FeatureShape(3, 3, 4), (3, 4))), BEVIoU(["road"], GRID)
    with pytest.raises(InputError, match="there is no batch"):
        iou_when_permuted(model, [], metric, shuffled(12))
    raw = [replace(batch, images=(batch.images * 255).byte()) for batch in batches(1)]
    with pytest.raises(InputError, match=r"torch.uint8.*on_after_batch_transfer"):
        iou_when_permuted(model, raw, metric, shuffled(12))
    with pytest.raises(InputError, match="derive it from Reshaper"):
        iou_when_permuted(whole_model(nn.Identity()), batches(1), metric, shuffled(12))


def test_invalid_permutations_are_refused() -> None:
    x = doubles(2, 3, 8, 3, 4)
    with pytest.raises(InputError, match=r"3 cameras of 12 tokens; give torch.randperm\(12\), or of all 36"):
        permute_tokens(x, torch.arange(24))
    for wrong in (torch.arange(12) + 1, torch.arange(12).clamp(max=10)):
        with pytest.raises(InputError, match="each of 0 to 11 once"):
            PermutedReshaper(mlp(THREE), wrong)


def test_undefined_comparisons_are_refused() -> None:
    x, permutation = doubles(2, 8, 3, 4), shuffled(12)
    with pytest.raises(InputError, match=r"3×4 features into \(5, 2\) cells"):
        permutation_error(mlp(), x, permutation, permute_output=True)
    with pytest.raises(InputError, match="1 sample has no other"):
        permutation_error(mlp(), x[:1], permutation, relative_to="unrelated")
    silent = mlp()
    with torch.no_grad():
        silent.layers[0].weight.zero_()
    with pytest.raises(InputError, match="MLP: its output is 0 everywhere"):
        permutation_error(silent, x, permutation)
    with torch.no_grad():
        silent.layers[0].bias.fill_(1.0)
    with pytest.raises(InputError, match="the same for all samples"):
        permutation_error(silent, x, permutation, relative_to="unrelated")
