"""The Pareto front against its definition."""

import numpy as np
import pytest

from bevreshape.comparison.pareto import pareto_front


@pytest.mark.parametrize("levels", [3, 6, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 30])
def test_front_is_what_no_other_point_dominates(count: int, levels: int) -> None:
    rng = np.random.default_rng(count + levels)
    for _ in range(50):
        points = {str(i): (float(c), float(s)) for i, (c, s) in enumerate(rng.integers(0, levels, (count, 2)))}

        def dominated(name: str, points: dict[str, tuple[float, float]] = points) -> bool:
            cost, score = points[name]
            return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points.values())

        front = pareto_front(points)
        assert sorted(front) == sorted(name for name in points if not dominated(name))
        assert [points[name][0] for name in front] == sorted(points[name][0] for name in front)
