"""What the order of tokens means to a reshaper (claims A5, A10, A11 and A12).

A permutation π is a tensor of whole numbers, one a token: after it, place j holds the token that was at place π[j]. It
is of the h·w tokens of a camera, row by row, and then moves those of every camera alike; or of all n·h·w, camera by
camera, and may move tokens from one camera to another.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import singledispatch
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from bevreshape.analysis.evaluation import Variant, evaluating, iou_of
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import CrossAttention, GeometricReshaper, Reshaper, SelfAttention
from bevreshape.reshapers.positional import PositionalEncoding, RotaryEncoding

Encodings = list[tuple[nn.Module, tuple[int, ...]]]
"""Modules that encode the positions of tokens, and which of their inputs and outputs are tokens, (b, …, tokens, c)."""


def permute_tokens(
    features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"], permutation: Int[Tensor, " t"]
) -> Tensor:
    """The same features with their tokens in another order.

    Args:
        features: of all cameras, or (b, c, h, w) of one.
        permutation: of the tokens of a camera or of all.

    Raises:
        InputError: if it is no permutation of that many tokens.
    """
    n = features.shape[1] if features.ndim == 5 else 1
    return _permute(features, _of_all(permutation, n, features.shape[-2] * features.shape[-1]))


def _of_all(permutation: Tensor, n: int, tokens: int) -> Int[Tensor, " nt"]:
    """The permutation of all cameras' tokens that is meant."""
    if permutation.ndim != 1 or len(permutation) not in (tokens, n * tokens):
        raise InputError(
            f"permutation: its shape is {tuple(permutation.shape)} but there are {n} cameras of {tokens} tokens; give "
            f"torch.randperm({tokens}), or of all {n * tokens}"
        )
    if not torch.equal(permutation.sort().values, torch.arange(len(permutation), device=permutation.device)):
        raise InputError(
            f"permutation: it does not hold each of 0 to {len(permutation) - 1} once; make one by torch.randperm"
        )
    if len(permutation) == n * tokens:
        return permutation
    return (torch.arange(n, device=permutation.device)[:, None] * tokens + permutation).flatten()


def _permute(features: Tensor, permutation: Tensor) -> Tensor:
    if features.ndim == 4:
        return _permute(features.unsqueeze(1), permutation).squeeze(1)
    n, h, w = features.shape[1], *features.shape[3:]
    moved = rearrange(features, "b n c h w -> b c (n h w)")[..., permutation.to(features.device)]
    return rearrange(moved, "b c (n h w) -> b n c h w", n=n, h=h, w=w)


@singledispatch
def token_encodings(reshaper: Reshaper) -> Encodings:
    """What of a reshaper tells source tokens their places, as opposed to its queries.

    Empty for one that has nothing of the kind. To have the encodings of a class of one's own moved, register it:
    ``token_encodings.register(Mine, lambda mine: [(mine.encode, (0,))])``.

    Raises:
        InputError: if it has encodings but nobody registered which, or they follow from the calibration.
    """
    if any(isinstance(module, PositionalEncoding | RotaryEncoding) for module in reshaper.modules()):
        raise InputError(
            f"{reshaper.name}: it has positional encodings, but which are those of its tokens is not known; register "
            "it with bevreshape.analysis.permutation.token_encodings"
        )
    return []


@token_encodings.register
def _(reshaper: GeometricReshaper) -> Encodings:
    raise InputError(
        f"{reshaper.name}: its tokens have their places from the calibration, which cannot move along; leave "
        "move_encodings off"
    )


@token_encodings.register
def _(reshaper: CrossAttention) -> Encodings:
    rotary, rays = reshaper.attention.rotary, reshaper.encode_rays
    found: Encodings = [(reshaper.encode_tokens, (0,))]
    found += [] if rays is None else [(rays, (0,))]
    return found + ([] if rotary is None else [(rotary, (1,))])  # keys


