"""A small study of the whole tensor level: it resumes, and its rows hold known facts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.experiments.chart import crossover_chart
from bevreshape.experiments.intervals import Bounds
from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.runs import Budget, Setting, cost, held_out_of, tune
from bevreshape.experiments.study import TensorStudy
from bevreshape.sharing import left, missing, run
from bevreshape.storage.records import Records

pytestmark = pytest.mark.slow

PLAN = TensorPlan(
    budget=Budget((2, 4), 4, (0.01, 0.03), (0,), (0.0,), ("projected", "direct"), tuning_seeds=2, held_out=16),
    seeds=2,
    primary_seeds=3,
    sigma_deg=(0.0, 4.0),
    samples=(8, 32),
    tuned_sigma_deg=(0.0,),
    tuned_samples=(32,),
    primary_samples=(8, 32),
    primary_sigma_deg=4.0,
    scales=(0.25, 0.5),
    capacity_samples=(8, 16),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> TensorStudy:
    study = TensorStudy(PLAN, Records(tmp_path_factory.mktemp("study")))
    torch.set_num_threads(1)
    for _ in run([study]):
        pass
    return study


def test_all_settings_are_done_once(study: TensorStudy) -> None:
    lines = study.records.path.read_text().splitlines()
    assert len(lines) == len(study.work(study.records.read()))
    assert {json.loads(line)["name"] for line in lines} == study.planned().keys()
    assert left(study) == []
    assert missing([study]) == ()


def test_lost_entries_are_repeated_with_the_same_result(study: TensorStudy, tmp_path: Path) -> None:
    again = TensorStudy(PLAN, Records(tmp_path))
    lines = study.records.path.read_text().splitlines(keepends=True)
    (lost,) = [line for line in lines if line.startswith('{"name": "judge-mlp-pose_unknown-sigma4-samples_new"')]
    again.records.path.write_text("".join(line for line in lines if line != lost))
    assert missing([again]) == ("judge-mlp-pose_unknown-sigma4-samples_new",)
    (done,) = list(run([again]))
    assert (done.name, done.left) == ("judge-mlp-pose_unknown-sigma4-samples_new", ())
    assert again.records.path.read_text().splitlines(keepends=True)[-1] == lost


def test_every_row_has_a_value_and_a_verdict(study: TensorStudy) -> None:
    found = study.rows()
    assert sum(row.primary for row in found) == 6
    assert {"A7", "A8", "A9", "A11", "A12", "control"} <= {row.claim for row in found}
    for row in found:
        assert row.verdict
        assert all(row.value.values())


def test_rows_whose_entries_are_missing_are_left_out(study: TensorStudy, tmp_path: Path) -> None:
    part = TensorStudy(PLAN, Records(tmp_path))
    (only,) = part.rows()
    assert only.question == "Capacity on paper: six cameras of nuScenes"  # which is counted, not trained
    lines = study.records.path.read_text().splitlines(keepends=True)
    part.records.path.write_text("".join(line for line in lines if "judge-attention-pose_unknown-sigma0" not in line))
    gone = {row.question for row in study.rows()} - {row.question for row in part.rows()}
    assert "Does attention need positional encoding?" in gone
    assert not any(row.primary for row in part.rows())  # Holm needs them all
    assert [row for row in part.rows() if row.claim == "control"] == [r for r in study.rows() if r.claim == "control"]


def test_the_chart_has_a_panel_for_each_pose_and_budget(study: TensorStudy) -> None:
    figure = crossover_chart(study.results())
    assert len([axes for axes in figure.axes if axes.images]) == 6


def test_no_seed_is_both_tuned_on_and_judged_on(study: TensorStudy) -> None:
    judged = {seed for outcome in study.results().outcomes.values() for seed in outcome.seeds}
    seen: set[int] = set()

    def spy(setting: Setting, seeds, count: int):
        seen.update(seeds)
        return held_out_of(setting, seeds, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bevreshape.experiments.runs.held_out_of", spy)
        tune(Setting("mlp"), replace(PLAN.budget, steps=(2,), rates=(0.01,)))
    assert seen
    assert not seen & judged


def test_a_permutation_that_only_relabels_changes_nothing(study: TensorStudy) -> None:
    """An MLP's W and learned encodings begin in the order of the tokens; the first is the control of the study."""
    outcomes = study.outcomes().outcomes
    for one in (Setting("mlp"), Setting("attention", encoding="learned")):
        ordered, permuted = outcomes[one], outcomes[replace(one, permuted=True)]
        for steps in PLAN.budget.steps:
            assert permuted.errors(steps) == pytest.approx(ordered.errors(steps)[: len(permuted.seeds)], rel=1e-3)
    plain, permuted = (outcomes[Setting("attention", permuted=moved)] for moved in (False, True))
    assert permuted.errors(2) != pytest.approx(plain.errors(2)[: PLAN.seeds], rel=1e-3)
    (row,) = [row for row in study.rows() if row.question.startswith("Tokens and the columns of W")]
    assert row.verdict == "permuted alike"


