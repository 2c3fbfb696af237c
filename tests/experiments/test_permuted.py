"""An encoder whose tokens come in another order is the encoder, and its tokens are in that order."""

import torch

from bevreshape.encoders import TimmEncoder
from bevreshape.experiments.permuted import PermutedEncoder

SIZES = {"image_size": (32, 64), "cameras": 2, "channels": 8}


def test_tokens_of_every_camera_are_moved_alike_and_lost_nowhere() -> None:
    permuted, plain = PermutedEncoder(permutation=3, **SIZES).eval(), TimmEncoder(**SIZES).eval()
    plain.load_state_dict({name: value for name, value in permuted.state_dict().items() if name != "permutation"})
    image = torch.rand(2, 2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved, still = permuted(image), plain(image)
    order = permuted.permutation.tolist()
    assert sorted(order) == list(range(4 * 8))
    assert order != sorted(order)
    for place, token in enumerate(order):
        torch.testing.assert_close(moved[..., place // 8, place % 8], still[..., token // 8, token % 8])


def test_the_order_is_that_of_the_seed_and_of_the_checkpoint() -> None:
    one, same, other = (PermutedEncoder(permutation=seed, **SIZES) for seed in (3, 3, 4))
    assert torch.equal(one.permutation, same.permutation)
    assert not torch.equal(one.permutation, other.permutation)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.permutation, other.permutation)
