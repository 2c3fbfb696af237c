"""A study with made-up outcomes, whose rows are known."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from bevreshape.experiments.instruments import Examined
from bevreshape.experiments.levels import PLAN_FILE, Study, StudyPlan
from bevreshape.experiments.models import called
from bevreshape.experiments.pace import Pace
from bevreshape.experiments.runs import Curve, Outcome, Setting, to_plain
from bevreshape.experiments.study import PACED
from bevreshape.experiments.tensor_results import PACE
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import Tried, Tuned
from bevreshape.storage.records import Records

PLAN: dict[str, Any] = {
    "tensor": {
        "budget": {
            "steps": [20, 300], "batch": 4, "rates": [0.01], "warmups": [0], "decays": [0], "queries": ["projected"],
            "tuning_seeds": 1, "held_out": 8,
        },
        "seeds": 3, "primary_seeds": 4, "sigma_deg": [0, 0.5, 2, 8], "samples": [8, 16, 32], "tuned_sigma_deg": [0],
        "tuned_samples": [32], "primary_samples": [8, 16, 32], "primary_sigma_deg": 2, "scales": [0.5, 1],
        "capacity_samples": [8, 16],
    }
}  # fmt: skip

ErrorOf = Callable[[Setting, int, int], float]
"""``error(setting, steps, seed)``."""

RECIPE = Recipe(0.01)


def made_up(folder: Path, error: ErrorOf) -> Study:
    """All entries of the plan, with these errors."""
    study = Study(StudyPlan.read(PLAN), Records(folder))
    level = study.tensor
    assert level is not None
    plan = level.plan
    budgets = plan.budget.steps
    tuned = Tuned(dict.fromkeys(budgets, RECIPE), tuple(Tried(RECIPE, steps, -float(steps)) for steps in budgets))
    pace = Pace("a processor", 1, {called(*one): 0.01 for one in PACED})
    for work in level.work({}):
        study.records.add(work.entry, (pace if work.entry.name == PACE else tuned).to_plain())
    records = study.records.read()
    judged = [work for work in level.work(records) if work.entry.name not in records]
    settings = {f"{level.PREFIX}judge-{setting.name}": setting for setting in plan.settings()}
    assert settings.keys() == {work.entry.name for work in judged}
    for work in judged:
        setting = settings[work.entry.name]
        seeds = plan.seeds_of(setting)
        at = sorted({*budgets, *(step for step in plan.at(setting) if step <= budgets[-1])})
        curve = Curve(RECIPE, tuple(at), tuple(tuple(error(setting, steps, seed) for seed in seeds) for steps in at))
        examined = (Examined(**dict.fromkeys((field.name for field in fields(Examined)), 0.1)),) * len(seeds)
        outcome = Outcome(setting, tuple(seeds), (curve,), dict.fromkeys(budgets, 0), examined)
        study.records.add(work.entry, to_plain(outcome))
    (folder / PLAN_FILE).write_text(json.dumps(PLAN))  # which is YAML too
    return study
