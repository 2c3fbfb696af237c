"""The strided convolution, window by window."""

import cv2
import numpy as np
import pytest
import torch
from rounding import rounding

from bevreshape.reshapers import FeatureShape, StridedConv


def windows(x: np.ndarray, conv: torch.nn.Conv2d, target: tuple[int, int]) -> np.ndarray:
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    kh, kw = x.shape[1] // target[0], x.shape[2] // target[1]
    out = np.zeros((len(bias), *target))
    for i in range(target[0]):
        for j in range(target[1]):
            window = x[:, i * kh : (i + 1) * kh, j * kw : (j + 1) * kw]
            out[:, i, j] = (weight * window).sum((1, 2, 3)) + bias
    return out


@pytest.mark.parametrize("target", [(4, 6), (2, 6), (4, 3), (8, 12)])
def test_even_and_uneven_strides(target: tuple[int, int]) -> None:
    x = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    reshaper = StridedConv(FeatureShape(3, 8, 12), target, channels=5).double()
    np.testing.assert_allclose(
        reshaper(x)[0].detach().numpy(), windows(x[0].numpy(), reshaper.conv, target), atol=1e-12
    )


@pytest.mark.parametrize(("target", "resized"), [((20, 20), (20, 40)), ((40, 40), (40, 40)), ((5, 10), (15, 30))])
def test_sizes_that_do_not_divide_are_resized_to_a_multiple(target, resized) -> None:
    x = torch.randn(1, 2, 16, 32, dtype=torch.float64)
    reshaper = StridedConv(FeatureShape(2, 16, 32), target).double()
    image = cv2.resize(x[0].numpy().transpose(1, 2, 0), resized[::-1], interpolation=cv2.INTER_LINEAR)
    expected = windows(image.transpose(2, 0, 1), reshaper.conv, target)
    atol = rounding(256, float(np.abs(image).max()))  # OpenCV's weights are float32, up to 32 features wide
    np.testing.assert_allclose(reshaper(x)[0].detach().numpy(), expected, atol=atol)
