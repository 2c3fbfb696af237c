"""The methods of the study against their equations written out, and their training against torch's own optimizer."""

import math

import pytest
import torch
from rounding import EXACT
from torch import nn
from torch.nn import functional as F

from bevreshape.experiments.models import METHODS, AdaptiveMLP, Attention, Query, waves
from bevreshape.experiments.training import Recipe, RunningAverage, StackedAdamW, error, loss, train
from bevreshape.experiments.world import Batch, Pose, Stream, World, stack
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import CrossAttention, FeatureShape

SOURCE = FeatureShape(4, 4, 8, 1, 16, offset_px=7.5)
GRID = BEVGrid((0.0, 16.0), (-8.0, 8.0), 2.0)


def batch_of(world: World, seeds: int = 2, count: int = 3) -> Batch:
    return stack([Stream(world, (seed,)).next(count) for seed in range(seeds)])


@pytest.mark.parametrize("pose", ["unknown", "visible", "given"])
@pytest.mark.parametrize("method", METHODS)
def test_output_is_a_times_x_times_the_read_out(method: str, pose: str) -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0, pose=pose)  # type: ignore[arg-type]
    model, batch = METHODS[method](world, [5, 6]), batch_of(world)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    a = model.weights(batch).expand(2, 3, -1, -1)
    found = model(batch)
    assert found.shape == batch.target.shape
    for s in range(2):
        for b in range(3):
            torch.testing.assert_close(found[s, b], a[s, b] @ batch.x[s, b] @ model.read_out[s], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "on_x", "on_pose"),
    [
        ("mlp", False, False),
        ("adaptive", False, True),
        ("positional", False, False),
        ("attention", True, False),
        ("posed", True, True),
        ("continuous", True, False),
    ],
)
def test_what_a_depends_on(method: str, on_x: bool, on_pose: bool) -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0, pose="given")
    model, batch = METHODS[method](world, [0]), batch_of(world, 1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    before = model.weights(batch)
    assert torch.equal(before, model.weights(batch._replace(x=batch.x + 1))) != on_x
    moved = batch._replace(pose=batch.pose + 0.1, directions=batch.directions + 0.1)
    assert torch.equal(before, model.weights(moved)) != on_pose


def test_the_adaptive_map_is_w_times_a_kronecker_product() -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0, pose="given")
    model, batch = AdaptiveMLP(world, [0]), batch_of(world, 1, 1)
    torch.testing.assert_close(model.weights(batch)[0, 0], model.w[0])  # at first the pose changes nothing
    torch.nn.init.normal_(model.outer, std=0.3)
    numbers = batch.pose[0, 0] * 4
    angles = (numbers[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).flatten()
    hidden = F.gelu(torch.cat([numbers, angles.sin(), angles.cos()]) @ model.inner[0] + model.bias[0])[0]
    found = hidden @ model.outer[0]
    rows, cols = found[:16].view(4, 4) + torch.eye(4), found[16:].view(8, 8) + torch.eye(8)
    torch.testing.assert_close(model.weights(batch)[0, 0], model.w[0] @ torch.kron(rows, cols), atol=1e-5, rtol=1e-5)


def test_the_adaptive_map_reads_numbers_from_x_that_stand_for_the_pose() -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0, pose="visible")
    model, batch = AdaptiveMLP(world, [3, 4]), batch_of(world, 2, 2)
    assert len(model.of_tokens.unique()) == 1  # at first all tokens count the same
    torch.nn.init.normal_(model.of_tokens)
    found = model.read_from(batch.x)
    for s in range(2):
        whole = model.of_tokens[s][:, None] * model.of_channels[s]  # t c n
        for b in range(2):
            expected = batch.x[s, b].flatten() @ whole.flatten(0, 1) / math.sqrt(world.source.tokens)
            torch.testing.assert_close(found[s, b], expected, atol=1e-5, rtol=1e-4)
    torch.nn.init.normal_(model.outer, std=0.3)
    given = batch._replace(pose=batch.pose + 1)
    assert torch.equal(model.weights(batch), model.weights(given))  # the pose itself is not used


