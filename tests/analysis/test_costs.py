"""Costs against values counted by hand."""

import pytest
import torch
import yaml
from commands import ROOT
from torch import nn
from torch.nn import functional as F

from bevreshape.analysis import costs
from bevreshape.analysis.costs import Workload, measure, ring, scaling_exponent
from bevreshape.config.build_model import build_reshaper
from bevreshape.geometry import BEVGrid, ground_pixels
from bevreshape.ops.flops import count_flops
from bevreshape.ops.memory import peak_bytes
from bevreshape.reporting.overview import flops_of
from bevreshape.reshapers import MLP, FeatureShape

CPU = torch.device("cpu")


def test_flops_of_kernels_that_torch_omits() -> None:
    a, b = torch.randn(30, 40), torch.randn(40, 50)
    assert count_flops(lambda: a @ b) == 2 * 30 * 40 * 50
    q, k, v = (torch.randn(2, 4, tokens, 8) for tokens in (10, 33, 33))
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * 4 * 2 * (10 * 33 * 8) * 2
    rows, taps, weights = torch.randn(20, 16), torch.randint(20, (7, 3)), torch.rand(7, 3)
    bag = lambda: F.embedding_bag(taps, rows, per_sample_weights=weights, mode="sum")  # noqa: E731
    assert count_flops(bag) == 2 * 7 * 3 * 16
    image, places = torch.randn(1, 5, 6, 7), torch.rand(1, 2, 3, 2)
    assert count_flops(lambda: F.grid_sample(image, places, align_corners=True)) == 8 * 5 * 2 * 3


def test_flops_of_attention_backward_are_five_products() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 16 * 16 * 8
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == (2 + 5) * product


def test_backward_flops_of_kernels_that_torch_omits() -> None:
    rows = torch.randn(20, 16, requires_grad=True)
    taps, weights = torch.randint(20, (7, 3)), torch.rand(7, 3, requires_grad=True)
    bag = lambda: F.embedding_bag(taps, rows, per_sample_weights=weights, mode="sum").sum().backward()  # noqa: E731
    assert count_flops(bag) == 3 * 2 * 7 * 3 * 16
    image, places = torch.randn(1, 5, 6, 7, requires_grad=True), torch.rand(1, 2, 3, 2, requires_grad=True)
    read = lambda: F.grid_sample(image, places, align_corners=True).sum().backward()  # noqa: E731
    assert count_flops(read) == 3 * 8 * 5 * 2 * 3


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "reshaper").glob("*.yaml")))
def test_every_reshaper_is_counted_without_gradients(name: str) -> None:
    node = yaml.safe_load((ROOT / "conf" / "reshaper" / f"{name}.yaml").read_text())
    source = FeatureShape(8, 8, 16, stride=16, offset_px=7.5)
    reshaper = build_reshaper(node, (source,), BEVGrid((0, 16), (-16, 16), 2.0))
    assert flops_of(reshaper) > 0
    assert all(p.requires_grad for p in reshaper.parameters())


def test_of_matmul_uses_products_of_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = MLP(FeatureShape(8, 4, 6), (5, 5))
    forward, backward = [(3.0, 0.0), (2.0, 0.0), (0.5, 0.0)], [(8.0, 0.0), (4.0, 0.0)]  # s: ours, product, copy
    times = iter((forward, backward))
    monkeypatch.setattr(costs, "time_in_turn", lambda *_: next(times))
    (cost,) = measure([Workload(mlp, (torch.randn(3, 1, 8, 4, 6), None))], rounds=1, backward=True)
    product = 2 * costs.PRODUCT_SIZE["cpu"] ** 3
    assert cost.matmul_flops_per_s == product / 2
    assert cost.of_matmul == pytest.approx(cost.flops / 3 / (product / 2))
    assert cost.step_of_matmul == pytest.approx(cost.step_flops / 8 / (product / 4))
    copied = 2 * costs.COPIED_BYTES["cpu"] / 0.5  # read and written
    assert cost.copy_bytes_per_s == copied
    assert cost.least_bytes == 4 * (3 * 8 * 24 + 24 * 25 + 25 + 3 * 8 * 25)  # input, W, b, output, in float32
    assert cost.floor_s == pytest.approx(max(cost.flops / (product / 2), cost.least_bytes / copied))


def test_cost_of_an_mlp() -> None:
    mlp = MLP(FeatureShape(8, 4, 6), (5, 5))
    workload = Workload(mlp, (torch.randn(3, 1, 8, 4, 6), None))
    cost = measure([workload], rounds=2, backward=True)[0]
    assert cost.parameters == 24 * 25 + 25
    assert cost.flops == 2 * 3 * 8 * 24 * 25
    assert cost.step_flops == 3 * cost.flops  # and with respect to the weights and to the input
    assert 0 < cost.forward_s < cost.step_s
    output = 3 * 8 * 25 * 4
    assert output <= cost.forward_bytes <= 4 * output
    assert cost.step_bytes >= cost.forward_bytes
    assert all(p.grad is None for p in mlp.parameters())
    assert not workload.arguments[0].requires_grad


def test_peak_memory() -> None:
    def call() -> None:
        first = torch.zeros(1000, 1000)  # 4 MB
        del first
        second = torch.zeros(500, 1000)  # 2 MB
        third = second + 1  # and 2 MB
        del second, third

    assert peak_bytes(call, CPU) == pytest.approx(4e6, rel=0.01)


def test_scaling_exponent() -> None:
    assert scaling_exponent([1.0, 2.0, 4.0, 8.0], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2.0)


@pytest.mark.parametrize("cameras", [3, 6])
def test_ring_covers_all_directions_and_one_camera_faces_ahead(cameras: int) -> None:
    around = BEVGrid((-20, 20), (-20, 20), 1.0)
    far = around.centers().norm(dim=-1) > 12
    seen = ground_pixels(ring(cameras, (320, 480), 1, CPU), around)[1][0]
    assert seen.any(0)[far].float().mean() > (0.8 if cameras == 3 else 0.99)
    single = ground_pixels(ring(1, (320, 480), 1, CPU), around)[1][0, 0]
    assert single[:10, 15:25].all()
    assert not single[20:].any()


def test_costs_keep_the_order_of_workloads() -> None:
    """A module with ten times the work takes longer, and its cost is at its position in the list."""

    class Repeat(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.times = times

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.times):
                x = x @ x
            return x

    x = torch.rand(64, 64) / 64
    few, many = measure([Workload(Repeat(1), (x,)), Workload(Repeat(40), (x,))], rounds=3, backward=False)
    assert many.flops == 40 * few.flops
    assert many.forward_s > few.forward_s
    assert few.step_s != few.step_s
    assert few.step_of_matmul != few.step_of_matmul


def test_any_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one without sizes of its own, which the processor stands for here."""
    monkeypatch.setattr(costs, "PRODUCT_SIZE", {"cuda": 64})
    monkeypatch.setattr(costs, "COPIED_BYTES", {"cuda": 2**20})
    workload = Workload(MLP(FeatureShape(8, 4, 6), (5, 5)), (torch.zeros(1, 1, 8, 4, 6),))
    (cost,) = measure([workload], rounds=1, backward=False)
    assert cost.matmul_flops_per_s > 0
    assert cost.copy_bytes_per_s > 0
