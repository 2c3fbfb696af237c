"""Effective weights W(X): the dependence of each BEV cell on each token, at given features (claims A2, A4, A7).

There are three variants, of shape (cells × tokens):

- :func:`jacobian_norm`, for any view transformer, ``‖∂O_q/∂X_k‖_F`` over the channels of cell q and of token k;
- :func:`attention_weights`, the attention matrix A of every head;
- :func:`mlp_weights`, the learned W of a one-layer MLP.

They agree where they measure the same. Before its activation, a one-layer MLP's Jacobian norm is ``√c·|W_qk|``, or
``‖P‖_F·|W_qk|`` after a projection P of its channels. That of attention with fixed A (:func:`attention_held`) is
``‖Σ_heads A_qk·Wv·Wo‖_F``; the remainder is due to the dependence of A on X.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from bevreshape.analysis.evaluation import evaluating
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.reshapers import MLP, Reshaper
from bevreshape.reshapers.attention import Attention

Features = Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "b n _ _ _"]]
"""Input of a view transformer: one scale, of a rig or of one camera, or several scales."""

Cells = Sequence[tuple[int, int]]
"""(row, column) of BEV cells."""


COPIES = 16
"""Default number of copies of a sample in one pass; each copy measures one cell."""


def product_count(samples: int, cells: int, probes: int) -> int:
    """Return the number of products of :func:`jacobian_norm`; if it is exact, ``probes`` is the number of channels."""
    return samples * -(-cells // min(COPIES, cells)) * probes


def cell_raster(shape: tuple[int, int], k: int) -> list[tuple[int, int]]:
    """Return about k × k cells, evenly over a map of (R, C): the middle ones of equal blocks, row-major.

    An axis of fewer than k cells has all of them.

    Raises:
        InputError: if k is less than 1.
    """
    if k < 1:
        raise InputError(f"cell_raster: k={k} of {shape[0]}×{shape[1]} cells; choose at least 1")
    rows, cols = ([(2 * i + 1) * size // (2 * min(k, size)) for i in range(min(k, size))] for size in shape)
    return [(row, col) for row in rows for col in cols]


def cell_indices(cells: Cells | None, shape: tuple[int, int], device: torch.device) -> Int[Tensor, "q 2"]:
    """Return the cells as a tensor; ``None`` stands for all of (R, C), row-major.

    Raises:
        InputError: if there is none, or one is outside.
    """
    if cells is None:
        return torch.cartesian_prod(torch.arange(shape[0], device=device), torch.arange(shape[1], device=device))
    if not cells:
        raise InputError("cells: there is none; give at least one (row, column), or None for all")
    for row, col in cells:
        if not (0 <= row < shape[0] and 0 <= col < shape[1]):
            raise InputError(f"cells: ({row}, {col}) is outside the map of {shape[0]}×{shape[1]} cells; choose within")
    return torch.tensor(cells, device=device)


@contextmanager
def attention_held(module: nn.Module) -> Iterator[None]:
    """Hold A fixed in a context: gradients pass through V, but not Q and K, of any :class:`Attention` in the module.

    The forward pass is unchanged.

    Raises:
        InputError: if there is no such attention.
    """
    held = [x for part in module.modules() if isinstance(part, Attention) for x in (part.to_q, part.to_k)]
    if not held:
        raise InputError(
            f"attention_held: {type(module).__name__} holds no bevreshape.reshapers.attention.Attention; measure it "
            "without"
        )
    with ExitStack() as hooks:
        for projection in held:
            hooks.enter_context(projection.register_forward_hook(_detached))
        yield


def _detached(_: nn.Module, given: object, out: Tensor) -> Tensor:
    return out.detach()


def jacobian_norm(
    reshaper: nn.Module,
    features: Features,
    cameras: Cameras | None = None,
    *,
    cells: Cells | None = None,
    probes: int | None = None,
    seed: int = 0,
    scale: int = 0,
    copies: int = COPIES,
    step: Callable[[], object] | None = None,
) -> Float[Tensor, "b q n h w"]:
    """Return ``W_qk = ‖∂O_q/∂X_k‖_F`` over the channels of cell q and of token k, at X.

    By default it is exact, by one vector-Jacobian product per cell and output channel. With ``probes`` it uses that
    many products per cell, with random signs v: since ``E‖vᵀJ‖² = ‖J‖²``, their mean is unbiased for W². Its variance
    is ``2·Σ_{i≠j} (JJᵀ)²_ij / probes`` (Hutchinson 1989), relatively at most ``2 / probes``. All samples share the
    signs, so that equal Jacobians have equal results.

    The module is measured in evaluation mode, by reverse mode alone. Its mode and gradients are restored.

    Args:
        reshaper: any module called as ``reshaper(features, cameras)`` that returns (b, d, R, C), with independent
            samples in evaluation mode; without cameras it is called as ``reshaper(features)``.
        features: X; they need not require a gradient.
        cameras: the calibration, if it is read.
        cells: the q cells; ``None`` for all.
        probes: products per cell; ``None`` for exact.
        seed: seed of the signs.
        scale: index of the scale whose tokens are measured.
        copies: copies of a sample in one pass, one cell each; memory grows with it.
        step: called after every product, to show progress; see :func:`product_count`.

    Returns:
        For every sample and cell the tokens of all cameras, at least in float32.

    Raises:
        InputError: if a cell is outside the map, the scale does not exist, a number is below 1, the calibration has
            another batch size, or the output has another shape or no gradient.
    """
    scales = (features,) if isinstance(features, Tensor) else tuple(features)
    b = scales[0].shape[0]
    _check_arguments(b, len(scales), scale, copies, probes, cameras)
    copies = min(copies, len(cells)) if cells else copies
    found = []
    with evaluating(reshaper), torch.inference_mode(False), torch.enable_grad():
        for i in range(b):
            sample = [_repeated(x.detach(), i, copies) for x in scales]
            x = sample[scale].requires_grad_()
            given = x if isinstance(features, Tensor) else sample
            bev = reshaper(given) if cameras is None else reshaper(given, _cameras_repeated(cameras, i, copies))
            _check_output(bev, copies, type(reshaper).__name__)
            chosen = cell_indices(cells, (bev.shape[2], bev.shape[3]), bev.device)
            found.append(_norms(x, bev, chosen, probes, seed, step))
    norms = torch.stack(found)
    return norms if scales[scale].ndim == 5 else norms.unsqueeze(2)


def _check_output(bev: Tensor, copies: int, name: str) -> None:
    if bev.ndim != 4 or bev.shape[0] != copies:
        raise InputError(
            f"jacobian_norm: {name} gives {tuple(bev.shape)} for {copies} samples; it must give (b, d, R, C)"
        )
    if not bev.requires_grad:
        raise InputError(
            f"jacobian_norm: no gradient passes through {name}; it must not detach, nor run without gradients"
        )


def _check_arguments(b: int, scales: int, scale: int, copies: int, probes: int | None, cameras: Cameras | None) -> None:
    if not 0 <= scale < scales:
        raise InputError(f"jacobian_norm: there is no scale {scale} of {scales}; they count from 0")
    if copies < 1 or (probes is not None and probes < 1):
        raise InputError(
            f"jacobian_norm: probes={probes} and copies={copies} must be at least 1 (probes=None is exact)"
        )
    if cameras is not None and cameras.batch_shape[0] != b:
        raise InputError(
            f"jacobian_norm: features are of {b} samples but the calibration is of {cameras.batch_shape[0]}; give "
            "every sample its own"
        )


def _norms(
    x: Tensor, bev: Tensor, cells: Tensor, probes: int | None, seed: int, step: Callable[[], object] | None
) -> Tensor:
    """Return the Jacobian's norms of cells (q, 2), (q, …tokens), given copies of a sample and their output."""
    copies, d = bev.shape[:2]
    copy = torch.arange(copies, device=bev.device)
    wide = torch.promote_types(x.dtype, torch.float32)
    signs = None
    if probes is not None:
        generator = torch.Generator(bev.device).manual_seed(seed)
        signs = torch.randint(2, (probes, len(cells), d), device=bev.device, generator=generator) * 2 - 1
    norms = []
    for start in range(0, len(cells), copies):
        rows, cols = cells[start : start + copies].unbind(1)
        picked = bev[copy[: len(rows)], :, rows, cols]  # a cell of each copy, m d
        squares = torch.zeros((), device=x.device, dtype=wide)
        for number in range(probes or d):
            product = picked[:, number] if signs is None else picked * signs[number, start : start + copies]
            (gradient,) = torch.autograd.grad(product.sum(), x, retain_graph=True, materialize_grads=True)
            squares = squares + gradient[: len(rows)].to(wide).square().sum(-3)
            if step is not None:
                step()
        norms.append((squares / (probes or 1)).sqrt())
    return torch.cat(norms)


