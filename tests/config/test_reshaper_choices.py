"""Arguments of a comparison as Hydra gets them."""

import pytest

from bevreshape.config.reshaper_choices import compose_comparison


def rungs(*arguments: str) -> list[str]:
    _, composed = compose_comparison("compare", ["reshaper=mlp", *arguments])
    return [one.partition("=")[2] for one in composed if one.startswith("budget.rungs=")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("budget={steps: 1500, seeds: 5}",), ["[400, 800]"]),  # 40 and 80 of 150, as of budget=quick
        (("budget.steps=1500",), ["[400, 800]"]),
        (("budget=full", "budget.steps=800"), ["[100, 200, 400, 800]"]),
        (("budget={steps: 1500, rungs: [50, 100]}",), ["[50,100]"]),
        (("budget.steps=1500", "budget.rungs=[50,100]"), ["[50,100]"]),
        (("budget.steps=1",), ["[1]"]),
        (("budget.steps=many",), []),
        (("budget=absent", "budget.steps=800"), []),
        ((), []),
    ],
)
def test_rungs_that_are_not_given_scale_with_the_steps(arguments: tuple[str, ...], expected: list[str]) -> None:
    assert [one.replace(" ", "") for one in rungs(*arguments)] == [one.replace(" ", "") for one in expected]
