"""One softmax over the tokens of all cameras, against loops; its matrix is never formed."""

import numpy as np
import pytest
import torch
from rounding import rounding
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevreshape.ops import fused_attention
from bevreshape.ops import joint_attention as module
from bevreshape.ops.fused_attention import AVAILABLE, KERNELS, try_kernel
from bevreshape.ops.joint_attention import joint_attention
from bevreshape.ops.probe import probed

SIZES = (2, 3, 2, 5, 7, 4)  # b n a q t e


def inputs(sizes=SIZES, dtype=torch.float64) -> list[Tensor]:
    b, n, a, q, t, e = sizes
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, n, a, p, e, generator=generator, dtype=dtype).mul(1.5).requires_grad_() for p in (q, t, t)]


def mask() -> Tensor:
    return torch.tensor([[True, False, True], [False, False, True]])


def by_loops(q: Tensor, k: Tensor, v: Tensor, present: np.ndarray) -> np.ndarray:
    b, n, a, cells, e = q.shape
    queries, keys, values = (x.detach().double().numpy() for x in (q, k, v))
    out = np.zeros((b, a, cells, e))
    for i, head, cell in np.ndindex(b, a, cells):
        total, weights = np.zeros(e), 0.0
        for camera in range(n):
            for token in range(k.shape[3]):
                if present[i, camera]:
                    logit = queries[i, camera, head, cell] @ keys[i, camera, head, token] / np.sqrt(e)
                    total += np.exp(logit) * values[i, camera, head, token]
                    weights += np.exp(logit)
        out[i, head, cell] = total / weights if weights else 0.0
    return out


@pytest.mark.parametrize("way", ["fused", "matrix"])
@pytest.mark.parametrize("present", [None, mask(), torch.zeros(2, 3, dtype=torch.bool)])
def test_joint_attention_equals_loops_over_present_cameras(way: str, present: Tensor | None, monkeypatch):
    if way == "matrix":
        monkeypatch.setattr(module, "fused_kernel", lambda *_: None)
    terms = 4 * inputs()[1][0, :, 0].numel()  # a score, an exponential, a sum and a product per token
    expected = by_loops(*inputs(), np.ones((2, 3), bool) if present is None else present.numpy())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = joint_attention(*(x.to(dtype) for x in inputs()), present)
        assert found.dtype == dtype
        atol = rounding(terms, max(x.detach().abs().max().item() for x in inputs()), dtype)
        np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("way", ["fused", "matrix"])
@pytest.mark.parametrize("present", [None, mask()])
def test_gradients_equal_finite_differences(way: str, present: Tensor | None, monkeypatch) -> None:
    if way == "matrix":
        monkeypatch.setattr(module, "fused_kernel", lambda *_: None)
    assert torch.autograd.gradcheck(lambda *x: joint_attention(*x, present), inputs())


@pytest.mark.parametrize("way", ["fused", "matrix"])
@pytest.mark.parametrize("held", [torch.nan, torch.inf, 1e30])
def test_values_of_a_dropped_camera_have_no_weight(way: str, held: float, monkeypatch) -> None:
    if way == "matrix":
        monkeypatch.setattr(module, "fused_kernel", lambda *_: None)
    present, clean = mask(), inputs(dtype=torch.float32)
    dirty = [x.detach().where(present[..., None, None, None], held).requires_grad_() for x in clean]
    expected, found = joint_attention(*clean, present), joint_attention(*dirty, present)
    assert torch.equal(found, expected)
    for out in (expected, found):
        out.square().sum().backward()
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(x.grad, y.grad)
        assert (y.grad[~present] == 0).all()
        assert (y.grad[present] != 0).all()


def test_large_logits_neither_overflow_nor_vanish() -> None:
    q, k, v = (x.detach() for x in inputs(dtype=torch.float32))
    q = q * torch.tensor([1e3, 1.0, 1e-3])[:, None, None, None]
    found = joint_attention(q, k, v)
    logits = (q @ k.mT / 2).permute(0, 2, 3, 1, 4).flatten(3)
    expected = logits.double().softmax(-1) @ v.double().transpose(1, 2).flatten(2, 3)
    torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Records the largest number of elements that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def peaks(cells: int, tokens: int) -> tuple[int, int]:
    """Return the largest number of elements of a tensor saved for the backward pass, and of any operation's result."""
    saved: list[int] = []
    data = inputs((1, 2, 2, cells, tokens, 4), torch.float32)

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), Largest() as mode:
        joint_attention(*data).square().sum().backward()
    return max(saved), mode.elements


def test_memory_grows_with_tokens_plus_cells(monkeypatch) -> None:
    elements = 2 * 2 * 4  # of all cameras and heads
    for cells, tokens in ((300, 300), (600, 600), (300, 1200)):
        saved, any_of_them = peaks(cells, tokens)
        assert saved == elements * max(cells, tokens)
        assert any_of_them == elements * max(cells, tokens)
    monkeypatch.setattr(module, "fused_kernel", lambda *_: None)
    assert min(peaks(300, 300)) >= 2 * 2 * 300 * 300  # the measurement includes the matrix if it is formed


