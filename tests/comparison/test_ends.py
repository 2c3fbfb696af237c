"""Whether the tuned values are at an end of those tried."""

from dataclasses import replace

import pytest
from comparison.outcomes import candidate

from bevreshape.comparison.ends import ends
from bevreshape.comparison.outcome import Trial


@pytest.mark.parametrize(
    ("chosen", "end"),
    [
        ({"optimizer.lr": 0.0003}, {"optimizer.lr": "lowest"}),
        ({"optimizer.lr": 0.001}, {}),
        ({"optimizer.lr": 0.003}, {}),  # the next one diverged, but it was tried
        ({"optimizer.lr": 0.03}, {"optimizer.lr": "highest"}),
        ({"reshaper.depth": 2, "optimizer.lr": 0.001}, {}),
    ],
)
def test_ends_of_the_rates(chosen: dict[str, object], end: dict[str, str]) -> None:
    assert ends(replace(candidate("a", [0.5]), tuned=chosen)) == end


def test_one_value_or_words_have_no_ends() -> None:
    tried = tuple(Trial({"lr": 0.1, "kernel": kernel, "bias": True}, 10, 0.5) for kernel in ("linear", "softmax"))
    one = replace(candidate("a", [0.5]), tuned={"lr": 0.1, "kernel": "linear", "bias": True}, tried=tried)
    assert ends(one) == {}