def test_parameters_and_operations_are_those_counted_by_hand() -> None:
    # 48 visible cells, 128 tokens, 16 channels, d = 64
    assert cost(Setting("mlp"))["parameters"] == 48 * 128 + 16 * 16
    assert cost(Setting("mlp"))["flops"] == 2 * (128 * 16 * 16 + 48 * 128 * 16)
    attention = cost(Setting("attention"))
    assert attention["parameters"] == 48 * 64 + 64 * 64 + 16 * 64 + 64 * 64 + 16 * 16
    products = 128 * 16 * 16 + 128 * 16 * 64 + 128 * 64 * 64 + 48 * 64 * 64 + 48 * 64 * 128 + 48 * 128 * 16
    assert attention["flops"] == 2 * products
    once = 2 * (128 * 64 * 64 + 48 * 64 * 64)  # encodings of all tokens, queries of all cells; the same for all samples
    batch = cost(Setting("attention"), batch=16)
    assert batch["flops"] == attention["flops"] - once * 15 // 16
    assert batch["parameters"] == attention["parameters"]
    assert cost(Setting("mlp"), batch=16)["flops"] == cost(Setting("mlp"))["flops"]
    direct = cost(Setting("attention"), "direct")  # neither Wq nor its product
    assert direct["parameters"] == attention["parameters"] - 64 * 64
    assert direct["flops"] == attention["flops"] - 2 * 48 * 64 * 64


def test_candidates_of_each_method() -> None:
    budget = Budget((2,), 4, (0.01, 0.03), (0, 5), (0.0, 0.1), ("projected", "direct"), tuning_seeds=1, held_out=8)
    found = {method: budget.candidates(Setting(method)) for method in ("mlp", "adaptive", "attention", "continuous")}
    assert {method: len(set(recipes)) for method, recipes in found.items()} == {
        "mlp": 2,
        "adaptive": 2 * 2 * 2,
        "attention": 2 * 2 * 2 * 2,
        "continuous": 2 * 2 * 2 * 2,
    }
    assert {recipe.query for recipe in found["adaptive"]} == {"projected"}  # which is nothing to it


def test_censored_steps_count_as_bounds(study: TensorStudy) -> None:
    results = study.results()
    for bounds in results.steps_to(Setting("attention"), 1e-9):
        assert bounds.high == float("inf")
    (first, *_) = results.steps_to(Setting("mlp"), 2.0)
    assert first == Bounds(1.0, 2.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigma_deg": (1.0, 4.0)}, "must begin with 0"),
        ({"samples": (32, 8)}, "ascending order"),
        ({"capacity_samples": (16, 8)}, "ascending order"),
        ({"tuned_samples": (9,)}, "must be some of"),
        ({"primary_sigma_deg": 3.0}, "must be one of"),
    ],
)
def test_plans_that_make_no_sense_are_refused(change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(PLAN, **change)