@token_encodings.register
def _(reshaper: SelfAttention) -> Encodings:
    rotary = reshaper.attention.rotary
    return [(reshaper.encode, (0,))] + ([] if rotary is None else [(rotary, (0, 1))])  # queries are tokens too


def can_move(reshaper: Reshaper) -> bool:
    try:
        return bool(token_encodings(reshaper))
    except InputError:
        return False


@contextmanager
def moved_encodings(reshaper: Reshaper, permutation: Int[Tensor, " nt"]) -> Iterator[None]:
    """Let encodings go with permuted tokens: within, the token at place j is given the encoding of place π[j].

    Every encoding gets its tokens back in the order that it knows, and what it makes of them is permuted again.

    Args:
        reshaper: which will be given tokens permuted by π.
        permutation: of all cameras' tokens.

    Raises:
        InputError: see :func:`token_encodings`.
    """
    inverse = permutation.argsort()
    with ExitStack() as hooks:
        for module, positions in token_encodings(reshaper):
            hooks.callback(_hook_inputs(module, positions, inverse).remove)
            hooks.callback(_hook_outputs(module, positions, permutation).remove)
        yield


def _hook_inputs(module: nn.Module, positions: tuple[int, ...], permutation: Tensor) -> Any:
    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_move(x, permutation) if i in positions else x for i, x in enumerate(given))

    return module.register_forward_pre_hook(hook)


def _hook_outputs(module: nn.Module, positions: tuple[int, ...], permutation: Tensor) -> Any:
    def hook(_: nn.Module, __: Any, made: Any) -> Any:
        if isinstance(made, Tensor):
            return _move(made, permutation)
        return tuple(_move(x, permutation) if i in positions else x for i, x in enumerate(made))

    return module.register_forward_hook(hook)


def _move(x: Tensor, permutation: Tensor) -> Tensor:
    """Permute (b, …, n·t, c), or (b·n, …, t, c) where cameras are looked at alone."""
    n = len(permutation) // x.shape[-2]
    x = x.unflatten(0, (-1, n)).movedim(1, -3)  # b … n t c
    x = x.flatten(-3, -2)[..., permutation.to(x.device), :].unflatten(-2, (n, -1))
    return x.movedim(-3, 1).flatten(0, 1)


