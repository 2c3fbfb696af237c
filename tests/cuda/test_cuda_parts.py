"""Heads, objectives, metrics, augmentations and optimizers on a pretended CUDA device, found by listing ``conf/``."""

import pytest
from cuda_cases import PRECISIONS
from cuda_parts import GROUPS, choices

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in choices(group)])
def test_part_runs_as_on_the_cpu_without_a_wait(pretended, group: str, name: str, precision: str) -> None:
    assert pretended("cuda_parts.py")[f"{group} {name} {precision}"] == []
