"""Pooling, bin by bin."""

import math

import numpy as np
import pytest
import torch
from rounding import rounding

from bevreshape.errors import InputError
from bevreshape.reshapers import FeatureShape, Pool


@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("target", [(4, 6), (4, 3), (3, 5), (20, 20), (8, 12), (1, 1)])
def test_every_cell_pools_its_bin(mode: str, target: tuple[int, int]) -> None:
    h, w = 8, 12
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    bev = Pool(FeatureShape(3, h, w), target, mode=mode)(x).numpy()
    atol = rounding(h * w, x)
    reduce = np.mean if mode == "average" else np.max
    for i in range(target[0]):
        for j in range(target[1]):
            rows = slice(math.floor(i * h / target[0]), math.ceil((i + 1) * h / target[0]))
            cols = slice(math.floor(j * w / target[1]), math.ceil((j + 1) * w / target[1]))
            np.testing.assert_allclose(
                bev[..., i, j], reduce(x.double().numpy()[..., rows, cols], axis=(2, 3)), atol=atol
            )


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="mode='averag' must be average or max; did you mean average"):
        Pool(FeatureShape(3, 8, 8), (4, 4), mode="averag")
