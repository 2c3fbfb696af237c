"""Positional encodings distinguish positions."""

import math

import numpy as np
import pytest
import torch
from rounding import rounding

from bevreshape.errors import InputError
from bevreshape.reshapers.positional import PositionalEncoding, RotaryEncoding, sinusoidal


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
def test_encodings_of_positions_are_distinct(shape: tuple[int, int]) -> None:
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
    assert torch.equal(PositionalEncoding("rotary", (4, 5), 8)(tokens[:, :20]), tokens[:, :20])
    turned = PositionalEncoding("rotary", (4, 5), 8, 3)
    shifts = (turned(tokens) - tokens).unflatten(1, (3, 20))[0]
    torch.testing.assert_close(shifts, turned.learned.expand(3, 20, 8))
    learned = PositionalEncoding("learned", (4, 5), 8, 3)
    assert [tuple(p.shape) for p in learned.parameters()] == [(3, 20, 8)]


def test_channels_that_do_not_hold_two_axes_are_refused() -> None:
    with pytest.raises(InputError, match="6 channels"):
        sinusoidal(2, 2, 6)


def test_rotary_scores_depend_on_distances_only() -> None:
    rows, cols = 3, 5
    q, k = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    turned = RotaryEncoding((rows, cols), (rows, cols), 12)(q.expand(1, 1, 15, 12), k.expand(1, 1, 15, 12))
    scores = (turned[0] @ turned[1].mT)[0, 0].unflatten(1, (rows, cols)).unflatten(0, (rows, cols))
    turned_by = rounding(12, 10 * math.pi)  # twelve products, of angles up to so much
    of_offset: dict[tuple[int, int], float] = {}
    for row in range(rows):
        for col in range(cols):
            for i in range(rows):
                for j in range(cols):
                    score = scores[row, col, i, j].item()
                    assert of_offset.setdefault((i - row, j - col), score) == pytest.approx(score, abs=turned_by)
    assert of_offset[0, 0] == pytest.approx((q @ k).item(), abs=turned_by)
    different = np.diff(sorted(of_offset.values()))
    assert len(of_offset) == (2 * rows - 1) * (2 * cols - 1)
    assert different.min() > 1e-4


def test_rotations_equal_their_formula() -> None:
    """Of maps of different shape, channels taken in pairs as complex numbers."""
    queries, keys, d, maps = (2, 6), (4, 3), 8, 2
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 12, d, generator=generator), torch.randn(1, 1, 24, d, generator=generator)
    turned = [x[0, 0].numpy() for x in RotaryEncoding(queries, keys, d, maps)(q, k)]
    for before, after, (rows, cols), copies in ((q, turned[0], queries, 1), (k, turned[1], keys, maps)):
        for number in range(copies * rows * cols):
            row, col = divmod(number % (rows * cols), cols)
            for channel in range(4):
                place = (row + 0.5) / rows if channel < 2 else (col + 0.5) / cols
                fastest = math.pi / 2 * (4 if channel < 2 else 6)  # cells of the finer map
                omega = fastest if channel % 2 == 0 else math.pi
                pair = before[0, 0, number, [channel, channel + 4]].numpy()
                expected = complex(*pair) * np.exp(1j * omega * place)
                assert complex(*after[number, [channel, channel + 4]]) == pytest.approx(expected, abs=1e-5)


def test_heads_that_do_not_hold_two_axes_are_refused() -> None:
    with pytest.raises(InputError, match=r"head of 6 channels .* dim / heads is a multiple of 4"):
        RotaryEncoding((2, 2), (2, 2), 6)
