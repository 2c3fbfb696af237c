"""What tells attention where a token lies: without an encoding it sees a set."""

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
    """2D sinusoidal encoding, (rows·cols, channels): half the channels tell the row, half the column.

    An axis of N cells has m = channels / 4 frequencies ω, in a geometric row from π/2 to π/N per cell; cell j gets
    ``sin ω·(j + ½)`` and ``cos ω·(j + ½)``. The shortest wave tells neighbours apart, the longest does not repeat on
    the map. The fixed base of 10000 (Vaswani et al. 2017), made for long sentences, would leave most channels constant
    here.

    Raises:
        InputError: when channels are not divisible by 4.
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
    """Adds to every token of one or several equal maps what tells its place.

    Args:
        kind: ``none`` adds nothing; ``sinusoidal`` a fixed wave, and with several maps one learned vector a map;
            ``learned`` one learned vector a token of every map; ``rotary`` nothing to a single map and one learned
            vector a map to several, since :class:`RotaryEncoding` tells places within a map.
        shape: (rows, columns) of a map.
        channels: of a token.
        maps: how many maps follow one another, such as the cameras of a rig.

    Raises:
        InputError: an unknown kind, or channels that sinusoids do not fit.
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
            # as strong as a wave
            self.learned = nn.Parameter(torch.randn(maps, learned_tokens, channels) * math.sqrt(0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, maps·rows·cols, channels), or without b, with the encoding added."""
        waving = self.kind == "sinusoidal"
        if self.learned is None:
            return tokens + self.wave if waving else tokens
        encoding = self.learned + self.wave if waving else self.learned.expand(-1, self.tokens, -1)
        return tokens + encoding.flatten(0, 1)  # maps rows·cols channels before


class RotaryEncoding(nn.Module):
    """Turns projected queries and keys by their places, so that a score knows how far apart they lie (RoFormer, Su et
    al. 2021), here in two dimensions.

    Channels i and i + d/2 of a head are one complex number; of these d/2, the first half turn with the row and the
    second with the column, ``q·exp(i·ω·p)`` and ``k·exp(i·ω·p)``, whose product knows ``ω·(p_k - p_q)`` alone. Maps of
    different shape are laid over each other: cell j of N lies at ``p = (j + ½) / N``. An axis has m = d / 4 frequencies
    ω, in a geometric row from π/2 per cell of the finer map to π per map: the fastest tells neighbours apart, the
    slowest makes less than half a turn between any two places. RoFormer's base of 10000 is made for long sentences.

    Args:
        queries: (rows, columns) of the map of queries.
        keys: (rows, columns) of a map of keys.
        channels: d, of one head.
        maps: how many maps of keys follow one another, such as the cameras of a rig; all are turned alike.

    Raises:
        InputError: when channels are not divisible by 4.
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
        """(b, heads, q, d) and (b, heads, maps·t, d), turned."""
        k = k.unflatten(-2, (self.maps, -1))
        return _turn(q, self.turn_queries), _turn(k, self.turn_keys).flatten(-3, -2)


class RayEncoding(nn.Module):
    """Adds to every token a learned linear map of the direction in which it looks.

    A direction is azimuth and elevation of the token's ray in the ego frame, each as sine and cosine at ``OCTAVES``
    frequencies, 1, 2, 4 … 32 a radian. They are integers, so that the azimuth has no seam behind the vehicle; half of
    the shortest wave is 5.6°. Where a camera stands is not part of it.

    Args:
        source: of the tokens, camera by camera.
    """

    OCTAVES = 6

    pixels: Tensor
    octaves: Tensor

    def __init__(self, source: FeatureShape) -> None:
        super().__init__()
        self.register_buffer("pixels", source.pixels().flatten(0, 1), persistent=False)
        self.register_buffer("octaves", 2.0 ** torch.arange(self.OCTAVES), persistent=False)
        width = 4 * self.OCTAVES
        # as strong as a wave: half of the waves' squares is their mean
        self.weight = nn.Parameter(torch.randn(source.channels, width) * width**-0.5)

    def forward(self, tokens: Float[Tensor, "*b nt c"], cameras: Cameras) -> Float[Tensor, "b nt c"]:
        waves = self.waves(cameras).to(tokens.dtype)
        return tokens + F.linear(waves, self.weight)

    def waves(self, cameras: Cameras) -> Float[Tensor, "b nt w"]:
        """Sines, then cosines, of azimuth and elevation; those of angles 0 for a dropped camera."""
        x, y, z = cameras.rays(self.pixels).unbind(-1)  # b n t
        angles = torch.stack([torch.atan2(y, x), torch.atan2(z, (x.square() + y.square()).sqrt())], -1)
        if cameras.camera_mask is not None:
            angles = torch.where(cameras.camera_mask[..., None, None], angles, 0)
        phase = (angles[..., None] * self.octaves.to(angles.dtype)).flatten(-2).flatten(1, 2)
        return torch.cat([phase.sin(), phase.cos()], -1)


def _turns(shape: tuple[int, int], finer: tuple[int, int], channels: int) -> Tensor:
    """Cosine and sine by which the places of a map are turned, (2, rows·cols, channels/2)."""
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
