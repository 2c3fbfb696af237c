"""Positional encodings tell places apart."""

import math

import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.reshapers.positional import PositionalEncoding, sinusoidal


def test_sinusoidal_is_its_formula() -> None:
    rows, cols, channels = 3, 5, 12
    wave = sinusoidal(rows, cols, channels).reshape(rows, cols, channels)
    m = channels // 4
    for row in range(rows):
        for col in range(cols):
            for axis, (place, cells) in enumerate([(row, rows), (col, cols)]):
                for i in range(m):
                    shortest, longest = math.pi / 2, math.pi / cells
                    omega = shortest * (longest / shortest) ** (i / (m - 1))
                    at = 2 * m * axis + i
                    assert wave[row, col, at].item() == pytest.approx(math.sin(omega * (place + 0.5)), abs=1e-6)
                    assert wave[row, col, at + m].item() == pytest.approx(math.cos(omega * (place + 0.5)), abs=1e-6)


@pytest.mark.parametrize("shape", [(16, 32), (1, 40), (40, 40)])
def test_no_two_places_look_alike(shape: tuple[int, int]) -> None:
    wave = sinusoidal(*shape, 16)
    apart = torch.cdist(wave, wave) + 10 * torch.eye(len(wave))
    assert apart.min() > 0.1


def test_kinds() -> None:
    tokens = torch.randn(2, 3 * 20, 8)
    assert torch.equal(PositionalEncoding("none", (4, 5), 8, 3)(tokens), tokens)
    one = PositionalEncoding("sinusoidal", (4, 5), 8)
    assert not list(one.parameters())
    assert not one.state_dict()
    torch.testing.assert_close(one(tokens[:, :20]) - tokens[:, :20], sinusoidal(4, 5, 8).expand(2, 20, 8))
    rig = PositionalEncoding("sinusoidal", (4, 5), 8, 3)
    shifts = ((rig(tokens) - tokens).unflatten(1, (3, 20)) - sinusoidal(4, 5, 8))[0]  # 3 20 8
    torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts))
    assert torch.cdist(shifts[:, 0], shifts[:, 0]).fill_diagonal_(1).min() > 0.1
    learned = PositionalEncoding("learned", (4, 5), 8, 3)
    assert [tuple(p.shape) for p in learned.parameters()] == [(3, 20, 8)]


def test_channels_that_do_not_hold_two_axes_are_refused() -> None:
    with pytest.raises(InputError, match="6 channels"):
        sinusoidal(2, 2, 6)
