"""The fully connected view transformer."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

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
"""VPN's and HDMapNet's names of a parameter: camera, position in its Linear-ReLU-Linear-ReLU, kind."""


class TokenLinear(nn.Module):
    """``W·X + b`` over tokens, one W per group: (g, m, tokens) → (g, m, cells)."""

    def __init__(self, groups: int, tokens: int, cells: int, gain: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, cells, tokens))
        self.bias = nn.Parameter(torch.zeros(groups, 1, cells)) if bias else None
        nn.init.normal_(self.weight, std=gain / math.sqrt(tokens))  # gain 1 keeps the variance

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return grouped_linear(x, self.weight, self.bias, activation)


class LowRankLinear(nn.Module):
    """``U·(V·X) + b``: a :class:`TokenLinear` with ``W = U·V`` of rank ``rank``."""

    def __init__(self, groups: int, tokens: int, cells: int, rank: int, gain: float) -> None:
        super().__init__()
        self.inner = TokenLinear(groups, tokens, rank, 1.0, bias=False)
        self.outer = TokenLinear(groups, rank, cells, gain)

    @property
    def weight(self) -> Tensor:
        """Return W, (g, cells, tokens)."""
        return self.outer.weight @ self.inner.weight

    def forward(self, x: Tensor, activation: str) -> Tensor:
        return self.outer(self.inner(x), activation)


class Rectify(nn.Module):
    """Move the image's rows and columns by the calibration: ``X' = A·X·Bᵀ`` of every channel, (h, w).

    A (h×h) and B (w×w) are the identity plus the output of a small MLP per camera, initially 0. Its input is the
    calibration in 14 numbers: focal lengths, skew and principal point relative to the image, two columns of
    ego_from_cam's rotation, and translation in metres. Each is encoded by sine and cosine at ``OCTAVES`` frequencies,
    because small differences such as half a degree are otherwise hard to learn.
    """

    OCTAVES = 5  # 1, 2, 4, 8 and 16 radians per unit
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
    """Describe a calibration in 14 numbers that do not change when the image is resized."""
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
    layer of R·C tokens, with σ after each layer. W is fixed after training: it represents one view of the world, and
    needs neither positional encoding nor calibration. VPN is ``hidden=[R·C]``. So is HDMapNet's MLP, whose output per
    camera is :meth:`per_camera`; it then warps each camera's map by its extrinsics and takes the maximum, which is not
    done here.

    The published σ is relu, after the last layer too. If features are never negative, as after an encoder's relu, a
    cell with a negative row of W is 0 for every image and has no gradient: half of all cells, for a single layer after
    the default encoder. ``gelu``, the default in ``conf``, avoids this.

    ``rank=r`` factors W as U·V with U of RC × r and V of r × hw: r·(RC + hw) parameters and multiply-adds per channel
    instead of RC·hw. From 512 tokens to 100×100 cells, rank 64 has .7 million instead of 5.1. The best U·V for a given
    W has the error ``√Σσᵢ²`` of the singular values beyond the r-th (Eckart and Young 1936). For IPM of a front camera,
    16×32 features to 32 m × 32 m, this is .28 of the sum of squares at rank 32, .12 at 64 and .03 at 128, for every
    size of cells; the error is blur.

    ``calibration=True`` makes the mapping depend on the camera, to separate adaptation to the image (attention) from
    knowledge of the camera's pose. The mapping becomes ``W·(A ⊗ B)``; A and B move the image's rows and columns, see
    :class:`Rectify`. To first order these are the effects of pitch, height, yaw, focal length and principal point; roll
    and sideways translation are covered only in part. Scaling tokens (FiLM) could not move anything, and a low-rank
    change of W moves few cells. In a test, IPM of one camera, 8×16 features to 12×12 cells, was learned from 2000
    calibrations (1.5° of pitch, 2° of yaw, 1° of roll, 0.1 m of height) in 1000 steps. The squared error on other
    calibrations, relative to the variance, was .105 without calibration, .042 and .018 with an added change of rank 32
    and 128, .011 with a linear mixture of 8 W's (.10 by softmax), and .011 with this, at a quarter of their parameters.
    At three times the spread it was .49 without, .081 with 8 W's and .035 with this.

    Can it reproduce X at a cell that observes exactly one token? Yes with ``activation=none``; with relu if X is
    not negative; nearly with gelu and tanh.

    Args:
        source: the shape of its features.
        grid: the cells it fills, or (R, C).
        hidden: numbers of tokens of the hidden layers; an empty list gives the single layer.
        channels: d, by a linear projection of the channels before W, ``O = σ(W·(X·P) + b)``; ``None`` keeps c.
        activation: σ, one of relu, gelu, tanh, none.
        views: ``per_view`` gives every camera its own layers and sums their outputs without dropped cameras (VPN);
            ``joint`` gives all cameras' tokens to one W, with zeros for dropped cameras.
        rank: rank of every layer's W that becomes smaller by it; ``None`` for full matrices.
        calibration: read the calibration; cameras and a grid are then required.

    Raises:
        InputError: if the activation or ``views`` is unknown, or the rank makes no layer smaller.
    """

    worth_tuning: ClassVar = {"hidden": ([512],)}

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
        # hidden layers need random features, but the last W's initial values would remain as noise
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
        """Return each camera's term of the sum.

        Raises:
            InputError: with ``views="joint"``, which has no such terms, or if a needed calibration is missing.
        """
        if self.joint:
            raise InputError("MLP: with views=joint one W reads all cameras; per_camera needs views=per_view")
        if self.needs_cameras:
            self.check_cameras(cameras)
        return self._maps(without_dropped(features, cameras), cameras).transpose(0, 1).unflatten(-1, self.target_shape)

    def _maps(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        """Map (b, n, c, h, w) → (g, b, d, cells)."""
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
        return maps * cameras.camera_mask.T[..., None, None].to(maps.dtype)  # a dropped camera would add σ(b)

    @torch.no_grad()
    def load_original(self, state_dict: Mapping[str, Any]) -> "MLP":
        """Load the weights of VPN's ``TransformModule`` or of HDMapNet's ``ViewTransformation``.

        Built as ``MLP(source, grid, hidden=[R * C])`` this gives VPN's output, and :meth:`per_camera` HDMapNet's.

        Args:
            state_dict: that module's, with keys ``mat_list.{camera}.{0,2}.{weight,bias}`` or ``hw_mat.…``, with or
                without a prefix.

        Raises:
            InputError: if weights are missing, left over or of another size, or options define another network.
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
