"""Decoders: where their cells are."""

import pytest
import torch
from torch import nn

from bevreshape.errors import InputError
from bevreshape.heads import ConvHead, PyramidHead


def build(name: str) -> nn.Module:
    if name == "conv":
        return ConvHead(4, 2, upsample=4, channels=8, final_channels=8)
    return PyramidHead(4, 2, widths=[8, 6], upsample=4, final_channels=8)


@pytest.mark.parametrize("name", ["conv", "pyramid"])
def test_every_parameter_has_a_gradient(name: str) -> None:
    head = build(name)
    maps = head(torch.randn(3, 4, 5, 7))
    assert maps.shape == (3, 2, 20, 28)
    maps.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@pytest.mark.parametrize(("row", "col"), [(2, 3), (6, 4)])
def test_coarse_cells_are_centred_on_their_fine_cells(row: int, col: int) -> None:
    """With symmetric kernels what a cell lights is centred on its fine cells, far from the middle of the grid too."""
    torch.manual_seed(0)
    head = build("pyramid").eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.weight.detach().abs()
            module.weight.data = (kernel + kernel.flip(-1) + kernel.flip(-2) + kernel.flip(-1, -2)) / 4
            if module.bias is not None:
                module.bias.data.zero_()
    bev = torch.zeros(1, 4, 10, 9)
    bev[..., row, col] = 1
    light = head(bev)[0, 0].detach()
    places = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij")
    found = [float((light * place).sum() / light.sum()) for place in places]
    assert found == pytest.approx([4 * row + 1.5, 4 * col + 1.5], abs=1e-3)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"upsample=8 but .*\[8, 6\] double the grid 2 times; set upsample=4"):
        PyramidHead(4, 2, widths=[8, 6], upsample=8)
