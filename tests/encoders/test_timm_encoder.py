"""Encoders from timm: the centres of their features, their outputs, and refused settings."""

import numpy as np
import pytest
import timm
import torch
from rounding import rounding

from bevreshape.encoders import TimmEncoder, feature_centers
from bevreshape.encoders.feature_centers import MOST, measure, offset_by_gradient
from bevreshape.encoders.trunk import build_trunk, cut_trunk
from bevreshape.errors import InputError

TERMS = 10_000
"""Upper bound of the products summed along a path through an encoder of these tests."""

MODELS = [
    ("mobilenetv3_small_050", 8, 0.0),
    ("tf_mobilenetv3_small_minimal_100", 8, 7.0),
    ("tf_efficientnet_lite0", 4, 3.0),
    ("efficientnet_b0", 8, 0.0),
    ("resnet18", 8, 0.0),
    ("convnext_atto", 8, 3.5),
    ("densenet121", 8, 2.0),
    ("vit_tiny_patch16_224", 16, 7.5),
]


def encoder(name: str = "mobilenetv3_small_050", **options) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(name, **{"image_size": (64, 96), "cameras": 1, **options})


def gradient_centre(model: TimmEncoder, stride: int) -> tuple[float, float]:
    """Return the distance (v, u) from pixel ``stride·j`` of the centroid of feature j's input gradient.

    The gradient's energy is averaged over several random images and mixtures of channels, for a feature in the middle.
    Kernels are symmetrised first, since random ones lean to a side.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.mean((2, 3), keepdim=True).expand_as(parameter.data)
    height, width = model.image_size
    i, j = height // stride // 2, width // stride // 2
    generator = torch.Generator().manual_seed(0)
    energy = np.zeros((height, width))
    for _ in range(12):
        image = torch.rand(1, 1, 3, height, width, generator=generator, requires_grad=True)
        feature = model(image)[0, 0, :, i, j]
        (gradient,) = torch.autograd.grad(feature @ torch.randn(len(feature), generator=generator), image)
        energy += (gradient[0, 0] ** 2).sum(0).numpy()
    # squeeze-and-excitation and attention depend weakly on the whole image
    v, u = np.mgrid[:height, :width]
    window = (abs(v - stride * (i + 0.5)) <= 3 * stride) & (abs(u - stride * (j + 0.5)) <= 3 * stride)
    energy *= window & (energy > 1e-3 * energy.max())
    return (energy * v).sum() / energy.sum() - stride * i, (energy * u).sum() / energy.sum() - stride * j


@pytest.mark.parametrize(("name", "stride", "offset_px"), MODELS)
def test_convention_feature_centers_match_offset_px(name: str, stride: int, offset_px: float) -> None:
    model = encoder(name, strides=[stride], image_size=(128, 128)).eval()
    assert model.sources[0].offset_px == offset_px
    v, u = gradient_centre(model, stride)
    assert v == pytest.approx(offset_px, abs=0.2 * stride)
    assert u == pytest.approx(offset_px, abs=0.2 * stride)


@pytest.mark.parametrize(("name", "stride", "offset_px"), MODELS)
def test_every_parameter_has_a_gradient(name: str, stride: int, offset_px: float) -> None:
    model = encoder(name, strides=[stride])
    model(torch.rand(2, 1, 3, 64, 96)).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("image_size", [(64, 96), (70, 100)])
def test_sources_match_the_output_shapes(image_size: tuple[int, int]) -> None:
    model = encoder(image_size=image_size, cameras=3, strides=[16, 4], channels=24)
    features = model(torch.rand(2, 3, 3, *image_size))
    assert [source.stride for source in model.sources] == [16, 4]
    for x, source in zip(features, model.sources, strict=True):
        assert x.shape == (2, 3, 24, source.height, source.width)
        assert (source.cameras, source.channels, source.offset_px) == (3, 24, 0.0)
        assert source.height == -(-image_size[0] // source.stride)


def test_image_size_as_a_list() -> None:
    assert encoder(image_size=[64, 96]).sources == encoder(image_size=(64, 96)).sources


def test_one_stride_gives_one_tensor_and_cameras_are_independent() -> None:
    model = encoder(cameras=2).eval()
    alone = encoder(cameras=1).eval()
    alone.load_state_dict(model.state_dict())
    image = torch.rand(2, 2, 3, 64, 96)
    together = model(image)
    for n in range(2):
        expected = alone(image[:, n : n + 1])
        torch.testing.assert_close(together[:, n : n + 1], expected, atol=rounding(TERMS, expected), rtol=0)


def test_images_are_normalised_by_the_models_statistics() -> None:
    model = encoder("tf_efficientnet_lite0", strides=[4])
    seen = []
    model.trunk.conv_stem.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 1, 3, 64, 96)
    model(image)
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    mean, std = (np.array(numbers)[:, None, None] for numbers in (config.mean, config.std))
    np.testing.assert_allclose(seen[0][0].numpy(), (image[0, 0].numpy() - mean) / std, atol=1e-6)
    assert not {"mean", "std"} & set(model.state_dict())


@pytest.mark.parametrize(("name", "stride", "offset_px"), [*MODELS[:2], MODELS[5], MODELS[7], ("resnet18", 32, 0.0)])
def test_offset_by_gradient_equals_offset_of_layers(name: str, stride: int, offset_px: float) -> None:
    """Only half steps from the lattice before are possible, as for the layers."""
    half = stride // 2
    before = (0.0, 0.0) if name.startswith("vit") else encoder(name, strides=[half]).sources[0].offset_px
    base = (1, 0.0, 0.0) if name.startswith("vit") else (half, before, before)
    assert offset_by_gradient(name, (64, 96), stride, base) == (offset_px, offset_px)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size", "strides", "offsets_px"),
    [  # adjacent patches of 4, halved by merging 2 × 2; the same after a convolution around pixel 0
        ("swin_tiny_patch4_window7_224", (64, 96), [4, 8, 16], [1.5, 3.5, 7.5]),
        ("twins_svt_small", (64, 128), [8], [3.5]),
        ("hiera_tiny_224", (64, 96), [4, 8, 16], [0.0, 2.0, 6.0]),
        ("pvt_v2_b0", (64, 128), [8, 16], [0.0, 0.0]),  # all by convolutions around pixel 0
        ("naflexvit_base_patch16_gap", (64, 64), [16], [7.5]),
    ],
)
def test_offsets_of_models_that_merge_tokens(
    name: str, image_size, strides: list[int], offsets_px: list[float]
) -> None:
    model = TimmEncoder(name, image_size=image_size, cameras=1, strides=strides, channels=8)
    assert [source.offset_px for source in model.sources] == offsets_px


def test_offset_by_gradient_is_deterministic_and_draws_no_numbers() -> None:
    look = offset_by_gradient.__wrapped__  # without the cache
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(look("pvt_v2_b0", (64, 64), 8, (4, 0.0, 0.0)))
        assert torch.equal(torch.get_rng_state(), before)
    assert found == [(0.0, 0.0)] * 2


def test_shrunken_attention_keys_are_not_a_level() -> None:
    """At 224 pixels the first stage shrinks keys by 8 to 7 × 7, the last level's size too, but on other pixels."""
    trunk = build_trunk("pvt_v2_b0", (224, 224), pretrained=False)
    levels, _ = cut_trunk(trunk, "pvt_v2_b0", [32])
    sizes, lattices = measure(trunk, "pvt_v2_b0", levels, (224, 224))
    assert sizes == [(7, 7)]
    assert lattices[7, 7].offset == (14.0, 14.0)
    assert not lattices[7, 7].clear


