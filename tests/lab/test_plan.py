"""Which runs a study has."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from commands import ROOT
from hydra import compose, initialize_config_dir
from lab.studies import plain
from omegaconf import OmegaConf

from bevreshape.errors import InputError
from bevreshape.lab.plan import TUNED, Plan, best_rates, task_unit, tensor_unit, tuning_unit, units


@pytest.fixture
def plan() -> Plan:
    return Plan(**plain())


def record(error: float | None) -> dict[str, Any]:
    return {"curve": [{"error": 1.0}, {"error": error}]}


def tried(plan: Plan, errors: Callable[[float, bool], float | None], encoder: bool = True) -> dict[str, dict[str, Any]]:
    return {
        tuning_unit(plan, role, rate, seed, camera).name: record(errors(rate, camera in ("moving", "shown")))
        for role, camera in TUNED
        if camera != "encoder" or encoder
        for rate in plan.tensor["rates"]
        for seed in plan.seeds
    }


def test_rates_are_tried_first_and_the_rest_follows_from_them(plan: Plan) -> None:
    first = units(plan, {})
    assert (
        sum(unit.settings["level"] == "tensor" for unit in first) == (4 * 2 + 3) * 2 * 2
    )  # roles × fixed and moving, and three variants of a fixed camera; × rates × seeds
    assert sum(unit.settings["level"] == "task" for unit in first) == 3 * 2  # contenders × seeds
    found = tried(plan, lambda rate, moving: 0.1 if (rate == 1e-2) is moving else 0.2, encoder=False)
    then = units(plan, found)
    rates = {
        (unit.settings["jitter_deg"], unit.settings["rate"])
        for unit in then
        if unit.settings["level"] == "tensor" and not unit.settings["tuning"]
    }
    assert rates == {(0, 1e-3), (0, 1e-2), (4, 1e-2)}  # the told have one rate for both
    assert len({unit.name for unit in then}) == len(then)
    # each seed: 4 roles × 2 jitters, 3 roles apart, 4 roles × 2 amounts, 2 permuted, 2 shown; and those tried first
    assert sum(unit.settings["level"] == "tensor" for unit in then) == 2 * (8 + 3 + 8 + 2 + 2) + 44
    tuned = {unit.name for unit in first if unit.settings["level"] == "tensor"}
    assert all(unit.settings["tuning"] == (unit.name in tuned) for unit in then if unit.settings["level"] == "tensor")
    assert not any(unit.settings.get("features") == "encoder" for unit in then)
    reference = task_unit(plan, "ipm", 0).name
    with_pictures = [{**one, reference: {}} for one in (found, found | tried(plan, lambda rate, moving: rate))]
    counts = [sum(unit.settings.get("features") == "encoder" for unit in units(plan, one)) for one in with_pictures]
    assert counts == [2 * 2 * 2, 2 * 2 * 2 + 2 * 2]  # rivals × rates × seeds are tried, then rivals × seeds measured


def test_only_what_is_compared_is_measured(plan: Plan) -> None:
    """Curves are those of a fixed camera and new samples; all other errors are compared at their end."""
    whole, end = plan.tensor["evaluate_every"], plan.tensor["steps"]
    given = [
        {},
        {"features": "encoder"},
        {"jitter_deg": 4},
        {"training_samples": 2},
        {"permuted": True},
        {"tuning": True},
    ]
    every = [tensor_unit(plan, "mlp", 1e-2, 0, **settings).settings["evaluate_every"] for settings in given]
    assert every == [whole, whole, end, end, end, end]
    assert tensor_unit(plan, "mlp_hidden", 1e-2, 0).settings["evaluate_every"] == end
    last = plan.task["scenes"][-1]
    tasks = [("mlp", 0, last), ("attention", 0, last), ("ipm", 0, last), ("mlp", 4, last), ("mlp", 0, last // 2)]
    diagnosed = [task_unit(plan, role, 0, jitter, scenes).settings["diagnosed"] for role, jitter, scenes in tasks]
    assert diagnosed == [True, True, False, False, False]


def test_an_encoders_rates_are_chosen_on_other_pictures_than_they_are_judged_on(plan: Plan) -> None:
    """And every seed has pictures of its own."""
    tuned = tuning_unit(plan, "mlp", 1e-2, 0, "encoder").settings["encoder"]
    judged = [tensor_unit(plan, "mlp", 1e-2, seed, features="encoder").settings["encoder"] for seed in plan.seeds]
    assert (tuned["split"], tuned["part"]) == ("val", [0, 1])
    assert [(of["split"], of["part"]) for of in judged] == [("test", [0, 2]), ("test", [1, 2])]


def test_a_rate_that_diverges_is_not_chosen(plan: Plan) -> None:
    found = tried(plan, lambda rate, moving: None if rate == 1e-2 else 0.9)
    assert best_rates(plan, found) == dict.fromkeys(TUNED, 1e-3)
    del found[tuning_unit(plan, "mlp", 1e-2, 1, "moving").name]
    assert best_rates(plan, found) is None


def test_the_told_are_told_and_jitter_is_as_said(plan: Plan) -> None:
    told, alone = (tensor_unit(plan, role, 1e-2, 0, jitter_deg=4) for role in ("mlp_told", "mlp"))
    assert (told.settings["calibration"], alone.settings["calibration"]) == ("exact", "none")
    arguments = task_unit(plan, "mlp", 1, 4.0).settings["arguments"]
    for expected in ("data.jitter.yaw_deg=4", "data.jitter.pitch_deg=2", "data.jitter.roll_deg=2", "seed=1"):
        assert expected in arguments


@pytest.mark.parametrize("name", ["quick", "full"])
def test_attention_at_tensor_level_has_values_that_can_be_the_target(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = OmegaConf.to_container(compose("study", [f"plan={name}"]).plan)
    contenders = Plan.read(given).tensor["contenders"]
    attending = [of for of in contenders.values() if of["_target_"].endswith(".CrossAttention")]
    assert [of["normalise_values"] for of in attending] == [False, False]
    contenders["attention"]["normalise_values"] = True
    with pytest.raises(InputError, match=r"contenders\.attention\.normalise_values=true cannot reproduce X"):
        Plan.read(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"note": "x"}, "plan: note missing or unknown; it takes seeds, tensor, task"),
        ({"task": "gone"}, "plan: task missing or unknown"),
        ({"seeds": 3}, "plan.seeds=3 must be a list of numbers"),
        ({"tensor": {"rates": 0.01}}, "plan.tensor.rates=0.01 must be a list of numbers"),
        ({"tensor": {"threshold": "abc"}}, "plan.tensor.threshold='abc' must be a positive number"),
        ({"task": {"share": 0}}, "plan.task.share=0 must be a positive number"),
        (
            {"tensor": {"source": {"channels": 4, "height": 4, "width": 8, "stride": None}}},
            "a value is of the wrong kind",
        ),
    ],
)
def test_values_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    given = {**copy.deepcopy(plain()), **{key: value for key, value in change.items() if not isinstance(value, dict)}}
    for key, value in change.items():
        if isinstance(value, dict):
            given[key] |= value
    if change.get("task") == "gone":
        del given["task"]
    with pytest.raises(InputError, match=message):
        Plan.read(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, r"plan.seeds=\[0\] must be two different ones"),
        ({"tensor": {"rates": []}}, r"plan.tensor.rates=\[\] must be positive numbers"),
        ({"tensor": {"training_samples": [0, 4]}}, r"training_samples=\[0, 4\] must be positive numbers"),
        ({"tensor": {"batches": 3}}, "plan.tensor: batches missing or unknown; it takes source, grid"),
        ({"tensor": {"jitter_deg": [1, 2]}}, r"plan.tensor.jitter_deg=\[1, 2\] must begin with 0"),
        ({"tensor": {"jitter_deg": [0, 4, 2]}}, "ascending order"),
        (
            {"tensor": {"told_jitter_deg": 0}},
            r"told_jitter_deg=0 but plan.tensor.jitter_deg=\[0, 4\]; rates for cameras",
        ),
        ({"tensor": {"training_samples": [2, 6]}}, r"training_samples=\[2, 6\] must stay below the 6 samples"),
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
