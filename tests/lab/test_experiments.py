"""Which runs a study has, what it keeps of them, and that two processes never do the same one."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import ROOT

from bevreshape.build import build_data, load_model
from bevreshape.costs import ring
from bevreshape.data.synthetic.rig import Spread
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.lab.experiments import (
    Plan,
    Study,
    Unit,
    best_rates,
    examine,
    task_unit,
    tensor_unit,
    tuning_unit,
    units,
)
from bevreshape.lab.tensor_level import ReadOut, Settings, run, sampling_matrix
from bevreshape.reshapers import MLP, FeatureShape

CPU = torch.device("cpu")


def done(study: Study, unit: Unit) -> dict[str, Any]:
    """Claim a unit and do it."""
    with study.claimed(unit.name) as lock:
        assert lock is not None
        return study.run(unit, lock)


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


@pytest.fixture
def plan() -> Plan:
    return Plan(**plain())


@pytest.fixture
def study(plan: Plan, tmp_path: Path) -> Study:
    return Study(tmp_path, plan, CPU)


def record(error: float | None) -> dict[str, Any]:
    return {"curve": [{"error": 1.0}, {"error": error}]}


def tried(plan: Plan, errors: Callable[[str, float], float | None]) -> dict[str, dict[str, Any]]:
    return {
        tuning_unit(plan, role, rate, seed).name: record(errors(role, rate))
        for role in ("mlp", "mlp_told", "attention", "attention_told")
        for rate in plan.tensor["rates"]
        for seed in plan.seeds
    }


def test_rates_are_tried_first_and_the_rest_follows_from_them(plan: Plan) -> None:
    first = units(plan, {})
    assert sum(unit.settings["level"] == "tensor" for unit in first) == 4 * 2 * 2  # roles × rates × seeds
    assert sum(unit.settings["level"] == "task" for unit in first) == 3 * 2  # contenders × seeds
    found = tried(plan, lambda role, rate: 0.1 if rate == 1e-2 else 0.2)
    then = units(plan, found)
    rates = {
        unit.settings["rate"] for unit in then if unit.settings["level"] == "tensor" and not unit.settings["tuning"]
    }
    assert rates == {1e-2}
    assert len({unit.name for unit in then}) == len(then)
    # each seed: 4 roles × 2 jitters, 2 roles apart, 4 roles × 2 amounts, 2 permuted, 2 shown; and those tried first
    assert sum(unit.settings["level"] == "tensor" for unit in then) == 2 * (8 + 2 + 8 + 2 + 2) + 16
    tuned = {unit.name for unit in first if unit.settings["level"] == "tensor"}
    assert all(unit.settings["tuning"] == (unit.name in tuned) for unit in then if unit.settings["level"] == "tensor")
    assert not any(unit.settings.get("features") == "encoder" for unit in then)
    reference = task_unit(plan, "ipm", 0).name
    assert sum(unit.settings.get("features") == "encoder" for unit in units(plan, {**found, reference: {}})) == 4


def test_a_rate_that_diverges_is_not_chosen(plan: Plan) -> None:
    found = tried(plan, lambda role, rate: None if rate == 1e-2 else 0.9)
    assert best_rates(plan, found) == dict.fromkeys(plan.tensor["contenders"], 1e-3)
    del found[tuning_unit(plan, "mlp", 1e-2, 1).name]
    assert best_rates(plan, found) is None


def test_the_told_are_told_and_jitter_is_as_said(study: Study, plan: Plan) -> None:
    told, alone = (tensor_unit(plan, role, 1e-2, 0, jitter_deg=4) for role in ("mlp_told", "mlp"))
    assert (told.settings["calibration"], alone.settings["calibration"]) == ("exact", "none")
    arguments = task_unit(plan, "mlp", 1, 4.0).settings["arguments"]
    for expected in ("data.jitter.yaw_deg=4", "data.jitter.pitch_deg=2", "data.jitter.roll_deg=2", "seed=1"):
        assert expected in arguments


def test_a_run_is_kept_and_not_made_again(study: Study, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = tensor_unit(plan, "attention", 1e-2, 0)
    made = done(study, unit)
    assert [point["steps"] for point in made["curve"]] == [0, 2, 3]
    assert {"data_dependence", "destruction", "equivariance_error_moved"} <= set(made["examined"])
    assert study.has(unit)
    tried = tuning_unit(plan, "mlp", 1e-2, 1)
    kept = done(study, tried)
    assert study.records() == {tried.name: kept}  # the first rests on rates that are not all known yet
    again = done(study, unit)  # the same seed gives the same figures
    assert [p["error"] for p in again["curve"]] == [p["error"] for p in made["curve"]]
    assert again["examined"] == made["examined"]


def test_nobody_else_gets_what_is_claimed(study: Study, plan: Plan) -> None:
    unit = tensor_unit(plan, "mlp", 1e-2, 0)
    other = Study(study.folder, plan, CPU)
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
    done(study, tuning_unit(plan, "mlp", 1e-2, 1))
    changed = plain()
    changed["tensor"]["steps"] = 5
    with pytest.raises(InputError, match=r"was made with steps=3 but the plan says 5; set name="):
        Study(study.folder, Plan(**changed), CPU).records()
    (path,) = (study.folder / "records").glob("*.json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match=r"cannot be read .* delete it"):
        study.records()


def test_a_divergence_is_kept_as_such(study: Study, plan: Plan) -> None:
    changed = plain()
    changed["tensor"] |= {"steps": 30, "rates": [1e30]}
    wild = Study(study.folder, Plan(**changed), CPU)
    unit = tensor_unit(wild.plan, "mlp", 1e30, 0)
    made = done(wild, unit)
    assert made["curve"][-1]["error"] is None
    assert "examined" not in made
    text = (study.folder / "records" / f"{unit.name}.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_permuted_training_sees_another_order_and_the_mlp_does_not_care(study: Study, plan: Plan) -> None:
    plain_run, permuted = (done(study, tensor_unit(plan, "mlp", 1e-2, 0, permuted=p)) for p in (False, True))
    assert "examined" not in permuted
    assert plain_run["curve"][0]["error"] != permuted["curve"][0]["error"]
    assert plain_run["curve"][0]["error"] == pytest.approx(permuted["curve"][0]["error"], rel=0.3)


def test_examined_where_the_answers_are_known() -> None:
    source, grid = FeatureShape(3, 8, 16, stride=16, offset_px=7.5), BEVGrid((2.0, 10.0), (-8.0, 8.0), 1.0)
    mlp = MLP(source, grid, activation="none")
    rig = ring(1, (128, 256), 1, CPU)
    with torch.no_grad():
        mlp.layers[0].weight.copy_(sampling_matrix(rig, source, grid)[None])
        mlp.layers[0].bias.zero_()
    settings = Settings(source=source, grid=grid, calibration="none")
    found = examine(ReadOut(mlp, 3), settings, torch.Generator().manual_seed(0))
    assert found["data_dependence"] == 0.0
    assert found["sampling_distance"] < 1e-5
    assert found["gram_change"] < 1e-12
    assert found["destruction"] == pytest.approx(1.0, abs=0.2)  # white enough: another order is another picture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, r"plan.seeds=\[0\] must be two different ones"),
        ({"tensor": {"rates": []}}, r"plan.tensor.rates=\[\] must be positive numbers"),
        ({"tensor": {"training_samples": [0, 4]}}, r"training_samples=\[0, 4\] must be positive numbers"),
        ({"tensor": {"batches": 3}}, "plan.tensor: batches missing or unknown; it takes source, grid"),
        ({"tensor": {"jitter_deg": [1, 2]}}, r"plan.tensor.jitter_deg=\[1, 2\] must begin with 0"),
        ({"tensor": {"jitter_deg": [0, 4, 2]}}, "ascending order"),
        ({"tensor": {"told_jitter_deg": 3}}, "told_jitter_deg=3 must be one of"),
        ({"tensor": {"grid": {"forward_m": [0, 8], "left_m": [-4, 4], "cell_m": 1.0}}}, "8×8 cells .* 4×8 features"),
        ({"tensor": {"contenders": {}}}, "the claims are about mlp, attention, mlp_told"),
        ({"task": {"contenders": {"mlp": []}}}, "lacks attention, ipm"),
    ],
)
def test_plans_that_are_refused(change: dict[str, Any], message: str) -> None:
    given = copy.deepcopy(plain())
    for key, value in change.items():
        given[key] = {**given[key], **value} if isinstance(value, dict) else value
    with pytest.raises(InputError, match=message):
        Plan(**given)


def test_a_command_that_fails_says_why(study: Study, plan: Plan) -> None:
    changed = plain()
    changed["task"]["arguments"] = ["trainer.max_steps=0"]
    broken = Study(study.folder, Plan(**changed), CPU)
    with pytest.raises(InputError, match=r"trainer.max_steps=0 must be a whole number.*; see .*train.log"):
        done(broken, task_unit(broken.plan, "mlp", 0))
    assert not list((study.folder / "records").glob("*.json")), json.dumps("nothing is kept of it")


def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(study: Study, plan: Plan) -> None:
    unit = task_unit(plan, "mlp", 0)
    begun = study.folder / "runs" / unit.name / "unit.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(json.dumps({"arguments": ["trainer.max_steps=7"]}))
    with pytest.raises(InputError, match=r"was begun with trainer.max_steps=7 but the plan says"):
        done(study, unit)


def test_shown_directions_are_those_of_the_rays_and_change_with_the_pose() -> None:
    seen: list[torch.Tensor] = []

    class Watched(MLP):
        def reshape(self, features, cameras):
            assert cameras is None
            seen.append(features)
            return super().reshape(features, cameras)

    source, grid = FeatureShape(2, 4, 8, stride=16, offset_px=7.5), BEVGrid((2.0, 10.0), (-8.0, 8.0), 2.0)
    for jitter in (Spread(), Spread(yaw_deg=20.0)):
        settings = Settings(source=source, grid=grid, jitter=jitter, calibration="shown", steps=2, batch=4, held_out=4)
        run(Watched, settings)
    fixed, moved = seen[0][:, 0, 2:], seen[len(seen) // 2][:, 0, 2:]
    assert fixed.shape == (4, 4, 4, 8)
    assert fixed.mean((0, 2, 3)).tolist() == pytest.approx([0.0] * 4, abs=1e-5)
    assert fixed.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=0.02)
    left, right = fixed[0, 1, :, 0], fixed[0, 1, :, -1]
    assert (left > right).all()  # y, the sine of the azimuth, is to the left
    assert (fixed[0, 3, 0] > fixed[0, 3, -1]).all()  # z is up
    assert torch.allclose(fixed[0], fixed[3])
    assert not torch.allclose(moved[0], moved[3])


def test_an_encoders_features_are_those_of_pictures_as_the_model_gets_them(trained: Path, tmp_path: Path) -> None:
    given = plain()
    given["tensor"]["source"] |= {"height": 2, "width": 4}
    given["tensor"]["grid"] = {"forward_m": [2, 6], "left_m": [-4, 4], "cell_m": 2.0}
    study = Study(tmp_path, Plan(**given), CPU)
    shutil.copytree(trained, tmp_path / "runs" / "reference")
    (train, val), rig, source = study._encoder_features("reference", 5)
    assert train.shape == (5, 1, 8, 2, 4)
    assert val.shape == (5, 1, 8, 2, 4)
    assert (source.stride, rig.batch_shape) == (16, (1, 1))
    model, _, config = load_model(str(trained / "checkpoints" / "best.ckpt"))
    data = build_data({"data": {**config["data"], "loader_workers": 0}, "seed": 0})
    own = [torch.as_tensor(data.source.split("train")[i]["image"]).float() / 255 for i in range(5)]
    with torch.no_grad():
        features = model.encoder(torch.stack(own))  # b n c h w
    pooled = features.unflatten(-2, (2, 2)).unflatten(-1, (4, 2)).mean((-3, -1))
    mean, spread = pooled.mean((0, 1, 3, 4)), pooled.std((0, 1, 3, 4))
    expected = (pooled - mean[:, None, None]) / spread[:, None, None]
    assert torch.allclose(train, expected, atol=1e-4)
