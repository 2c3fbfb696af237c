"""Test what a sample accepts; batches that flip and zoom are tested with augmentation."""

from typing import Any

import pytest
import torch

from bevreshape.data.batch import Meta, Sample, check_targets
from bevreshape.data.targets import BEVTarget
from bevreshape.errors import InputError


def test_float_images_are_refused_before_they_are_divided_again() -> None:
    whole: dict[str, Any] = {
        "images": torch.zeros(1, 3, 4, 6, dtype=torch.uint8),
        "intrinsics": torch.eye(3)[None],
        "ego_from_cam": torch.eye(4)[None],
        "meta": Meta("a", 0),
    }
    Sample(**whole)
    with pytest.raises(InputError, match=r"sample a: its images are torch\.float32, not uint8"):
        Sample(**{**whole, "images": torch.rand(1, 3, 4, 6)})


def test_a_bare_tensor_is_no_target() -> None:
    check_targets({"depth": BEVTarget(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))})
    with pytest.raises(InputError, match=r"target 'depth' is a Tensor"):
        check_targets({"depth": torch.zeros(1, 2, 2)})
