"""Positional encodings of tokens; without one, attention treats tokens as a set."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bevreshape.config.options import checked
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras, FeatureShape

Encoding = Literal["none", "sinusoidal", "learned", "rotary"]


def sinusoidal(rows: int, cols: int, channels: int) -> Tensor:
    """Return a 2D sinusoidal encoding, (rows·cols, channels): half the channels encode the row, half the column.

    An axis of N cells has m = channels / 4 frequencies ω, a geometric sequence from π/2 to π/N per cell; cell j has
    ``sin ω·(j + ½)`` and ``cos ω·(j + ½)``. The shortest wave distinguishes neighbours, and the longest does not repeat
    on the map. The fixed base of 10000 (Vaswani et al. 2017) suits long sentences; here most channels would be
    constant.

    Raises:
        InputError: if channels are not divisible by 4.
    """
    if channels % 4:
        raise InputError(
            f"positional encoding: {channels} channels cannot hold sine and cosine of two axes; choose a multiple of 4"
        )

    def axis(cells: int) -> Tensor:
        slowness = torch.linspace(0, 1, channels // 4, dtype=torch.float64)
        omega = math.pi / 2 * (2 / cells) ** slowness  # m
        phase = (torch.arange(cells, dtype=torch.float64) + 0.5)[:, None] * omega  # cells m
        return torch.cat([phase.sin(), phase.cos()], dim=1)  # cells channels/2

    row = axis(rows)[:, None].expand(rows, cols, -1)
    col = axis(cols)[None].expand(rows, cols, -1)
    return torch.cat([row, col], dim=2).flatten(0, 1).float()


@checked
class PositionalEncoding(nn.Module):
    """Adds an encoding of its position to every token of one or several maps of equal shape.

    Args:
        kind: ``none`` adds nothing; ``sinusoidal`` a fixed wave, and with several maps a learned vector per map;
            ``learned`` a learned vector per token of every map; ``rotary`` only a learned vector per map if there are
            several, since :class:`RotaryEncoding` encodes positions within a map.
        shape: (rows, columns) of a map.
        channels: channels of a token.
        maps: number of concatenated maps, such as the cameras of a rig.

    Raises:
        InputError: if the kind is unknown, or sinusoids do not fit the channels.
    """

    wave: Tensor

    def __init__(self, kind: Encoding, shape: tuple[int, int], channels: int, maps: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.tokens = math.prod(shape)
        a_map = 1 if maps > 1 else 0
        learned_tokens = {"none": 0, "sinusoidal": a_map, "learned": math.prod(shape), "rotary": a_map}[kind]
        if kind == "sinusoidal":
            self.register_buffer("wave", sinusoidal(*shape, channels), persistent=False)
        self.learned: nn.Parameter | None = None
        if learned_tokens:
            # the variance of a wave
            self.learned = nn.Parameter(torch.randn(maps, learned_tokens, channels) * math.sqrt(0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the encoding to (b, maps·rows·cols, channels), or to the same without b."""
        waving = self.kind == "sinusoidal"
        if self.learned is None:
            return tokens + self.wave if waving else tokens
        encoding = self.learned + self.wave if waving else self.learned.expand(-1, self.tokens, -1)
        return tokens + encoding.flatten(0, 1)  # maps rows·cols channels before


