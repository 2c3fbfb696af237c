"""Random fields against the covariance that they state."""

import numpy as np
import pytest
import torch

from bevreshape.experiments.fields import smooth_fields
from bevreshape.reshapers import FeatureShape


@pytest.mark.parametrize("length", [0, 0.7, 1.5, 3.0])
def test_fields_have_unit_variance_and_the_stated_correlation(length: float) -> None:
    source = FeatureShape(channels=20, height=5, width=6)
    fields = smooth_fields(2000, source, length, torch.Generator().manual_seed(5)).double().numpy()
    maps = fields.reshape(-1, 30)  # 40000 independent ones
    row, col = np.divmod(np.arange(30), 6)
    squared = (row[:, None] - row) ** 2 + (col[:, None] - col) ** 2
    expected = np.exp(-squared / (2 * length**2)) if length else np.eye(30)
    np.testing.assert_allclose(maps.T @ maps / len(maps), expected, atol=0.03)  # 4 standard errors
    np.testing.assert_allclose(maps.mean(0), 0, atol=0.025)
    across = np.einsum("bchw,bdhw->cd", fields, fields) / 2000 / 30
    np.testing.assert_allclose(across, np.eye(20), atol=0.12)  # channels have nothing in common
