"""What tells attention where a token lies: without an encoding it sees a set."""

import math

import torch
from torch import Tensor, nn

from bevreshape.errors import InputError, suggest

KINDS = ("none", "sinusoidal", "learned")


def sinusoidal(rows: int, cols: int, channels: int) -> Tensor:
    """2D sinusoidal encoding, (rows·cols, channels): half the channels tell the row, half the column.

    An axis of N cells has m = channels / 4 frequencies ω, in a geometric row from π/2 to π/N per cell; cell j gets
    ``sin ω·(j + ½)`` and ``cos ω·(j + ½)``. The shortest wave tells neighbours apart, the longest does not repeat on the
    map. The fixed base of 10000 (Vaswani et al. 2017), made for long sentences, would leave most channels constant here.

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


class PositionalEncoding(nn.Module):
    """Adds to every token of one or several equal maps what tells its place.

    Args:
        kind: ``none`` adds nothing; ``sinusoidal`` a fixed wave, and with several maps one learned vector a map;
            ``learned`` one learned vector a token of every map.
        shape: (rows, columns) of a map.
        channels: of a token.
        maps: how many maps follow one another, such as the cameras of a rig.

    Raises:
        InputError: an unknown kind, or channels that sinusoids do not fit.
    """

    wave: Tensor

    def __init__(self, kind: str, shape: tuple[int, int], channels: int, maps: int = 1) -> None:
        super().__init__()
        if kind not in KINDS:
            raise InputError(f"positional encoding: there is no kind {kind}; {suggest(kind, KINDS)}")
        self.kind = kind
        learned_tokens = {"none": 0, "sinusoidal": 1 if maps > 1 else 0, "learned": math.prod(shape)}[kind]
        if kind == "sinusoidal":
            self.register_buffer("wave", sinusoidal(*shape, channels), persistent=False)
        self.learned: nn.Parameter | None = None
        if learned_tokens:
            # as strong as a wave
            self.learned = nn.Parameter(torch.randn(maps, learned_tokens, channels) * math.sqrt(0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, maps·rows·cols, channels), or without b, with the encoding added."""
        if self.kind == "none":
            return tokens
        if self.learned is None:
            return tokens + self.wave
        encoding = self.learned if self.kind == "learned" else self.learned + self.wave  # maps rows·cols channels
        return tokens + encoding.flatten(0, 1)