def test_attention_is_the_cross_attention_of_the_program() -> None:
    world = World(FeatureShape(16, 4, 8, 1, 16, offset_px=7.5), GRID)
    model, batch = Attention(world, [0], dim=16), batch_of(world, 1)
    cells = len(world.cells)
    theirs = CrossAttention(world.source, (1, cells), dim=16, heads=1, attention_only=True, query_encoding="none")
    with torch.no_grad():
        theirs.query.copy_(model.query[0])
        theirs.attention.to_q.weight.copy_(model.to_q[0].T)
        # it adds the encoding before the projection, which is one for both
        theirs.attention.to_k.weight.copy_(model.content[0].T)  # type: ignore[index]
        model.place.copy_(model.content)  # type: ignore[union-attr, arg-type]
        theirs.attention.to_v.weight.copy_(model.read_out[0].T)
    features = batch.x[0].mT.unflatten(-1, (4, 8))
    expected = theirs(features)  # b 16 1 q
    torch.testing.assert_close(model(batch)[0].mT[:, :, None], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pose", ["unknown", "visible", "given"])
def test_keys_are_normalised_where_the_pose_is_in_x(pose: Pose) -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0, pose=pose)
    model, batch = Attention(world, [5, 6]), batch_of(world)
    found = model.keys(batch)
    for s in range(2):
        for b in range(3):
            k = batch.x[s, b] @ model.content[s] + model.places[0] @ model.place[s]  # type: ignore[index]
            if pose == "visible":
                mean = k.mean(1, keepdim=True)
                k = (k - mean) / (k - mean).square().mean(1, keepdim=True).sqrt()
            torch.testing.assert_close(found[s, b], k, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["positional", "attention", "posed", "continuous"])
def test_a_direct_query_among_projected_ones_is_one_without_projection(method: str) -> None:
    world = World(SOURCE, GRID, sigma_deg=4.0, pose="given")
    batch = batch_of(world, 3)
    mixed = METHODS[method](world, [4, 5, 6], forms=["direct", "projected", "direct"])
    alone = METHODS[method](world, [6], forms=["direct"])
    assert {name for name, _ in mixed.named_parameters()} - {name for name, _ in alone.named_parameters()} == {"to_q"}
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter[0], dict(mixed.named_parameters())[name][2])
    torch.testing.assert_close(mixed(batch)[2], alone(Batch(*(part[2:] for part in batch)))[0])
    loss(mixed(batch), batch).sum().backward()
    gradients = mixed.to_q.grad  # type: ignore[union-attr]
    assert [bool(one.any()) for one in gradients] == [False, True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize("query", ["direct", "projected"])
def test_either_query_is_trained_as_a_plain_loop_does_it(query: Query) -> None:
    world, steps = World(SOURCE, GRID), 40
    recipes = [
        Recipe(0.01, query="projected"),
        Recipe(0.03, decay=0.1, query="direct"),
        Recipe(0.02, query="projected"),
    ]
    number = 1 if query == "direct" else 2
    model = METHODS["attention"](world, [7, 7, 7], forms=[recipe.query for recipe in recipes])
    assert isinstance(model, Attention)
    own = {name: nn.Parameter(p[number].detach().clone()) for name, p in model.named_parameters()}
    if query == "direct":
        del own["to_q"]
    held_out = stack([Stream(world, (0, 2)).next(16)])
    train(model, [Stream(world, (0, 1))], recipes, held_out, batch=4, at=(steps,))  # leaves the averages

    optimizer = torch.optim.AdamW(own.values(), lr=recipes[number].rate, weight_decay=recipes[number].decay)
    lessons, seen = Stream(world, (0, 1)), []
    for _ in range(steps):
        lesson = Batch(*lessons.next(4))
        q = own["query"] @ own["to_q"] if query == "projected" else own["query"]
        k = lesson.x @ own["content"] + model.places[0] @ own["place"]
        output = (q @ k.mT / 8).softmax(-1) @ (lesson.x @ own["read_out"])
        optimizer.zero_grad()
        (output - lesson.target)[lesson.visible].square().mean().backward()
        optimizer.step()
        seen.append({name: p.detach().clone() for name, p in own.items()})
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    weights = torch.exp(torch.lgamma(t + RunningAverage.POWER) - torch.lgamma(t))
    for name, parameter in model.named_parameters():
        if name in own:
            expected = sum(w * one[name] for w, one in zip((weights / weights.sum()).tolist(), seen, strict=True))
            torch.testing.assert_close(parameter[number].detach(), expected, atol=2e-3, rtol=0)
    if query == "direct":
        assert torch.equal(model.q()[number], model.queries()[number])


def test_waves_are_sines_of_the_angles() -> None:
    angles = torch.tensor([[[[0.3, -0.2]]]])
    found = waves(angles, 8)[0, 0, 0]
    expected = [
        f(a * w) for f in (torch.sin, torch.cos) for a in (torch.tensor(0.3), torch.tensor(-0.2)) for w in (1, 40)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_stacked_adamw_is_torchs_run_by_run() -> None:
    generator = torch.Generator().manual_seed(0)
    start, wanted = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 5, 4), (5, 4)))
    recipes = [Recipe(0.1), Recipe(0.01, decay=0.5), Recipe(0.03, warmup=10, decay=0.1)]
    ours = torch.nn.Parameter(start.clone())
    optimizer = StackedAdamW([ours], recipes)
    for _ in range(25):
        (ours - wanted).pow(4).sum().backward()
        optimizer.step()
    for run, recipe in enumerate(recipes):
        theirs = torch.nn.Parameter(start[run].clone())
        reference = torch.optim.AdamW([theirs], lr=recipe.rate, weight_decay=recipe.decay)
        for step in range(25):
            reference.param_groups[0]["lr"] = recipe.rate * min(1.0, (step + 1) / max(recipe.warmup, 1))
            reference.zero_grad()
            (theirs - wanted).pow(4).sum().backward()
            reference.step()
        torch.testing.assert_close(ours[run].detach(), theirs.detach(), **EXACT)


