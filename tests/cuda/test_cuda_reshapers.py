"""Every reshaper on a pretended CUDA device: values and gradients of the CPU, one device, no wait of the host."""

import pytest
from cuda_cases import PRECISIONS
from cuda_reshapers import RESHAPERS

pytestmark = pytest.mark.slow

COUNTS = "the number of pairs of a cell and a camera that sees it is known on the device alone"

WAITS_WITH_NEW_CAMERAS = {
    ("IPM", "bevreshape/ops/sampling.py:_columns_in_view"): COUNTS,
    ("IPM", "bevreshape/ops/sampling.py:project_points"): COUNTS,
    ("Bilinear", "bevreshape/ops/sampling.py:_columns_in_view"): COUNTS,
    ("Bilinear", "bevreshape/ops/sampling.py:project_points"): COUNTS,
    ("DeformableAttention", "bevreshape/ops/visible_pairs.py:visible_pairs"): COUNTS,
    ("KernelAttention", "bevreshape/ops/windows.py:arrange_windows"): COUNTS,
}
"""Waits of a step whose cameras are those of its batch, and the reason. On a fixed rig there is none."""

every_case = pytest.mark.parametrize(
    ("name", "precision"), [(cls.__name__, precision) for cls in RESHAPERS for precision in PRECISIONS]
)


@every_case
def test_training_step_with_the_cameras_of_the_batch(pretended, name: str, precision: str) -> None:
    found = pretended("cuda_reshapers.py")[f"{name} trained {precision}"]
    allowed = {where for reshaper, where in WAITS_WITH_NEW_CAMERAS if reshaper == name}
    assert [one for one in found if one["kind"] != "wait" or one["where"] not in allowed] == []
    assert {one["where"] for one in found} == allowed, "a wait is gone; take it out of the list"


@every_case
def test_inference_on_a_fixed_rig(pretended, name: str, precision: str) -> None:
    assert pretended("cuda_reshapers.py")[f"{name} fixed {precision}"] == []