class RotaryEncoding(nn.Module):
    """Rotates projected queries and keys by their positions, so that scores depend on their distance.

    This is RoFormer's encoding (Su et al. 2021) in two dimensions. Channels i and i + d/2 of a head are one complex
    number. The first half of these d/2 rotate with the row, the second with the column, ``q·exp(i·ω·p)`` and
    ``k·exp(i·ω·p)``; their product depends on ``ω·(p_k - p_q)`` alone. Maps of different shape are stretched over each
    other: cell j of N is at ``p = (j + ½) / N``. An axis has m = d / 4 frequencies ω, a geometric sequence from π/2 per
    cell of the finer map to π per map. The fastest distinguishes neighbours; the slowest makes less than half a turn
    over the map. RoFormer's base of 10000 suits long sentences.

    Args:
        queries: (rows, columns) of the map of queries.
        keys: (rows, columns) of a map of keys.
        channels: d, of one head.
        maps: number of concatenated maps of keys, such as the cameras of a rig; all are rotated alike.

    Raises:
        InputError: if channels are not divisible by 4.
    """

    turn_queries: Tensor
    turn_keys: Tensor

    def __init__(self, queries: tuple[int, int], keys: tuple[int, int], channels: int, maps: int = 1) -> None:
        super().__init__()
        if channels % 4:
            raise InputError(
                f"rotary encoding: a head of {channels} channels cannot hold pairs for two axes; choose dim and heads "
                "so that dim / heads is a multiple of 4"
            )
        self.maps = maps
        finer = (max(queries[0], keys[0]), max(queries[1], keys[1]))
        self.register_buffer("turn_queries", _turns(queries, finer, channels), persistent=False)
        self.register_buffer("turn_keys", _turns(keys, finer, channels), persistent=False)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate (b, heads, q, d) and (b, heads, maps·t, d)."""
        k = k.unflatten(-2, (self.maps, -1))
        return _turn(q, self.turn_queries), _turn(k, self.turn_keys).flatten(-3, -2)


class RayEncoding(nn.Module):
    """Adds a learned linear map of its viewing direction to every token.

    A direction is azimuth and elevation of the token's ray in the ego frame, each as sine and cosine at ``OCTAVES``
    frequencies, 1, 2, 4 … 32 per radian. They are integers, so that the azimuth has no seam behind the vehicle; half of
    the shortest wave is 5.6°. The camera's position is not part of it.

    Args:
        source: the shape of the features.
    """

    OCTAVES = 6

    pixels: Tensor
    octaves: Tensor

    def __init__(self, source: FeatureShape) -> None:
        super().__init__()
        self.register_buffer("pixels", source.pixels().flatten(0, 1), persistent=False)
        self.register_buffer("octaves", 2.0 ** torch.arange(self.OCTAVES), persistent=False)
        width = 4 * self.OCTAVES
        # the variance of a wave: the mean of a squared sine is a half
        self.weight = nn.Parameter(torch.randn(source.channels, width) * width**-0.5)

    def forward(self, tokens: Float[Tensor, "*b nt c"], cameras: Cameras) -> Float[Tensor, "b nt c"]:
        waves = self.waves(cameras).to(tokens.dtype)
        return tokens + F.linear(waves, self.weight)

    def waves(self, cameras: Cameras) -> Float[Tensor, "b nt w"]:
        """Return sines, then cosines, of azimuth and elevation; those of angles 0 for a dropped camera."""
        x, y, z = cameras.rays(self.pixels).unbind(-1)  # b n t
        angles = torch.stack([torch.atan2(y, x), torch.atan2(z, (x.square() + y.square()).sqrt())], -1)
        if cameras.camera_mask is not None:
            angles = torch.where(cameras.camera_mask[..., None, None], angles, 0)
        phase = (angles[..., None] * self.octaves.to(angles.dtype)).flatten(-2).flatten(1, 2)
        return torch.cat([phase.sin(), phase.cos()], -1)


def _turns(shape: tuple[int, int], finer: tuple[int, int], channels: int) -> Tensor:
    """Return cosine and sine of the rotations of a map's positions, (2, rows·cols, channels/2)."""
    slowness = torch.linspace(0, 1, channels // 4, dtype=torch.float64)
    row, col = (
        (torch.arange(cells, dtype=torch.float64) + 0.5)[:, None] / cells * math.pi * (most / 2) ** (1 - slowness)
        for cells, most in zip(shape, finer, strict=True)
    )  # cells m
    phase = torch.cat([row[:, None].expand(*shape, -1), col[None].expand(*shape, -1)], dim=2).flatten(0, 1)
    return torch.stack([phase.cos(), phase.sin()]).float()


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    real, imaginary = x.chunk(2, dim=-1)
    cos, sin = turns.to(x.dtype)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
