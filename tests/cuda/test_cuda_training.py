"""Lightning's own loop trains and validates the task on a pretended CUDA device, as on the CPU and without a wait."""

import pytest
from cuda_training import CASES

pytestmark = pytest.mark.slow

WAITS = {
    "mlp float16": {
        "lightning/pytorch/plugins/precision/amp.py:optimizer_step": "torch's GradScaler looks whether to skip the step"
    },
}
"""Waits that stay in every step, and the reason."""


@pytest.mark.parametrize("name", CASES)
def test_training_and_validation(pretended, name: str) -> None:
    found = pretended("cuda_training.py")[name]
    allowed = WAITS.get(name, {})
    assert [one for one in found if one["kind"] != "wait" or one["where"] not in allowed] == []
    assert {one["where"] for one in found} == set(allowed), "a wait is gone; take it out of the list"
