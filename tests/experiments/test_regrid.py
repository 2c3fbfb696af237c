"""Another grid: resizing against torch's own, and queries asked for other cells."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bevreshape.experiments.models import MLP, Attention, ContinuousAttention
from bevreshape.experiments.regrid import finer, finer_errors, resizing_error
from bevreshape.experiments.world import Batch, Stream, World, stack
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape

WORLD = World(FeatureShape(3, 6, 10, 1, 16, offset_px=7.5), BEVGrid((0.0, 16.0), (-8.0, 8.0), 2.0))


def samples(count: int = 4) -> Batch:
    return stack([Stream(WORLD, (seed,)).next(count) for seed in (0, 1)])


def true_map() -> MLP:
    model = MLP(WORLD, [0, 1])
    with torch.no_grad():
        model.w.copy_(WORLD.sampling(WORLD.rig)[0])
        model.read_out.copy_(torch.eye(3))
    return model


def test_resizing_is_that_of_images() -> None:
    other, among, resize = finer(WORLD)
    image = torch.randn(1, 1, *WORLD.grid.shape, generator=torch.Generator().manual_seed(0))
    centers = WORLD.grid.centers().flatten(0, 1)
    seen = [next(i for i, center in enumerate(centers) if torch.equal(center, cell)) for cell in WORLD.cells]
    expected = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False).flatten()
    places = [
        next(i for i, center in enumerate(other.grid.centers().flatten(0, 1)) if torch.equal(center, other.cells[f]))
        for f in among
    ]
    assert len(places) > 10
    torch.testing.assert_close(resize @ image.flatten()[seen], expected[places])
    torch.testing.assert_close(resize.sum(-1), torch.ones(len(places)))


def test_the_true_map_resized_misses_what_the_closed_form_says() -> None:
    batch = samples(4000)
    found = finer_errors(true_map(), batch)
    torch.testing.assert_close(found, torch.full_like(found, resizing_error(WORLD)), rtol=0.03, atol=0)
    assert 0.01 < resizing_error(WORLD) < 0.5


def test_queries_that_attend_to_the_true_tokens_are_right_on_any_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ContinuousAttention(WORLD, [0, 1], dim=8)
    with torch.no_grad():
        model.read_out.copy_(torch.eye(3))
    monkeypatch.setattr(
        ContinuousAttention,
        "weights",
        lambda self, batch: self.world.sampling(self.world.rig)[None].expand(2, 1, -1, -1),
    )
    assert finer_errors(model, samples()).max() < 1e-10


def test_queries_are_a_function_of_the_place_alone() -> None:
    model = ContinuousAttention(WORLD, [0, 1], dim=8)
    shifted = replace(WORLD, grid=BEVGrid((0.0, 12.0), (-8.0, 8.0), 2.0))  # some of the same cells
    here, there = model.queries(), model.on(shifted).queries()
    shared = [(i, j) for i, a in enumerate(WORLD.cells) for j, b in enumerate(shifted.cells) if torch.equal(a, b)]
    assert 0 < len(shared) < len(WORLD.cells)
    for i, j in shared:
        torch.testing.assert_close(there[:, j], here[:, i])
    assert model.on(finer(WORLD).world)(samples()).shape == (2, 4, len(finer(WORLD).world.cells), 3)
    assert model(samples()).shape == (2, 4, len(WORLD.cells), 3)  # which is what it was


def test_it_differs_from_attention_in_its_queries_alone() -> None:
    continuous, learned = (of(WORLD, [0, 1], dim=8) for of in (ContinuousAttention, Attention))
    with torch.no_grad():
        for name, parameter in learned.named_parameters():
            parameter.copy_(continuous.queries() if name == "query" else dict(continuous.named_parameters())[name])
    torch.testing.assert_close(continuous(samples()), learned(samples()))
