"""Instruments on methods whose matrix is known."""

import json

import pytest
import torch

from bevreshape.experiments.instruments import Examined, effective_rank, entropy, examine, jacobian
from bevreshape.experiments.models import MLP, Attention
from bevreshape.experiments.regrid import resizing_error
from bevreshape.experiments.world import Stream, World, stack
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape

WORLD = World(FeatureShape(3, 4, 6, 1, 16, offset_px=7.5), BEVGrid((0.0, 16.0), (-8.0, 8.0), 2.0))


def samples(count: int = 4):
    return stack([Stream(WORLD, (seed,)).next(count) for seed in (0, 1)])


def test_an_mlp_that_holds_the_sampling_matrix_is_at_distance_0() -> None:
    model, sampled = MLP(WORLD, [0, 1]), WORLD.sampling(WORLD.rig)[0]
    with torch.no_grad():
        model.w.copy_(sampled)
        model.read_out.copy_(torch.eye(3))
    for found in examine(model, samples(256)):
        assert found.spread_of_a == found.spread_of_jacobian == 0.0
        assert found.distance < 1e-6
        assert found.locality < 1e-5
        bits = -(sampled * sampled.clamp(min=1e-12).log2()).sum(-1).mean().item()
        assert found.entropy == pytest.approx(bits, abs=1e-4)
        assert found.rank == pytest.approx(effective_rank(sampled), rel=1e-4)
        assert found.finer == pytest.approx(resizing_error(WORLD), rel=0.1)


def test_a_model_that_ignores_x_is_at_distance_1() -> None:
    model = MLP(WORLD, [0, 1])
    with torch.no_grad():
        model.w.fill_(1e-9)
    assert examine(model, samples())[0].distance == pytest.approx(1.0, abs=1e-4)
    assert examine(model, samples())[0].entropy == pytest.approx(torch.tensor(24.0).log2().item(), abs=1e-4)


def test_the_jacobian_is_that_of_finite_differences() -> None:
    model, batch = Attention(WORLD, [0, 1], dim=8), samples(2)
    cells = torch.tensor([1, 4])
    found = jacobian(model, batch, cells)  # s b q o t c
    moved = batch.x.clone()
    moved[:, :, 5, 2] += 1e-2
    less = batch.x.clone()
    less[:, :, 5, 2] -= 1e-2
    with torch.no_grad():
        slope = (model(batch._replace(x=moved)) - model(batch._replace(x=less)))[:, :, cells] / 2e-2
    torch.testing.assert_close(found[..., 5, 2], slope, atol=2e-3, rtol=1e-2)


def test_attention_with_content_in_its_keys_follows_x() -> None:
    content, place = Attention(WORLD, [0, 1], dim=8), Attention(WORLD, [0, 1], content=False, dim=8)
    assert examine(content, samples())[0].spread_of_a > 0.1
    assert examine(place, samples())[0].spread_of_a == 0.0


def test_effective_rank_counts_equal_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (7, 9))
    for rank in (1, 3, 7):
        matrix = left[:, :rank] @ right[:rank]
        assert effective_rank(matrix * 5) == pytest.approx(rank, rel=1e-4)
    # two singular values, 3 and 1: p = ¾ and ¼
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 3**0.75)


def test_entropy_of_equal_shares_is_the_logarithm_of_their_number() -> None:
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(rows), torch.tensor([2.0, 1.0, 0.0]))


def test_a_run_that_diverged_is_infinite_and_the_others_are_not() -> None:
    model = Attention(WORLD, [0, 1], dim=8)
    with torch.no_grad():
        model.to_q[0] = float("nan")
    diverged, sound = examine(model, samples())
    assert set(vars(diverged).values()) == {float("inf")}
    assert max(vars(sound).values()) < float("inf")
    for one in (diverged, sound):
        assert Examined.from_plain(json.loads(json.dumps(one.to_plain(), allow_nan=False))).rank == pytest.approx(
            one.rank, rel=1e-3
        )
