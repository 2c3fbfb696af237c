"""Places of labels: no overlaps while there is room, and near to their points."""

import math

import numpy as np
import pytest

from bevreshape.reporting.label_places import NEAR, Box, leader, place_labels

WITHIN = Box(0, 0, 240, 180)


def overlap(a: Box, b: Box) -> bool:
    return min(a.right, b.right) > max(a.left, b.left) and min(a.top, b.top) > max(a.bottom, b.bottom)


@pytest.mark.parametrize("crowding", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_labels_overlap_nothing_and_stay_inside(count: int, crowding: float) -> None:
    rng = np.random.default_rng(count)
    for _ in range(3):
        spread = rng.uniform((10, 10), (230, 170), (count, 2))
        points = [tuple(place) for place in ((1 - crowding) * spread + crowding * spread[:1]).tolist()]
        sizes = [(float(width), 9.0) for width in rng.uniform(15, 85, count)]
        markers = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in points]
        boxes = place_labels(points, sizes, markers, [], WITHIN)
        assert [(box.right - box.left, box.top - box.bottom) for box in boxes] == [
            pytest.approx(size) for size in sizes
        ]
        for i, box in enumerate(boxes):
            assert WITHIN.left <= box.left <= box.right <= WITHIN.right + 1e-6
            assert WITHIN.bottom <= box.bottom <= box.top <= WITHIN.top + 1e-6
            assert not any(overlap(box, other) for other in [*boxes[:i], *markers])


def test_a_lonely_label_is_next_to_its_point_and_off_lines() -> None:
    (box,) = place_labels([(100.0, 90.0)], [(40.0, 9.0)], [Box(97, 87, 103, 93)], [], WITHIN)
    assert (box.left, box.bottom) == (100 + NEAR, 90 - 4.5)
    assert leader((100.0, 90.0), box) is None
    line = Box(0, 89.5, 240, 90.5)
    (box,) = place_labels([(100.0, 90.0)], [(40.0, 9.0)], [Box(97, 87, 103, 93)], [line], WITHIN)
    assert not overlap(box, line)
    assert leader((100.0, 90.0), box) is None


def test_leader_ends_at_the_nearest_point_of_a_distant_label() -> None:
    end = leader((0.0, 0.0), Box(30.0, 40.0, 60.0, 50.0))
    assert end == (30, 40)
    assert math.hypot(*end) == 50


def test_a_full_rectangle_still_gives_every_label_a_place() -> None:
    points = [(5.0, 5.0)] * 4
    boxes = place_labels(points, [(9.0, 9.0)] * 4, [], [], Box(0, 0, 10, 10))
    assert len(boxes) == 4
