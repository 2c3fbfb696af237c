"""The pretended CUDA device notices every fault that the other tests of this folder rely on."""

import pytest
from cuda_faults import FREE, OTHERS, WAITS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_noticed(pretended, name: str) -> None:
    assert {found["kind"] for found in pretended("cuda_faults.py")[name]} == {"wait"}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_not_noticed(pretended, name: str) -> None:
    assert pretended("cuda_faults.py")[name] == []


@pytest.mark.parametrize("kind", OTHERS)
def test_other_faults_are_noticed(pretended, kind: str) -> None:
    assert kind in {found["kind"] for found in pretended("cuda_faults.py")[kind]}