def test_features_without_a_clear_centre_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([(0.0, 0.0), (20.0, -20.0)] * MOST)
    monkeypatch.setattr(feature_centers, "_centre_of_gradient", lambda *_: next(draws))
    with pytest.raises(InputError, match=r"no clear centre \(about .* ± .*encoder\.offset_px="):
        encoder("swin_tiny_patch4_window7_224", image_size=(64, 128), strides=[8])


def test_a_given_offset_is_used() -> None:
    name, options = "swin_tiny_patch4_window7_224", {"image_size": (224, 224), "strides": [4, 8]}
    model = encoder(name, offset_px=[1.0, 3.0], **options)
    assert [source.offset_px for source in model.sources] == [1.0, 3.0]
    with pytest.raises(InputError, match="1 numbers for strides="):
        encoder(name, offset_px=3.5, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mobilenetv3_smal_050"}, "did you mean mobilenetv3_small_050"),
        ({"strides": [8, 7]}, r"strides=\[8, 7\] but mobilenetv3_small_050 offers \[2, 4, 8, 16, 32\]"),
        ({"strides": [8, 8]}, "each once"),
        (
            {"name": "tf_efficientnet_lite0", "image_size": (66, 96)},
            "1 down but 7 to the right.*both sides divisible by stride 8",
        ),
        ({"name": "vit_tiny_patch16_224", "strides": [16], "image_size": (8, 8)}, r"images of \(8, 8\)"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(**options)


@pytest.mark.parametrize("shape", [(1, 2, 3, 64, 96), (1, 1, 3, 64, 95), (1, 1, 3, 96, 64)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    given = f"{shape[1]} cameras × {shape[3]}×{shape[4]}"
    with pytest.raises(InputError, match=f"images are {given} but it was built for 1 × 64×96"):
        encoder()(torch.zeros(shape))


def test_unavailable_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nlong story")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"could not be loaded \(We couldn't connect to .*\); connect .*pretrained=false"
    ):
        encoder(pretrained=True)


def test_export_matches() -> None:
    model, image = encoder(cameras=2).eval(), torch.rand(2, 2, 3, 64, 96)
    program = torch.export.export(model, (image,), strict=False)
    expected = model(image)
    torch.testing.assert_close(program.module()(image), expected, atol=rounding(TERMS, expected), rtol=0)
