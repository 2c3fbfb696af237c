"""What a study keeps of its runs, and that two processes never do the same one."""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab.studies import done, plain, tiny

from bevreshape.errors import InputError
from bevreshape.lab.plan import Plan, task_unit, tensor_unit, tuning_unit
from bevreshape.lab.records import Study
from bevreshape.optimizer import AdamWOneCycle


@pytest.fixture
def plan() -> Plan:
    return Plan(**plain())


@pytest.fixture
def study(plan: Plan, tmp_path: Path) -> Study:
    return tiny(tmp_path, plan)


def test_a_run_is_kept_and_not_made_again(study: Study, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tensor_unit(plan, "attention", 1e-2, 0)
    made = done(study, unit)
    assert [point["steps"] for point in made["curve"]] == [0, 2, 3]
    assert {"data_dependence", "destruction", "equivariance_error_moved"} <= set(made["examined"])
    assert study.has(unit)
    tried = tuning_unit(plan, "mlp", 1e-2, 1, "fixed")
    kept = done(study, tried)
    assert study.records() == {tried.name: kept}  # the first rests on rates that are not all known yet
    again = done(study, unit)  # the same seed gives the same figures
    assert [p["error"] for p in again["curve"]] == [p["error"] for p in made["curve"]]
    assert again["examined"] == made["examined"]


def test_nobody_else_gets_what_is_claimed(study: Study, plan: Plan) -> None:
    unit = tensor_unit(plan, "mlp", 1e-2, 0)
    other = Study(plan, study.place)
    with study.claimed(unit.name) as ours, other.claimed(unit.name) as theirs:
        assert ours is not None
        assert theirs is None
        child = subprocess.Popen(["sleep", "60"], pass_fds=(ours,))
    with other.claimed(unit.name) as theirs:
        assert theirs is None  # a run goes on although its study is gone
    child.kill()
    child.wait()
    with other.claimed(unit.name) as theirs:
        assert theirs is not None


def test_a_record_of_other_settings_is_refused(study: Study, plan: Plan) -> None:
    done(study, tuning_unit(plan, "mlp", 1e-2, 1, "fixed"))
    changed = plain()
    changed["tensor"]["steps"] = 5
    with pytest.raises(
        InputError,
        match=r"was made with steps=3 by another plan or version, but the plan says 5 by this one; begin another study with name=",
    ):
        Study(Plan(**changed), study.place).records()
    (path,) = (study.place.folder / "records").glob("*.json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match=r"is damaged or no JSON .* delete it"):
        study.records()


def test_a_divergence_is_kept_as_such(study: Study, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    # decay multiplies weights by 1 - lr · weight_decay = -999 a step
    diverging = partial(AdamWOneCycle, weight_decay=100.0, warmup=0.01)
    monkeypatch.setattr("bevreshape.lab.experiments.AdamWOneCycle", diverging)
    changed = plain()
    changed["tensor"] |= {"steps": 30, "rates": [10.0]}
    wild = Study(Plan(**changed), study.place)
    unit = tensor_unit(wild.plan, "mlp", 10.0, 0)
    made = done(wild, unit)
    assert made["curve"][-1]["error"] is None
    assert "examined" not in made
    text = (study.place.folder / "records" / f"{unit.name}.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_command_that_fails_says_why(study: Study, plan: Plan) -> None:
    changed = plain()
    changed["task"]["arguments"] = ["trainer.max_steps=0"]
    broken = Study(Plan(**changed), study.place)
    with pytest.raises(InputError, match=r"trainer.max_steps=0 must be -1 or an integer from 1.*; see .*train.log"):
        done(broken, task_unit(broken.plan, "mlp", 0))
    assert not list((study.place.folder / "records").glob("*.json")), json.dumps("nothing is kept of it")


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(study: Study, plan: Plan) -> None:
    unit = task_unit(plan, "mlp", 0)
    begun = study.place.folder / "runs" / unit.name / "unit.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(json.dumps({"arguments": ["trainer.max_steps=7"]}))
    with pytest.raises(InputError, match=r"was begun with trainer.max_steps=7 but the plan says"):
        done(study, unit)


@pytest.mark.parametrize(
    "change", [{"curve": []}, {"curve": [{}]}, {"curve": "x"}, {"flops": None}, {"examined": [1]}, None, [1]]
)
def test_a_damaged_record_is_named(study: Study, plan: Plan, change: Any) -> None:
    unit = tuning_unit(plan, "mlp", 1e-2, 1, "fixed")
    done(study, unit)
    (path,) = (study.place.folder / "records").glob("*.json")
    record = json.loads(path.read_text())
    result = {**record["result"], **change} if isinstance(change, dict) else change
    path.write_text(json.dumps({**record, "result": result}))
    with pytest.raises(InputError, match=r"is damaged: it is no record of a run; delete it"):
        study.records()
