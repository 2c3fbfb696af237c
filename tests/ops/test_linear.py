from pathlib import Path

import pytest
import torch
from rounding import EXACT, rounding
from torch.func import grad as gradient
from torch.func import vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bevreshape.ops import linear as products
from bevreshape.ops.linear import Linear, grouped_linear, linear

SHAPES = [(300, 400, 500), (7, 2000, 900), (3000, 64, 64), (130, 700, 600)]  # rows, k, out: wide, few and many rows


def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with one entry per call of oneDNN, which is used here on every processor."""
    onednn, calls = products.onednn_linear(), []
    if onednn is None:
        pytest.skip("this torch has no linear layer of oneDNN")
    monkeypatch.setattr(products, "processor_maker", lambda: "AuthenticAMD")

    def counted(*args):
        calls.append(1)
        return onednn(*args)

    monkeypatch.setattr(products, "onednn_linear", lambda: counted)
    return calls


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


TERMS = 3000
"""Number of terms of the longest sum here."""


def close(ours: torch.Tensor, exact: torch.Tensor, largest: torch.Tensor | None = None) -> None:
    """Compare with float64; ``largest`` holds the sums before an activation."""
    assert exact.dtype == torch.float64
    assert ours.shape == exact.shape
    atol = rounding(TERMS, exact if largest is None else largest)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "k", "out"), SHAPES)
def test_products_and_gradients_equal_float64(rows, k, out, bias, monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    given = [drawn(2, rows // 2, k), drawn(out, k), *([drawn(out)] if bias else [])]
    wide = [x.detach().double().requires_grad_() for x in given]
    ours, exact = linear(*given), F.linear(*wide)
    assert calls
    close(ours, exact)
    towards = torch.randn(exact.shape)
    gradients = torch.autograd.grad(ours, given, towards)
    assert len(calls) == (3 if k * out >= products.WIDE else 2)
    for x, y in zip(gradients, torch.autograd.grad(exact, wide, towards.double()), strict=True):
        close(x, y)
        assert x.is_contiguous()  # in the parameter's layout, so the optimizer need not transpose it


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("rows", "k", "out"), SHAPES)
def test_grouped_linear_equals_separate_products(groups, rows, k, out, monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    given = [drawn(groups, rows, k), drawn(groups, out, k), drawn(groups, 1, out)]
    ours = grouped_linear(*given)
    assert len(calls) == groups
    towards = torch.randn(ours.shape)
    gradients = torch.autograd.grad(ours, given, towards)
    wide = k * out >= products.WIDE and (groups == 1 or rows >= products.FEW)
    assert len(calls) == groups * (3 if wide else 2)
    for group in range(groups):
        x, weight, bias = (part[group].detach().double().requires_grad_() for part in given)
        exact = x @ weight.mT + bias
        close(ours[group], exact)
        for mine, theirs in zip(
            gradients, torch.autograd.grad(exact, (x, weight, bias), towards[group].double()), strict=True
        ):
            close(mine[group], theirs)


def test_only_tensors_needed_by_gradients_are_saved(monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    x, weight, towards = torch.randn(200, 300), torch.randn(400, 300), torch.randn(200, 400)
    moving = x.clone().requires_grad_()
    kept = 2 * moving
    out = linear(kept, weight)  # a frozen layer, as in fine-tuning
    kept.detach().zero_()
    close(torch.autograd.grad(out, moving, towards)[0], 2 * towards.double() @ weight.double())
    moving = weight.clone().requires_grad_()
    kept = 2 * moving
    out = linear(x, kept)  # the first layer
    kept.detach().zero_()
    close(torch.autograd.grad(out, moving, towards)[0], 2 * towards.double().mT @ x.double())
    assert len(calls) == 3  # the gradient of a weight with fewer than WIDE elements is torch's own


def test_double_backward_and_batched_gradients(monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    x, weight = drawn(200, 300), drawn(400, 300)
    (first,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    wide = [y.detach().double().requires_grad_() for y in (x, weight)]
    (first,) = torch.autograd.grad((wide[0] @ wide[1].mT).square().sum(), wide[0], create_graph=True)
    close(second, torch.autograd.grad(first.sum(), wide[1])[0])
    assert len(calls) > 2
    towards = torch.randn(3, 200, 400)
    (found,) = torch.autograd.grad(linear(x, weight), x, towards, is_grads_batched=True)
    close(found, towards.double() @ weight.detach().double())


def test_non_contiguous_bias(monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 300, 400), torch.randn(2, 500, 400)
    for bias in (torch.randn(500, 3)[:, 1], torch.randn(1).expand(500)):
        close(linear(x, weight[0], bias), x.double() @ weight[0].mT.double() + bias)
    bias = torch.randn(500, 1, 2).permute(2, 1, 0)
    close(grouped_linear(x, weight, bias), x.double() @ weight.mT.double() + bias)
    assert len(calls) == 4


@pytest.mark.usefixtures("no_shape_checks")
def test_mismatched_sizes_raise_torchs_errors() -> None:
    x, weight = torch.randn(300, 400), torch.randn(500, 400)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x, weight.mT)
    one = torch.randn(1)
    close(linear(x, weight, one), x.double() @ weight.mT.double() + one)
    shared = torch.randn(1, 1, 500)  # one bias of two groups
    found = grouped_linear(x.expand(2, -1, -1), weight.expand(2, -1, -1), shared)
    close(found[1], x.double() @ weight.mT.double() + shared[0])
    assert grouped_linear(torch.randn(0, 300, 400), torch.randn(0, 500, 400)).shape == (0, 300, 500)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in torch's own forward mode
@pytest.mark.parametrize(
    "case", ["small", "double", "autocast", "counted", "vmap", "forward", "sparse", "off", "none", "compiled"]
)
def test_other_cases_use_torchs_own_product(case, monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    x, weight = torch.randn(300, 400), torch.randn(500, 400)
    if case == "small":
        close(linear(x[:3], weight), x[:3].double() @ weight.mT.double())
    elif case == "double":
        torch.testing.assert_close(linear(x.double(), weight.double()), x.double() @ weight.double().mT, **EXACT)
    elif case == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    elif case == "counted":
        with FlopCounterMode(display=False) as counter:
            linear(x, weight)
        assert counter.get_total_flops() == 2 * 300 * 400 * 500
    elif case == "vmap":
        many = torch.stack([x, 2 * x])
        close(vmap(linear, (0, None))(many, weight)[1], 2 * x.double() @ weight.mT.double())
        found = gradient(lambda w: linear(x, w).sum())(weight)
        close(found, x.double().sum(0).expand(500, -1))
    elif case == "forward":
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            tangent = torch.autograd.forward_ad.unpack_dual(linear(dual, weight)).tangent
        close(tangent, weight.double().sum(1).expand(300, -1))
    elif case == "sparse":
        close(linear(x, weight.to_sparse()), x.double() @ weight.mT.double())
    elif case == "off":
        enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns of Intel's GPUs
        try:
            linear(x, weight)
        finally:
            torch._C._set_mkldnn_enabled(enabled)
    elif case == "none":  # as in a torch without it
        monkeypatch.setattr(products, "onednn_linear", lambda: None)
        close(linear(x, weight), x.double() @ weight.mT.double())
    else:
        program = torch.export.export(Linear(400, 500), (x,), strict=False)
        assert "mkldnn" not in str(program.graph)
    assert not calls


def test_linear_layer_equals_torchs(monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    ours = Linear(400, 500)
    theirs = torch.nn.Linear(400, 500)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 150, 400)
    close(ours(x), theirs.double()(x.double()))
    assert calls


@pytest.mark.parametrize("activation", sorted(products.ACTIVATIONS))
def test_fused_activations_equal_those_of_training(activation, monkeypatch) -> None:
    calls = used(monkeypatch)
    torch.manual_seed(0)
    x, weight, bias = drawn(2, 300, 400), drawn(2, 500, 400), drawn(2, 1, 500)
    weight = weight / 20  # sums of 400 products are then in the nonlinear range of the activations
    exact = torch.baddbmm(bias.double(), x.double(), weight.mT.double()).detach()
    expected = {"relu": exact.clamp(min=0), "tanh": exact.tanh(), "none": exact}
    expected["gelu"] = exact * (1 + torch.erf(exact / 2**0.5)) / 2
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            close(grouped_linear(x, weight, bias, activation), expected[activation], exact)
    small = grouped_linear(x[:, :3], weight[:, :4], bias[:, :, :4], activation)
    close(small, expected[activation][:, :3, :4], exact)
    assert len(calls) == 4


@pytest.mark.parametrize(("maker", "by_onednn"), [("AuthenticAMD", True), ("GenuineIntel", False), ("", False)])
@pytest.mark.parametrize("groups", [1, 2])
def test_library_follows_the_maker_with_equal_results(maker: str, by_onednn: bool, groups, monkeypatch) -> None:
    calls = used(monkeypatch)
    monkeypatch.setattr(products, "processor_maker", lambda: maker)
    torch.manual_seed(0)
    given = [drawn(groups, 300, 400), drawn(groups, 500, 400), drawn(groups, 1, 500)]
    found, towards = grouped_linear(*given), torch.randn(groups, 300, 500)
    gradients = torch.autograd.grad(found, given, towards)
    assert bool(calls) == by_onednn
    wide = [x.detach().double().requires_grad_() for x in given]
    exact = torch.baddbmm(wide[2], wide[0], wide[1].mT)
    close(found, exact)
    for x, y in zip(gradients, torch.autograd.grad(exact, wide, towards.double()), strict=True):
        close(x, y)


@pytest.mark.parametrize(
    ("text", "processor", "maker"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel : x\n", "", "GenuineIntel"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "", ""),
        (None, "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", "AuthenticAMD"),
        (None, "arm", ""),
    ],
)
def test_processor_maker(text: str | None, processor: str, maker: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(products, "CPUINFO", path)
    monkeypatch.setattr(products.platform, "processor", lambda: processor)
    products.processor_maker.cache_clear()
    assert products.processor_maker() == maker
    products.processor_maker.cache_clear()


def test_onednn_linear_exists_in_torch() -> None:
    """Fails if a new torch has removed it: the fallback is torch's own, which is slow on some processors."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        pytest.skip("this torch is built without oneDNN or MKL")
    assert products.onednn_linear() is not None