def log_sums(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (q @ k.mT * scale).logsumexp(-1)


def backward_given(grad, q, k, v, out, log_sum, scale) -> tuple[Tensor, Tensor, Tensor]:
    weights = (q @ k.mT * scale - log_sum[..., None]).exp()
    d_logits = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * scale
    return d_logits @ k, d_logits.mT @ q, weights.mT @ grad


class StandIns:
    """CUDA's fused kernels in plain operations, with their arguments and the shapes of their results."""

    def _scaled_dot_product_efficient_attention(self, q, k, v, bias, compute_log_sumexp, *, scale):
        assert bias is None
        assert compute_log_sumexp
        sums = log_sums(q, k, scale)
        padded = torch.nn.functional.pad(sums, (0, -sums.shape[-1] % 32), value=torch.inf)
        return (q @ k.mT * scale).softmax(-1) @ v, padded, torch.tensor(3), torch.tensor(4)

    def _scaled_dot_product_efficient_attention_backward(
        self, grad, q, k, v, bias, out, sums, seed, offset, dropout, wanted, *, scale
    ):
        assert bias is None
        assert (seed, offset, dropout, wanted) == (3, 4, 0.0, [True, True, True, False])
        assert sums.shape[-1] % 32 == 0
        assert sums.is_contiguous()
        assert (sums[..., q.shape[-2] :] == torch.inf).all()
        return *backward_given(grad, q, k, v, out, sums[..., : q.shape[-2]], scale), None

    def _scaled_dot_product_flash_attention(self, q, k, v, *, scale):
        rest = (None, None, q.shape[-2], k.shape[-2], torch.tensor(3), torch.tensor(4), None)
        return (q @ k.mT * scale).softmax(-1) @ v, log_sums(q, k, scale), *rest

    def _scaled_dot_product_flash_attention_backward(
        self, grad, q, k, v, out, sums, cum_q, cum_k, max_q, max_k, dropout, causal, seed, offset, *, scale
    ):
        assert (cum_q, cum_k, max_q, max_k) == (None, None, q.shape[-2], k.shape[-2])
        assert (dropout, causal, seed, offset) == (0.0, False, 3, 4)
        return backward_given(grad, q, k, v, out, sums, scale)


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_gpu_kernels_receive_the_arguments_of_the_cpu_kernel(kernel: str, monkeypatch) -> None:
    """Without a GPU: arguments are checked against torch's schemas, results against stand-ins."""
    ours, theirs = inputs(), inputs()
    expected = joint_attention(*ours, mask())
    expected.square().sum().backward()
    monkeypatch.setattr(module, "fused_kernel", lambda *_: KERNELS[kernel])
    on_meta = [x.to("meta", torch.bfloat16).detach().requires_grad_() for x in inputs((2, 3, 2, 5, 7, 8))]
    joint_attention(*on_meta).sum().backward()
    assert on_meta[1].grad.shape == on_meta[1].shape
    monkeypatch.setattr(fused_attention, "aten", StandIns)
    found = joint_attention(*theirs, mask())
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for x, y in zip(theirs, ours, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


class OnGPU(Tensor):
    """A tensor that reports a GPU as its device."""

    device = property(lambda _: torch.device("cuda"))  # type: ignore[assignment]


@pytest.mark.parametrize("able", [["flash", "efficient"], ["efficient"], []])
def test_gpus_prefer_flash_then_efficient_attention(able: list[str], monkeypatch) -> None:
    data = inputs()
    expected = joint_attention(*data, mask())
    cuda, asked = torch.backends.cuda, []
    monkeypatch.setattr(cuda, "SDPAParams", lambda *args: args)
    for name in ("flash", "efficient"):
        stand_in = getattr(StandIns, f"_scaled_dot_product_{name}_attention")

        def record(*args, name=name, stand_in=stand_in, **kwargs):
            asked.append(name)
            assert args[1].shape[-1] == 8  # padded from 4, which these kernels refuse
            return stand_in(*args, **kwargs)

        monkeypatch.setattr(StandIns, f"_scaled_dot_product_{name}_attention", record)
        monkeypatch.setattr(cuda, f"can_use_{name}_attention", lambda _, name=name: name in able)
    monkeypatch.setattr(fused_attention, "aten", StandIns)
    monkeypatch.setattr(fused_attention, "AVAILABLE", dict.fromkeys(KERNELS, lambda: True))
    found = joint_attention(*(x.detach().as_subclass(OnGPU) for x in data), mask())
    torch.testing.assert_close(found.as_subclass(Tensor), expected.detach())
    assert asked == able[:1]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_exists_in_torch(name: str) -> None:
    """Fails if a new torch has removed or changed it: the fallback forms the matrix and is slow."""
    assert try_kernel(name)
    assert AVAILABLE[name]()


@pytest.mark.parametrize("gone", [AttributeError, TypeError, ValueError])
def test_matrix_fallback_equals_the_kernel(gone: type[Exception], monkeypatch) -> None:
    class Gone:
        def __getattr__(self, name: str):
            def refuse(*_, **__):
                raise gone(name)

            return refuse

    ours, theirs = inputs(), inputs()
    expected = joint_attention(*ours, mask())
    gradients = torch.autograd.grad(expected.square().sum(), ours)
    monkeypatch.setattr(fused_attention, "aten", Gone)
    monkeypatch.setitem(AVAILABLE, "cpu", probed(lambda: try_kernel("cpu")))
    found = joint_attention(*theirs, mask())
    torch.testing.assert_close(found, expected)
    for x, y in zip(torch.autograd.grad(found.square().sum(), theirs), gradients, strict=True):
        torch.testing.assert_close(x, y)