class PermutedReshaper(Reshaper):
    """A reshaper that gets its tokens in another order.

    Trained like this it shows what one fixed permutation costs; put around a trained one, what depends on the order.
    The permutation is part of its state, under ``permutation``, what it wraps is ``reshaper``.

    Args:
        reshaper: of one scale.
        permutation: of the tokens of a camera or of all.
        move_encodings: give every token the encoding that it had before, see :func:`moved_encodings`; else encodings
            stay and place j has the encoding of place j, whatever token it holds. The same to a reshaper without
            encodings.

    Raises:
        InputError: if it is no permutation of that many tokens; when the reshaper takes several scales; when its
            encodings are to move but cannot, see :func:`token_encodings`.
    """

    permutation: Tensor

    def __init__(self, reshaper: Reshaper, permutation: Int[Tensor, " t"], *, move_encodings: bool = False) -> None:
        super().__init__(reshaper.sources, reshaper.grid, reshaper.out_channels, needs_cameras=reshaper.needs_cameras)
        if len(reshaper.sources) > 1:
            raise InputError(
                f"{reshaper.name}: it takes {len(reshaper.sources)} scales, whose tokens are of different places; "
                "permute a reshaper of one"
            )
        if move_encodings:
            token_encodings(reshaper)
        self.reshaper = reshaper
        self.move_encodings = move_encodings
        self.register_buffer("permutation", _of_all(permutation, self.source.cameras, self.source.tokens))
        if hasattr(reshaper, "attention_weights"):  # or it offers none either
            self.attention_weights = self._attention_of_places

    def _attention_of_places(self, features: Tensor, cameras: Cameras | None) -> Float[Tensor, "b a q n h w"]:
        """The attention matrix head by head, each token where it lies in the images."""
        offered: Tensor = self.reshaper.attention_weights(_permute(features, self.permutation), cameras)  # type: ignore[operator]
        return offered.flatten(3)[..., self.permutation.argsort()].view_as(offered)

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        self._check_present(cameras)
        moved = moved_encodings(self.reshaper, self.permutation) if self.move_encodings else nullcontext()
        with moved:
            return self.reshaper(_permute(features, self.permutation), cameras)

    def check_cameras(self, cameras: Cameras | None) -> None:
        self.reshaper.check_cameras(cameras)

    def _check_present(self, cameras: Cameras | None) -> None:
        if cameras is None or cameras.camera_mask is None or self.source.cameras == 1 or cameras.camera_mask.all():
            return
        camera = torch.arange(len(self.permutation), device=self.permutation.device) // self.source.tokens
        if not torch.equal(self.permutation // self.source.tokens, camera):
            raise InputError(
                f"{self.name}: its permutation moves tokens from camera to camera, but cameras were dropped; permute "
                f"the {self.source.tokens} tokens of a camera alone, or drop none"
            )

    def forward_with_auxiliary(self, features: Any, cameras: Cameras | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        (given,) = self.checked(features, cameras)
        self._check_present(cameras)
        moved = moved_encodings(self.reshaper, self.permutation) if self.move_encodings else nullcontext()
        with moved:
            return self.reshaper.forward_with_auxiliary(_permute(given, self.permutation), cameras)


def permutation_error(
    reshaper: Reshaper,
    features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"],
    permutation: Int[Tensor, " t"],
    cameras: Cameras | None = None,
    *,
    move_encodings: bool = False,
    permute_output: bool = False,
    relative_to: Literal["output", "unrelated"] = "output",
) -> float:
    """Return how far the output changes when tokens are permuted (A10, A12).

    It is ``‖f(π(X)) − f(X)‖ / ‖f(X)‖`` over the batch, 0 where f is invariant. With ``permute_output`` it is
    ``‖f(π(X)) − π(f(X))‖ / ‖f(X)‖``, 0 where f is equivariant. With ``relative_to="unrelated"`` it is divided by
    ``‖f(Y) − f(X)‖``, with the Y of a sample being the X of the one before it: 1 is as bad as an unrelated image.

    Args:
        reshaper: f, in evaluation mode meanwhile.
        features: X; of two samples at least for ``unrelated``.
        permutation: π, of the tokens of a camera or of all.
        cameras: as f wants them; they are not permuted.
        move_encodings: see :class:`PermutedReshaper`.
        permute_output: permute the cells too; f must keep the shape, and π be of the tokens of a camera.
        relative_to: the size of the output, or its change from image to image.

    Raises:
        InputError: if f changes the shape that is to be permuted, the divisor is 0, a single sample has no other to
            be compared with, or see :class:`PermutedReshaper`.
    """
    source = reshaper.source
    if permute_output and reshaper.target_shape != (source.height, source.width):
        raise InputError(
            f"{reshaper.name}: it turns {source.height}×{source.width} features into {reshaper.target_shape} cells, "
            "which cannot be permuted alike; build it for a grid of the same shape"
        )
    if relative_to == "unrelated" and len(features) < 2:
        raise InputError(
            f"permutation_error: {len(features)} sample has no other to be compared with; give two or more"
        )
    permuted = PermutedReshaper(reshaper, permutation, move_encodings=move_encodings)
    with evaluating(reshaper), torch.no_grad():
        bev = reshaper(features, cameras)
        divisor = bev if relative_to == "output" else reshaper(features.roll(1, 0), cameras) - bev
        change = permuted(features, cameras) - (permute_tokens(bev, permutation) if permute_output else bev)
    size = divisor.double().norm().item()
    if size == 0:
        found = "0 everywhere" if relative_to == "output" else "the same for all samples"
        raise InputError(
            f"{reshaper.name}: its output is {found}, so there is nothing to compare a change with; give other "
            "features, or train it"
        )
    return change.double().norm().item() / size


def iou_when_permuted(
    model: BEVModel,
    batches: Iterable[BEVBatch],
    metric: BEVIoU,
    permutation: Int[Tensor, " t"],
    step: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """IoU of a trained model with its features in order and permuted, at task level (A12).

    Args:
        model: looked at in evaluation mode.
        batches: on its device, as ``BEVDataModule.on_after_batch_transfer`` hands them on.
        metric: on the model's classes and grid; counts of its own are left alone.
        permutation: of the tokens of a camera or of all, between encoder and reshaper.
        step: see :func:`~bevreshape.analysis.evaluation.iou_of`.

    Returns:
        What :meth:`BEVIoU.compute` gives, as ``intact``, ``permuted`` (encodings stay) and ``unrelated``, which is what
        chance gives: of images of another sample of the batch, or of the batch before where that has a single
        sample; and as ``encodings_moved`` where the reshaper has encodings that are known and can move along with
        their tokens.

    Raises:
        InputError: if there is no batch, or the first has a single sample, when images are not floats, or see
            :class:`PermutedReshaper`.
    """
    own = model.reshaper
    if not isinstance(own, Reshaper):
        raise InputError(
            f"iou_when_permuted: the model's reshaper is a {type(own).__name__}; derive it from Reshaper, which knows "
            "how many tokens there are"
        )
    latest: Tensor | None = None

    def strange(batch: BEVBatch) -> BEVBatch:
        nonlocal latest
        image, before = batch.images, latest
        latest = image[-1:]
        if len(image) > 1:
            return replace(batch, images=image.roll(1, 0))
        if before is None:
            raise InputError(
                "iou_when_permuted: the first batch has one sample, so there is no image of another; raise "
                "loader.batch_size"
            )
        return replace(batch, images=before)

    variants = {
        "intact": Variant(),
        "permuted": Variant(reshaper=PermutedReshaper(own, permutation)),
        "unrelated": Variant(change=strange),
    }
    if can_move(own):
        moved = PermutedReshaper(own, permutation, move_encodings=True)
        variants["encodings_moved"] = Variant(reshaper=moved)
    return iou_of(model, batches, metric, variants, step)


def gram(features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """XᵀX of the tokens X of all cameras, which is a sum over tokens and does not know their order (A10)."""
    x = features if features.ndim == 5 else features.unsqueeze(1)
    return torch.einsum("bnchw,bnehw->bce", x, x)


def from_gram(reshaper: CrossAttention, gram: Float[Tensor, "b c c"]) -> Float[Tensor, "b d R C"]:
    """``Ø·Wq·Wkᵀ·(XᵀX)·Wv``, all that a linear cross-attention makes of X (A5), head by head, divided by the number of
    tokens where the attention is.

    Args:
        reshaper: with ``kernel="linear"``, ``attention_only`` and ``token_encoding="none"``, for which this is exact.
            An encoding of the queries is part of Ø.
        gram: XᵀX.

    Raises:
        InputError: if it is another attention.
    """
    attention, kind = reshaper.attention, reshaper.encode_tokens.kind
    if attention.kernel != "linear" or not reshaper.attention_only or kind != "none":
        raise InputError(
            f"from_gram: the attention has kernel={attention.kernel}, attention_only={reshaper.attention_only} and "
            f"token_encoding={kind}, and depends on more than XᵀX; build it with kernel=linear, attention_only=true "
            "and token_encoding=none"
        )
    to_q, to_k, to_v = (
        rearrange(projection.weight, "(a e) c -> a c e", a=attention.heads)
        for projection in (attention.to_q, attention.to_k, attention.to_v)
    )  # a heads of e channels
    query = reshaper.encode_queries(reshaper.query)  # RC d
    out = query @ to_q @ to_k.mT @ gram.unsqueeze(1) @ to_v  # b a RC e
    if attention.divide_by_tokens:
        out = out / (reshaper.source.cameras * reshaper.source.tokens)
    return rearrange(out, "b a (R C) e -> b (a e) R C", R=reshaper.target_shape[0])
