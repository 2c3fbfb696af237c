"""A comparison by its command line: it is shared, it resumes, failures are rows, and the winner is exported."""

import json
from pathlib import Path

import pytest
from commands import finish, start, without

pytestmark = pytest.mark.slow

TINY = (
    *without("trainer.max", "trainer.val", "logger"),
    "logger=none", "device=cpu", "budget.steps=8", "budget.rungs=[2,4]", "budget.rates=[1.0e-3,1.0e-2]",
    "budget.trials=2", "budget.seeds=2", "budget.validations=2", "budget.repeats=2", "name=tiny",
)  # fmt: skip
"""Arguments that make a comparison a matter of seconds."""


def records(cwd: Path) -> dict[str, dict]:
    """Results by name; every name occurs once."""
    lines = (cwd / "comparisons" / "tiny" / "records.jsonl").read_text().splitlines()
    found = {(record := json.loads(line))["name"]: record["result"] for line in lines}
    assert len(found) == len(lines)
    return found


def test_two_view_transformers_are_compared(worlds: Path, tmp_path: Path) -> None:
    ended = finish(start("compare", "reshaper=mlp,ipm", *TINY, f"data.root={worlds}", cwd=tmp_path))
    assert ended.code == 0, ended.err
    found = records(tmp_path)
    judged = {f"judge-{name}-seed{seed}" for name in ("mlp", "ipm") for seed in (0, 1)}
    assert {name for name in found if not name.startswith("cost-")} == {"tune-mlp", "tune-ipm", *judged}
    for name in judged:
        own = json.loads(
            (tmp_path / "comparisons/tiny/runs" / name.removeprefix("judge-") / "metrics.json").read_text()
        )
        assert found[name]["iou"]["mean"] == pytest.approx(own["test/iou/mean"], rel=1e-4)
        assert {"yaw_deg=1", "pitch_deg=1", "height_m=0.1"} == found[name]["changed"].keys()
    (costs,) = (result["costs"] for name, result in found.items() if name.startswith("cost-"))
    assert costs["mlp"]["parameters"] > costs["ipm"]["parameters"] > 0
    assert all(cost["latency_ms"]["eager"] > 0 for cost in costs.values())
    assert "mlp" in ended.out
