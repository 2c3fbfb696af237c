"""Sensitivity of a reshaper to the order of its tokens (claims A10 and A12).

A permutation π is a tensor of integers, one per token: afterwards, position j holds the token from position π[j]. It
permutes either the h·w tokens of a camera (row-major), the same for every camera; or all n·h·w tokens, camera by
camera, and may then move tokens between cameras.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from bevreshape.analysis.evaluation import Variant, evaluating, iou_of
from bevreshape.analysis.token_encodings import can_move, moved_encodings, token_encodings
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import Reshaper


def permute_tokens(
    features: Float[Tensor, "b n c h w"] | Float[Tensor, "b c h w"], permutation: Int[Tensor, " t"]
) -> Tensor:
    """Permute the tokens of features.

    Args:
        features: features of all cameras, or (b, c, h, w) of one.
        permutation: permutation of the tokens of a camera or of all.

    Raises:
        InputError: if it is not a permutation of that many tokens.
    """
    n = features.shape[1] if features.ndim == 5 else 1
    return _permute(features, _of_all(permutation, n, features.shape[-2] * features.shape[-1]))


def _of_all(permutation: Tensor, n: int, tokens: int) -> Int[Tensor, " nt"]:
    """Return the permutation of all cameras' tokens."""
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


class PermutedReshaper(Reshaper):
    """A reshaper with permuted tokens.

    Training it shows the cost of a fixed permutation; wrapping a trained reshaper shows its dependence on the order.
    The permutation is in its state as ``permutation``, and the wrapped module is ``reshaper``.

    Args:
        reshaper: a reshaper of one scale.
        permutation: permutation of the tokens of a camera or of all.
        move_encodings: give every token its original encoding, see :func:`moved_encodings`. Otherwise position j has
            the encoding of position j, for any token. It has no effect without encodings.

    Raises:
        InputError: if it is not a permutation of that many tokens, the reshaper has several scales, or its encodings
            cannot be moved, see :func:`token_encodings`.
    """

    permutation: Tensor

    def __init__(self, reshaper: Reshaper, permutation: Int[Tensor, " t"], *, move_encodings: bool = False) -> None:
        super().__init__(reshaper.sources, reshaper.grid, reshaper.out_channels, needs_cameras=reshaper.needs_cameras)
        if len(reshaper.sources) > 1:
            raise InputError(
                f"{reshaper.name}: it takes {len(reshaper.sources)} scales, whose tokens have different positions; "
                "permute a reshaper of one"
            )
        if move_encodings:
            token_encodings(reshaper)
        self.reshaper = reshaper
        self.move_encodings = move_encodings
        self.register_buffer("permutation", _of_all(permutation, self.source.cameras, self.source.tokens))
        if hasattr(reshaper, "attention_weights"):  # else this has none either
            self.attention_weights = self._attention_of_places

    def _attention_of_places(self, features: Tensor, cameras: Cameras | None) -> Float[Tensor, "b a q n h w"]:
        """Return the attention matrix of every head, with the tokens at their positions in the images."""
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
    """Return the relative change of the output when tokens are permuted (A10, A12).

    It is ``‖f(π(X)) − f(X)‖ / ‖f(X)‖`` over the batch, 0 if f is invariant. With ``permute_output`` it is
    ``‖f(π(X)) − π(f(X))‖ / ‖f(X)‖``, 0 if f is equivariant. With ``relative_to="unrelated"`` the divisor is
    ``‖f(Y) − f(X)‖``, where Y is the X of the previous sample: 1 is as bad as an unrelated image.

    Args:
        reshaper: f; it is set to evaluation mode for the measurement.
        features: X; at least two samples for ``unrelated``.
        permutation: π, of the tokens of a camera or of all.
        cameras: the calibration, if f reads it; it is not permuted.
        move_encodings: see :class:`PermutedReshaper`.
        permute_output: permute the cells too; f must keep the shape, and π permute the tokens of a camera.
        relative_to: divide by the size of the output, or by its change between images.

    Raises:
        InputError: if f changes a shape that must be permuted, the divisor is 0, ``unrelated`` has a single sample, or
            as :class:`PermutedReshaper`.
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
    """Return the IoU of a trained model with intact and with permuted features (A12).

    Args:
        model: a trained model; it is set to evaluation mode.
        batches: batches on its device, as ``BEVDataModule.on_after_batch_transfer`` returns them.
        metric: a metric on the model's classes and grid; its own state does not change.
        permutation: permutation of the tokens of a camera or of all, between encoder and reshaper.
        step: see :func:`~bevreshape.analysis.evaluation.iou_of`.

    Returns:
        :meth:`BEVIoU.compute` by variant: ``intact``, ``permuted`` (encodings are not moved), ``unrelated`` (chance:
        images of another sample of the batch, or of the previous batch if it has a single sample), and
        ``encodings_moved`` if the reshaper has registered encodings that can move with their tokens.

    Raises:
        InputError: if there is no batch, the first batch has a single sample, images are not floats, or as
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
                "iou_when_permuted: the first batch has one sample, so there is no unrelated image; raise "
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
