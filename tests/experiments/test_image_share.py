"""The image's share of a map's variance, where it is known."""

import pytest
import torch

from bevreshape.experiments.image_share import image_share


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_maps_independent_of_the_image_have_share_0() -> None:
    assert image_share(normal(1, 3, 5, 4).expand(6, -1, -1, -1)) == 0
    assert image_share(torch.ones(6, 3, 5, 4)) == 0


@pytest.mark.parametrize("of_image", [0.0, 0.3, 1.0, 3.0])
def test_of_two_independent_parts_it_is_that_of_their_variances(of_image: float) -> None:
    learned, image = normal(1, 8, 20, 20), of_image * normal(40, 8, 20, 20, seed=1)
    expected = of_image**2 / (1 + of_image**2)
    assert image_share(learned + image) == pytest.approx(expected, abs=0.02)


def test_few_samples_do_not_look_like_learned_maps() -> None:
    """The mean over two images varies from cell to cell as well, by half of their variance."""
    assert image_share(normal(2, 64, 30, 30)) == pytest.approx(1.0, abs=0.02)


def test_a_brightness_of_the_whole_image_is_the_images() -> None:
    bev = normal(10, 2, 1, 1).expand(-1, -1, 6, 6)
    assert image_share(bev) == 1
    shared = bev + normal(1, 2, 6, 6, seed=1)
    apart = (shared - shared.mean((2, 3), keepdim=True))[0]
    expected = bev.var(0).sum() / (bev.var(0).sum() + apart.square().sum())
    assert image_share(shared) == pytest.approx(expected.item(), rel=1e-5)


def test_a_constant_of_a_channel_does_not_count() -> None:
    bev = normal(5, 2, 4, 4)
    assert image_share(bev + torch.tensor([7.0, -30.0])[:, None, None]) == pytest.approx(image_share(bev), rel=1e-4)