def test_the_running_average_weighs_steps_polynomially() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = RunningAverage([parameter])
    for step in range(1, 31):
        with torch.no_grad():
            parameter.fill_(step)
        average.update()
    # Shamir and Zhang 2013, section 4: weights ∝ Γ(t + η) / Γ(t)
    t = torch.arange(1, 31, dtype=torch.float64)
    weights = torch.exp(torch.lgamma(t + RunningAverage.POWER) - torch.lgamma(t))
    assert average.averages[0].item() == pytest.approx(((weights * t).sum() / weights.sum()).item(), rel=1e-5)
    average.swap()
    assert parameter.item() != 30.0
    average.swap()
    assert parameter.item() == 30.0


def test_runs_side_by_side_equal_single_runs() -> None:
    world = World(SOURCE, GRID, sigma_deg=2.0, pose="given")
    recipes = [Recipe(0.01), Recipe(0.01, query="direct"), Recipe(0.03, warmup=5)]

    def trained(seeds: list[int], own: list[Recipe]) -> torch.Tensor:
        streams = [Stream(world, (seed, 1), samples=16) for seed in seeds]
        held_out = stack([Stream(world, (seed, 2)).next(32) for seed in seeds])
        initial = [seed for seed in seeds for _ in range(len(own) // len(seeds))]
        model = METHODS["posed"](world, initial, forms=[recipe.query for recipe in own])
        return train(model, streams, own, held_out, batch=4, at=(5, 20))

    together = trained([0, 1], [recipe for _ in range(2) for recipe in recipes])
    for number, (seed, recipe) in enumerate((seed, recipe) for seed in (0, 1) for recipe in recipes):
        torch.testing.assert_close(together[number], trained([seed], [recipe])[0], rtol=1e-3, atol=1e-6)


def test_error_is_relative_to_the_variance_of_the_visible_cells() -> None:
    world = World(SOURCE, GRID, sigma_deg=8.0)
    batch, model = batch_of(world, 2, 150), METHODS["mlp"](world, [0, 1])
    found = error(model, batch)
    output = model(batch).detach().double()
    for s in range(2):
        seen = batch.visible[s]
        target, made = batch.target[s][seen].double(), output[s][seen]  # n o
        expected = (made - target).square().sum() / (target - target.mean(0)).square().sum()
        assert found[s].item() == pytest.approx(expected.item(), rel=1e-5)
        missed = (output[s][seen] - batch.target[s][seen]).square().mean()
        assert loss(model(batch), batch)[s].item() == pytest.approx(missed.item(), rel=1e-4)


@pytest.mark.slow
def test_a_fixed_camera_is_learned_by_all() -> None:
    world = World(SOURCE, GRID)
    held_out = stack([Stream(world, (0, 2)).next(64)])
    for method, rate in (("mlp", 0.03), ("positional", 0.01), ("attention", 0.01)):
        found = train(
            METHODS[method](world, [0]), [Stream(world, (0, 1))], [Recipe(rate)], held_out, batch=16, at=(250,)
        )
        assert found.item() < 0.1
