"""Features of encoders with known padding, and disjoint parts of images."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from bevreshape.encoders import TimmEncoder
from bevreshape.errors import InputError
from bevreshape.experiments import encoder as module
from bevreshape.experiments.encoder import (
    IMAGE_SIZE,
    PARTS,
    SOURCE,
    Encoder,
    Padding,
    Part,
    build,
    features,
    place_readable,
)
from bevreshape.experiments.features import constant_error
from bevreshape.experiments.runs import HELD_OUT, TRAINING, TUNING_SEED, Setting, _part, stream_of

STREETS = Encoder(tune=6, train=12, test=8)
NOISE = {padding: Encoder(padding, "noise", 6, 96, 48) for padding in ("zeros", "reflect", "circular")}


def noise(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


def test_offset_of_feature_0_equals_the_encoders() -> None:
    (shape,) = TimmEncoder("resnet18", image_size=IMAGE_SIZE, cameras=1, strides=(8,), channels=16).sources
    assert shape == SOURCE


def test_circular_padding_commutes_with_every_shift_and_no_other_does() -> None:
    image, shift = noise(), (3 * SOURCE.stride, 5 * SOURCE.stride)

    def missed(padding: Padding) -> float:
        network = build(padding)
        with torch.no_grad():
            moved, still = (network(x)[0] for x in (image.roll(shift, (2, 3)), image))
        return ((moved - still.roll((3, 5), (2, 3))).norm() / still.norm()).item()

    assert missed("circular") < 1e-5
    assert missed("zeros") > 0.1
    assert missed("reflect") > 0.1


def test_networks_of_all_paddings_are_the_same_away_from_the_border() -> None:
    image = noise(1)
    center = torch.nn.functional.pad(image[..., 28:36, 60:68], (60, 60, 28, 28))  # 8×8 pixels amid zeros
    with torch.no_grad():
        made = [build(padding)(center)[0][..., 3:5, 7:9] for padding in ("zeros", "reflect", "circular")]
    for one, other in combinations(made, 2):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_position_is_readable_only_with_zero_padding() -> None:
    found = {padding: place_readable(encoder) for padding, encoder in NOISE.items()}
    assert min(found["zeros"]) > 0.2
    assert max(map(abs, found["circular"])) < 0.02  # by theorem 0


def test_position_in_channels_is_read_entirely(monkeypatch: pytest.MonkeyPatch) -> None:
    where = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(16.0), indexing="ij"))
    monkeypatch.setattr(module, "features", lambda encoder, part: where.expand(encoder.count(part), -1, -1, -1))
    assert place_readable(STREETS) == pytest.approx((1.0, 1.0))


def test_the_best_map_without_a_look_is_the_mean_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are a place and noise; the mean target knows the place, so noise is all that it misses."""
    place = torch.randn(16, 8, 16, generator=torch.Generator().manual_seed(9))

    def made(encoder: Encoder, part: Part) -> torch.Tensor:
        own = torch.Generator().manual_seed(PARTS.index(part))
        return place + torch.randn(encoder.count(part), 16, 8, 16, generator=own)

    monkeypatch.setattr(module, "features", made)
    encoder = Encoder(train=4096, test=512)
    world = Setting("mlp", encoder=encoder).world
    s = world.sampling(world.posed(torch.zeros(1, 3)))[0].double()  # q t
    seen = s.sum(1) > 0
    known = (s @ place.flatten(1).T.double())[seen]
    noise = s[seen].square().sum() * 16  # its variance over images, summed over cells and channels
    total = noise + (known - known.mean(0)).square().sum()
    assert constant_error(encoder) == pytest.approx((noise / total).item(), rel=0.02)


@pytest.mark.slow
def test_features_are_standardised_over_the_training_images() -> None:
    train, test = features(STREETS, "train"), features(STREETS, "test")
    assert train.shape == (12, 16, 8, 16)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3)), torch.ones(16))
    assert 0.01 < test.mean((0, 2, 3)).abs().max() < 1


def test_no_image_is_in_two_parts() -> None:
    seen = {part: {x.numpy().tobytes() for x in features(STREETS, part)} for part in PARTS}
    assert [len(seen[part]) for part in PARTS] == [6, 6, 12, 8]
    for one, other in combinations(PARTS, 2):
        assert not seen[one] & seen[other]
    assert {_part(seed, purpose) for seed in (0, TUNING_SEED) for purpose in (TRAINING, HELD_OUT)} == set(PARTS)


def test_a_batch_is_of_images_of_its_part_and_its_target_their_mapping() -> None:
    setting = Setting("mlp", encoder=STREETS)
    stream = stream_of(setting, 0, HELD_OUT)
    batch = stream.next(8)
    kept = features(STREETS, "test").flatten(2).mT
    assert {x.numpy().tobytes() for x in batch.x[0]} == {x.contiguous().numpy().tobytes() for x in kept}
    sampled = setting.world.sampling(setting.world.rig)[0]
    torch.testing.assert_close(batch.target[0], sampled @ batch.x[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="9 samples at a time are more than the 8 images to test"):
        stream.next(9)
