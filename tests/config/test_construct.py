"""Objects built from plain nodes, without interpolation."""

import re
from typing import Any

import pytest

from bevreshape.config.construct import construct
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid


class Kept:
    """Keeps what it is given."""

    def __init__(self, value: Any = None, *, size: int = 1, grid: Any = None) -> None:
        self.value, self.size, self.grid = value, size, grid
        if size < 1:
            raise ValueError(f"size {size}\n  is below 1")


class Open:
    """Takes any option."""

    def __init__(self, **options: Any) -> None:
        self.options = options


KEPT, OPEN, GRID = f"{__name__}.Kept", f"{__name__}.Open", "bevreshape.geometry.BEVGrid"


def test_nodes_are_built_at_any_depth_and_values_stay_as_they_are() -> None:
    grid = {"_target_": GRID, "forward_m": [0, 8], "left_m": [-4, 4], "cell_m": 2}
    text = "${oc.env:HOME} ${now:%Y} ???"
    found = construct(
        "part", {"_target_": KEPT, "value": [{"a": [{"_target_": KEPT, "value": grid}], "b": text}], "size": 3}
    )
    assert isinstance(found, Kept)
    assert found.size == 3
    (inner,) = found.value
    assert inner["b"] == text
    assert type(inner) is dict
    assert type(inner["a"]) is list
    assert inner["a"][0].value == BEVGrid((0, 8), (-4, 4), 2)


def test_what_is_given_reaches_the_class_itself() -> None:
    given = BEVGrid((0, 8), (-4, 4), 2)
    assert construct("part", {"_target_": KEPT}, grid=given).grid is given


def test_node_is_left_as_it_was() -> None:
    node = {"_target_": KEPT, "value": [{"_target_": KEPT}]}
    construct("part", node)
    assert node == {"_target_": KEPT, "value": [{"_target_": KEPT}]}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"size": 2}, "part._target_ is missing"),
        ({"_target_": ["x"]}, "part._target_=['x'] must be the dotted name of a class"),
        ({"_target_": "Kept"}, "Kept cannot be imported"),
        ({"_target_": "no.such.Class"}, "no.such.Class cannot be imported"),
        ({"_target_": KEPT, "sise": 2}, "part: Kept has no option sise; did you mean size"),
        ({"_target_": KEPT, "grid": None}, "part: Kept has no option grid"),  # it is given
        ({"_target_": KEPT, "_args_": [1]}, "part._args_ is not supported"),
        ({"_target_": OPEN, "_convert_": "all"}, "part._convert_ is not supported"),
        ({"_target_": OPEN, "value": {"_target_": KEPT, "_recursive_": 1}}, "part.value._recursive_ is not supported"),
        ({"_target_": KEPT, "value": [0, {"_target_": "bevreshape.reshapers.IPM"}]}, "part.value[1]: IPM needs source"),
        ({"_target_": KEPT, "size": 0}, f"part: {KEPT} cannot be built with size=0: size 0 is below 1"),
        ({"_target_": KEPT, "value": {"x": {"_target_": KEPT, "size": -1}}}, "part.value.x: "),
    ],
)
def test_misfits_are_a_one_line_message(node: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        construct("part", node, grid=None)
    assert "\n" not in str(caught.value)
