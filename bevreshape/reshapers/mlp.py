"""The fully connected view transformer."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from bevreshape.config.options import Width, checked
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.ops.linear import Activation, grouped_linear
from bevreshape.reshapers.base import Reshaper, without_dropped

ORIGINAL = re.compile(r"(?:.*\.)?(?:mat_list|hw_mat)\.(\d+)\.(\d+)\.(weight|bias)")
"""What VPN and HDMapNet call a parameter: camera, place in its Linear-ReLU-Linear-ReLU, kind."""


class TokenLinear(nn.Module):
    """``W·X + b`` over tokens, one W a group: (g, m, tokens) → (g, m, cells)."""

    def __init__(self, groups: int, tokens: int, cells: int, gain: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, cells, tokens))
        self.bias = nn.Parameter(torch.zeros(groups, 1, cells)) if bias else None
        nn.init.normal_(self.weight, std=gain / math.sqrt(tokens))  # gain 1 keeps the variance

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return grouped_linear(x, self.weight, self.bias, activation)


class LowRankLinear(nn.Module):
    """``U·(V·X) + b``: what :class:`TokenLinear` is, with ``W = U·V`` through ``rank`` tokens."""

    def __init__(self, groups: int, tokens: int, cells: int, rank: int, gain: float) -> None:
        super().__init__()
        self.inner = TokenLinear(groups, tokens, rank, 1.0, bias=False)
        self.outer = TokenLinear(groups, rank, cells, gain)

    @property
    def weight(self) -> Tensor:
        """W, (g, cells, tokens)."""
        return self.outer.weight @ self.inner.weight

    def forward(self, x: Tensor, activation: str) -> Tensor:
        return self.outer(self.inner(x), activation)


class Rectify(nn.Module):
    """Move the image's rows and columns as the calibration says: ``X' = A·X·Bᵀ`` of every channel, (h, w).

    A (h×h) and B (w×w) are the identity plus what a small MLP, every camera's own, makes of its calibration; at first
    that is nothing. The calibration comes as 14 numbers (focal lengths, skew and principal point in parts of the
    image, two columns of ego_from_cam's rotation, translation in metres), each with sine and cosine at ``OCTAVES``
    frequencies, without which the small differences that matter, half a degree, are hard to learn from.
    """

    OCTAVES = 5  # 1, 2, 4, 8 and 16 radians a unit
    INPUTS = 14

    octaves: Tensor
    eye_h: Tensor
    eye_w: Tensor

    def __init__(self, source: FeatureShape, hidden: int = 64) -> None:
        super().__init__()
        self.sizes = source.height, source.width
        self.inner = TokenLinear(source.cameras, self.INPUTS * (1 + 2 * self.OCTAVES), hidden, 1.0)
        self.outer = TokenLinear(source.cameras, hidden, source.height**2 + source.width**2, 0.0)
        self.register_buffer("octaves", 2.0 ** torch.arange(self.OCTAVES), persistent=False)
        self.register_buffer("eye_h", torch.eye(source.height), persistent=False)
        self.register_buffer("eye_w", torch.eye(source.width), persistent=False)

    def forward(self, features: Float[Tensor, "b n c h w"], cameras: Cameras) -> Float[Tensor, "b n c h w"]:
        n, c = features.shape[1:3]
        h, w = self.sizes
        numbers = describe(cameras)  # b n i
        if cameras.camera_mask is not None:
            numbers = numbers.masked_fill(~cameras.camera_mask[..., None], 0)
        angles = numbers[..., None] * self.octaves.to(numbers.dtype)
        numbers = torch.cat([numbers, angles.sin().flatten(2), angles.cos().flatten(2)], -1)
        with torch.autocast(features.device.type, enabled=False):
            found = self.outer(self.inner(rearrange(numbers, "b n i -> n b i").to(self.inner.weight.dtype), "gelu"))
        found = rearrange(found, "n b o -> (b n) o").to(features.dtype)
        rows = found[:, : h * h].unflatten(1, (h, h)) + self.eye_h.to(features.dtype)  # bn h h
        columns = found[:, h * h :].unflatten(1, (w, w)) + self.eye_w.to(features.dtype)  # bn w w
        x = rearrange(features, "b n c h w -> (b n) (c h) w") @ columns.mT
        x = rows @ rearrange(x, "z (c h) w -> z h (w c)", c=c)
        return rearrange(x, "(b n) h (w c) -> b n c h w", n=n, c=c)


def describe(cameras: Cameras) -> Float[Tensor, "b n 14"]:
    """A calibration in numbers that do not change when the image is resized."""
    height, width = cameras.image_size
    k, pose = cameras.intrinsics, cameras.ego_from_cam
    inside = [
        k[..., 0, 0] / width,
        k[..., 0, 1] / width,
        (k[..., 0, 2] + 0.5) / width,
        k[..., 1, 1] / height,
        (k[..., 1, 2] + 0.5) / height,
    ]
    return torch.cat([torch.stack(inside, -1), pose[..., :3, :2].flatten(2), pose[..., :3, 3]], -1)


@checked
class MLP(Reshaper):
    """``O = σ(W·X + b)``, W of size RC × hw, from every token to every cell, the same for all channels.

    After View Parsing Network (VPN; Pan et al., RA-L 2020) and HDMapNet (Li et al., ICRA 2022), which have one hidden
    layer of R·C tokens, each layer followed by σ. W is fixed after training: it holds one view of the world, needs no
    positional encoding and no calibration. VPN is ``hidden=[R·C]``; so is HDMapNet's MLP, whose output a camera is
    :meth:`per_camera` (it then turns each camera's map by its extrinsics and takes the largest, which is not done
    here).

    The published σ is relu, after the last layer too. Features that are never negative, as an encoder's behind its own
    relu, then leave a cell whose row of W is negative at 0 for every image, without a gradient that could bring it
    back: of a single layer behind the default encoder half of all cells. ``gelu``, with which ``conf`` trains, lets
    them live.

    ``rank=r`` writes W as U·V with U of RC × r and V of r × hw, r·(RC + hw) numbers and multiply-adds a channel in
    place of RC·hw: from 512 tokens to 100×100 cells, rank 64 takes .7 million in place of 5.1. The best U·V for a given
    W misses it by the singular values beyond the r-th, ``√Σσᵢ²`` (Eckart and Young 1936). For IPM of a front camera,
    16×32 features to 32 m × 32 m, that leaves .28 of the sum of squares at rank 32, .12 at 64 and .03 at 128, whatever
    the size of cells: what r cannot hold is blurred.

    ``calibration=True`` lets the mapping follow the camera, so that adapting to the image (attention) can be told
    apart from knowing where the camera looks. It becomes ``W·(A ⊗ B)``, with A and B, see :class:`Rectify`, moving the
    image's rows and columns: to first order, what pitch, height and yaw, focal length and principal point do; roll
    and a sideways step only in part. Scaling tokens (FiLM) could not move anything, and a change of W of low rank
    moves few of its cells. Learning IPM of one camera, 8×16 features to 12×12 cells, on 2000 calibrations (1.5° of
    pitch, 2° of yaw, 1° of roll, 0.1 m of height) in 1000 steps, the squared error left on others was, in parts of the
    variance, .105 without calibration, .042 and .018 with an added change of rank 32 and 128, .011 with 8 W's mixed
    linearly (.10 by softmax), and .011 with this, which has a quarter of their numbers to train; with three times the
    spread .49 without, .081 with 8 W's and .035 with this.

    Can it reproduce X at a cell that looks at exactly one token? With ``activation=none`` yes; with relu where X is
    not negative; with gelu and tanh nearly.

    Args:
        source: the features it will get.
        grid: the cells it fills, or (R, C).
        hidden: tokens of the hidden layers; none gives the single layer.
        channels: d, by a linear projection of the channels before W, ``O = σ(W·(X·P) + b)``; ``None`` keeps c.
        activation: σ, one of relu, gelu, tanh, none.
        views: ``per_view`` gives every camera its own layers and sums their outputs (VPN), a dropped camera left out
            of the sum; ``joint`` gives all cameras' tokens to one W, a dropped camera's as zeros.
        rank: of every layer's W that this makes smaller; ``None`` for full ones.
        calibration: read it; cameras must be given then, and a grid.

    Raises:
        InputError: an unknown activation or rule for views, or a rank that makes nothing smaller.
    """

    def __init__(
        self,
        source: FeatureShape,
        grid: BEVGrid | tuple[int, int],
        *,
        hidden: Sequence[Width] = (),
        channels: Width | None = None,
        activation: Activation = "relu",
        views: Literal["per_view", "joint"] = "per_view",
        rank: Width | None = None,
        calibration: bool = False,
    ) -> None:
        out_channels = source.channels if channels is None else channels
        super().__init__(source, grid, out_channels, needs_cameras=calibration)
        rows, cols = self.target_shape
        self.joint = views == "joint"
        self.activation = activation
        self.project = nn.Conv2d(source.channels, channels, 1, bias=False) if channels is not None else nn.Identity()
        groups, tokens = (1, source.cameras * source.tokens) if self.joint else (source.cameras, source.tokens)
        self.widths = [tokens, *hidden, rows * cols]
        # hidden layers need random features, but in the last one what W draws stays as noise beside what it learns
        gains = [1.0] * len(hidden) + [0.1]
        small = [rank is not None and rank * (i + o) < i * o for i, o in pairwise(self.widths)]
        if rank is not None and not any(small):
            i, o = max(pairwise(self.widths), key=math.prod)
            raise InputError(
                f"MLP: rank={rank} does not make W of {o}×{i} smaller; choose 1 to {max(1, (i * o - 1) // (i + o))}, "
                "or null"
            )
        self.layers = nn.ModuleList(
            LowRankLinear(groups, *pair, rank or 0, gain) if low else TokenLinear(groups, *pair, gain)
            for pair, gain, low in zip(pairwise(self.widths), gains, small, strict=True)
        )
        self.rectify = Rectify(source) if calibration else None

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        maps = self._maps(features, cameras)  # g b d cells
        bev = maps.sum(0) if len(maps) > 1 else maps[0]  # a sum over one would copy
        return bev.unflatten(-1, self.target_shape)

    def per_camera(
        self, features: Float[Tensor, "b n c h w"], cameras: Cameras | None = None
    ) -> Float[Tensor, "b n d R C"]:
        """What each camera adds to the sum.

        Raises:
            InputError: with ``views="joint"``, where cameras add nothing of their own; when a needed calibration is
                missing.
        """
        if self.joint:
            raise InputError("MLP: with views=joint one W reads all cameras; per_camera needs views=per_view")
        if self.needs_cameras:
            self.check_cameras(cameras)
        return self._maps(without_dropped(features, cameras), cameras).transpose(0, 1).unflatten(-1, self.target_shape)

    def _maps(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        """(b, n, c, h, w) → (g, b, d, cells)."""
        b, n = features.shape[:2]
        x = self.project(features.flatten(0, 1)).unflatten(0, (b, n))  # b n d h w
        if self.rectify is not None:
            assert cameras is not None  # compared in forward
            x = self.rectify(x, cameras)
        x = rearrange(x, "b n d h w -> 1 (b d) (n h w)" if self.joint else "b n d h w -> n (b d) (h w)")
        for layer in self.layers:
            x = layer(x, self.activation)  # g (b d) cells
        maps = x.unflatten(1, (b, -1))  # g b d cells
        if self.joint or cameras is None or cameras.camera_mask is None:
            return maps
        return maps * cameras.camera_mask.T[..., None, None].to(maps.dtype)  # σ(b) remains of a dropped camera

    @torch.no_grad()
    def load_original(self, state_dict: Mapping[str, Any]) -> "MLP":
        """Take the weights of VPN's ``TransformModule`` or of HDMapNet's ``ViewTransformation``.

        Built as ``MLP(source, grid, hidden=[R * C])`` this gives VPN's output, and :meth:`per_camera` HDMapNet's.

        Args:
            state_dict: that module's, its keys ``mat_list.{camera}.{0,2}.{weight,bias}`` or ``hw_mat.…``, with or
                without a prefix.

        Raises:
            InputError: when something is missing, left over or of another size, or options make this another network.
        """
        full = [layer for layer in self.layers if isinstance(layer, TokenLinear)]
        plain = not (self.joint or self.rectify or isinstance(self.project, nn.Conv2d)) and len(full) == len(
            self.layers
        )
        if not plain or self.activation != "relu":
            raise InputError(
                "MLP: the originals have neither joint views, rank, calibration nor projected channels, and relu; "
                "leave views, rank, calibration, channels and activation as they are"
            )
        given = {(int(m[1]), int(m[2]), m[3]): state_dict[m[0]] for m in map(ORIGINAL.fullmatch, state_dict) if m}
        if len(given) < sum(ORIGINAL.fullmatch(key) is not None for key in state_dict):
            raise InputError(
                "MLP: the original's state dict has a camera's weights twice; give its view module's alone"
            )
        cameras = range(self.source.cameras)
        wanted = {(i, 2 * j, kind) for i in cameras for j in range(len(full)) for kind in ("weight", "bias")}
        missing = sorted("{}.{}.{}".format(*key) for key in wanted - given.keys())
        left = sorted("{}.{}.{}".format(*key) for key in given.keys() - wanted)
        left += sorted(key for key in state_dict if not ORIGINAL.fullmatch(key))
        if missing or left:
            raise InputError(
                f"MLP: the original's state dict lacks {missing[:4]} and has {left[:4]} left over; give its view "
                "module's alone, and build for as many cameras and with hidden=[R * C]"
            )
        for j, layer in enumerate(full):
            for kind, own in layer.named_parameters():
                theirs = torch.stack([given[i, 2 * j, kind] for i in cameras])
                theirs = theirs.unsqueeze(1) if kind == "bias" else theirs
                if theirs.shape != own.shape:
                    raise InputError(
                        f"MLP: {kind} {2 * j} of the original is {tuple(theirs.shape[1:])} but {tuple(own.shape[1:])} "
                        "here; rebuild it for the same features and cells, with hidden=[R * C]"
                    )
                own.copy_(theirs)
        return self
