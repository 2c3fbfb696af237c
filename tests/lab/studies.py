"""A study small enough for a test."""

from pathlib import Path
from typing import Any

import torch
import yaml
from commands import ROOT

from bevreshape.lab.experiments import Place
from bevreshape.lab.plan import Plan, Unit
from bevreshape.lab.records import Study

CPU = torch.device("cpu")


def plain() -> dict[str, Any]:
    """The quick plan, made tiny."""
    given: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "plan" / "quick.yaml").read_text())
    given["seeds"] = [0, 1]
    given["tensor"] |= {
        "source": {"channels": 4, "height": 4, "width": 8, "stride": 16},
        "grid": {"forward_m": [2, 10], "left_m": [-8, 8], "cell_m": 2.0},
        "steps": 3, "batch": 2, "rates": [1e-3, 1e-2], "jitter_deg": [0, 4], "training_samples": [2, 4], "evaluate_every": 2,
        "encoder_samples": 4,
    }  # fmt: skip
    for contender in given["tensor"]["contenders"].values():
        if "dim" in contender:
            contender |= {"dim": 8, "heads": 2}
    return given


def tiny(folder: Path, plan: Plan) -> Study:
    """On the CPU."""
    return Study(plan, Place(folder, CPU))


def done(study: Study, unit: Unit) -> dict[str, Any]:
    """Claim a unit and do it."""
    with study.claimed(unit.name) as lock:
        assert lock is not None
        return study.run(unit, lock)