def _repeated(x: Tensor, sample: int, copies: int) -> Tensor:
    return x[sample : sample + 1].repeat(copies, *[1] * (x.ndim - 1))


def _cameras_repeated(cameras: Cameras, sample: int, copies: int) -> Cameras:
    mask = cameras.camera_mask
    return replace(
        cameras,
        intrinsics=_repeated(cameras.intrinsics, sample, copies),
        ego_from_cam=_repeated(cameras.ego_from_cam, sample, copies),
        camera_mask=None if mask is None else _repeated(mask, sample, copies),
    )


def attention_weights(
    reshaper: Reshaper, features: Features, cameras: Cameras | None = None, *, cells: Cells | None = None
) -> Float[Tensor, "b a q n h w"]:
    """Return the attention matrix A of every head; ``.mean(1)`` is that of all heads.

    Args:
        reshaper: one with a method ``attention_weights(features, cameras)``, (b, a, R·C, n, h, w).
        features: X.
        cameras: the calibration, if it is read.
        cells: the q cells; ``None`` for all.

    Returns:
        For every sample, head a and cell the tokens of all cameras (of its first scale).

    Raises:
        InputError: if it has no such method, or a cell is outside the map.
    """
    offered = getattr(reshaper, "attention_weights", None)
    if offered is None:
        raise InputError(
            f"attention_weights: {type(reshaper).__name__} offers no attention matrix; take jacobian_norm, which any "
            "has"
        )
    with evaluating(reshaper), torch.no_grad():
        weights: Tensor = offered(features, cameras)
        return weights if cells is None else weights[:, :, _numbers(cells, reshaper, weights.device)]


def mlp_weights(mlp: MLP, *, cells: Cells | None = None) -> Float[Tensor, "q n h w"]:
    """Return the signed W of a one-layer MLP, ``O = σ(W·X + b)``, the same for every input and channel.

    Raises:
        InputError: if it has hidden layers or reads the calibration, so that W depends on the input.
    """
    (layer, *hidden), source = mlp.layers, mlp.source
    if hidden or mlp.rectify is not None:
        raise InputError(
            f"mlp_weights: it has {len(hidden)} hidden layers and calibration={mlp.rectify is not None}, so W depends "
            "on what it is given; take jacobian_norm"
        )
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weights = rearrange(weight.detach(), "g q (n h w) -> q (g n) h w", h=source.height, w=source.width)
    return weights if cells is None else weights[_numbers(cells, mlp, weights.device)]


def _numbers(cells: Cells, reshaper: Reshaper, device: torch.device) -> Tensor:
    """Return the row-major indices of the cells."""
    row, col = cell_indices(cells, reshaper.target_shape, device).unbind(1)
    return row * reshaper.target_shape[1] + col
