"""The task level of a study: rates from a world of their own, entries that are done once, and rows of what is done."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bevreshape import sharing
from bevreshape.config.options import read_value
from bevreshape.errors import InputError
from bevreshape.experiments import task_training
from bevreshape.experiments.level import Level
from bevreshape.experiments.runs import TUNING_SEED
from bevreshape.experiments.task import TaskStudy
from bevreshape.experiments.task_instruments import Inspected
from bevreshape.experiments.task_plan import TaskPlan, TaskSetting
from bevreshape.experiments.task_training import TaskOutcome
from bevreshape.storage.records import Records
from bevreshape.training.recorded import Trained

pytestmark = pytest.mark.slow

PLAN = TaskPlan(
    arguments=("data.image_size=[32,64]",),
    batch=4,
    steps=(10, 40),
    validations=4,
    rates=(0.001, 0.01, 0.1),
    seeds=3,
    variant_seeds=2,
    sigma_deg=(0.0, 2.0),
    tuned_sigma_deg=(0.0, 2.0),
    unseen_sigma_deg=5.0,
    unseen_height_m=0.2,
    examined=3,
)

BEST = {10: 0.01, 40: 0.001}
"""Rates that are made to be the best after so many steps."""


def value(arguments, key: str) -> str:
    (found,) = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{key}=")]
    return found


def fake_iou(arguments) -> float:
    """Attention with the pose is ahead, without it behind; longer trainings are better."""
    method, posed = value(arguments, "reshaper"), "reshaper.calibration=true" in arguments
    base = {"ipm": 0.5, "mlp": 0.4, "cross_attention": 0.48 if posed else 0.2}[method]
    longer = 1.0 if value(arguments, "trainer.max_steps") == "40" else 0.6
    return base * longer * (1 + 0.01 * int(value(arguments, "seed")))


def pretend(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Train nothing; arguments of all trainings that are asked for from here on."""
    asked: list[list[str]] = []

    def run(arguments, folder: Path) -> Trained:
        asked.append(list(arguments))
        folder.mkdir(parents=True)
        off = abs(float(value(arguments, "optimizer.lr")) - BEST[int(value(arguments, "trainer.max_steps"))])
        return Trained(folder, {}, (), {"val/iou/mean": 0.5 - off})

    def judge(arguments, folder: Path, unseen, examined: int) -> TaskOutcome:
        asked.append(list(arguments))
        folder.mkdir(parents=True)
        iou, steps = fake_iou(arguments), int(value(arguments, "trainer.max_steps"))
        curve = tuple((steps * k // 4, iou * k / 4) for k in range(1, 5))
        inspected = Inspected(0.1, 0.2, 0.05, 0.25, iou / 2, iou / 5, iou / 4) if examined else None
        costs = {"parameters": 9, "flops": 1000, "reshaper_parameters": 5, "reshaper_flops": 100}
        best = {"mean": iou}
        return TaskOutcome(curve, {"road": iou, "mean": iou}, dict.fromkeys(unseen, iou / 2), inspected, costs, best)

    patch.setattr(task_training, "run", run)
    patch.setattr(task_training, "judge", judge)
    patch.setattr(task_training, "constant_iou", lambda arguments: 0.02)
    return asked


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskStudy, list[list[str]]]:
    """A study and the arguments of its trainings, none of which is real."""
    study = TaskStudy(PLAN, Records(tmp_path_factory.mktemp("study")))
    with pytest.MonkeyPatch.context() as patch:
        asked = pretend(patch)
        for _ in sharing.run([study]):
            pass
    return study, asked


@pytest.fixture
def study(done: tuple[TaskStudy, list[list[str]]], tmp_path: Path) -> TaskStudy:
    """A copy of it."""
    shutil.copy(done[0].records.path, tmp_path)
    return TaskStudy(PLAN, Records(tmp_path))


def test_all_that_is_planned_is_done_once(done: tuple[TaskStudy, list[list[str]]]) -> None:
    study, trained = done
    assert isinstance(study, Level)
    assert set(study.planned()) == set(study.records.read())
    assert sharing.left(study) == []
    assert len({tuple(arguments) for arguments in trained}) == len(trained)
    # σ = 0: ipm, mlp, attention of two budgets, and both with the pose of one; σ = 2: five; three seeds; 5 variants of
    # two
    assert sum(f"seed={TUNING_SEED}" not in arguments for arguments in trained) == (3 * 2 + 2 + 5) * 3 + 5 * 2
    assert not list((study.records.folder / "runs").iterdir())


def test_rates_are_chosen_where_nothing_is_judged(done: tuple[TaskStudy, list[list[str]]]) -> None:
    for arguments in done[1]:
        steps, tuning = int(value(arguments, "trainer.max_steps")), value(arguments, "seed") == str(TUNING_SEED)
        assert value(arguments, "data.seed") == value(arguments, "seed")
        assert tuning or float(value(arguments, "optimizer.lr")) == BEST[steps]
    assert any(value(a, "optimizer.lr") == "0.0003162" for a in done[1])  # the best was at an end of the rates


def test_an_interrupted_study_does_what_is_left(study: TaskStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = study.records.path.read_text().splitlines(keepends=True)
    lost = [line for line in lines if '"task-attention-given-sigma2-steps40-seed1"' in line]
    study.records.path.write_text("".join(line for line in lines if line not in lost))
    trained = pretend(monkeypatch)
    assert [one.name for one in sharing.run([study])] == ["task-attention-given-sigma2-steps40-seed1"]
    assert len(trained) == 1
    assert study.records.path.read_text().splitlines(keepends=True)[-1:] == lost


def test_every_row_has_a_value_and_a_verdict(study: TaskStudy) -> None:
    found = study.rows()
    assert {"A7", "A8", "A9", "A11", "A12", "beyond"} == {row.claim for row in found}
    for row in found:
        assert row.verdict
        assert all(row.value.values())
    said = {row.question: row for row in found}
    fixed = said["On the task, fixed camera: which is better after 40 steps?"]
    assert fixed.verdict == "IoU: attention behind; gain: attention behind; IoU, best thresholds: attention behind"
    assert fixed.absolute["image-blind baseline"] == "0.126"  # a quarter of IPM's
    # (.2 − .125) / (.4 − .125), for every seed
    assert fixed.value["IoU"] == "0.5 [0.5, 0.5]"
    assert fixed.value["gain"].startswith("0.273 [0.27")
    given = said["On the task, moving camera, pose given: which is better?"]
    assert given.value["IoU, σ = 2°"] == "1.2 [1.2, 1.2]"
    assert given.absolute["attention, σ = 2°"] == "0.485 (96% of IPM's)"
    assert given.absolute["IPM, σ = 2°"] == "0.505"
    assert given.verdict.count("attention ahead") == len(given.value) == 4
    assert said["On the task, what is the pose worth to MLP?"].verdict.endswith("σ = 2°: with the pose alike")
    bears = said["On the task, cameras that move by σ = 5° only in the test, pose not given: which generalises better?"]
    assert bears.value["trained at 2°"] == "0.5 [0.5, 0.5]"
    assert bears.absolute["MLP, trained at 2°"] == "0.202 (as in training 0.404)"
    after = said["On the task, fixed camera: which learns faster?"]
    # 48 % of IPM's IoU after 10 steps and 80 % after 40: 75 % after 10 · 4^(27 / 32)
    assert after.absolute["MLP, 75%"] == "32.2 to 32.2"
    assert after.absolute["attention, 50%"] == "more than 40"
    assert after.value["75%"] == "at most 0.805"  # MLP relative to attention
    assert after.verdict.startswith("50%: attention behind")


def test_rows_of_what_is_not_done_are_left_out(study: TaskStudy) -> None:
    every = len(study.rows())
    lines = study.records.path.read_text().splitlines(keepends=True)
    study.records.path.write_text("".join(line for line in lines if "none" not in line.partition(",")[0]))
    assert len(study.rows()) == every - 1
    study.records.path.write_text("")
    assert study.rows() == []


def test_other_arguments_make_other_entries(study: TaskStudy) -> None:
    other = TaskStudy(replace(PLAN, batch=8), study.records)
    with pytest.raises(InputError, match="was made with arguments="):
        sharing.left(other)


def test_a_plan_without_variants_has_none() -> None:
    plan = replace(PLAN, variant_seeds=0)
    assert all(setting.plain for setting, _, _ in plan.judged())
    assert len(plan.judged()) == (3 * 2 + 2 + 5) * 3


def test_both_methods_get_the_same_camera_angles() -> None:
    for method in ("mlp", "attention"):
        assert "reshaper.calibration=true" in TaskSetting(method, pose=True).arguments(0)
        assert not any("calibration" in argument for argument in TaskSetting(method).arguments(0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigma_deg": (1.0, 2.0)}, "must begin with 0"),
        ({"steps": (40, 10)}, "ascending order"),
        ({"steps": (40,)}, "two at least"),
        ({"rates": ()}, "ascending order"),
        ({"tuned_sigma_deg": (0.0, 3.0)}, "must be out of"),
        ({"tuned_sigma_deg": (2.0,)}, "begin with 0"),
        ({"variant_seeds": 1}, "must be 0, which leaves them out, or 2 to seeds=3"),
    ],
)
def test_plans_that_make_no_sense_are_refused(change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(PLAN, **change)


@pytest.mark.parametrize("change", [{"seeds": 1}, {"batch": 0}, {"steps": [0, 2]}, {"examined": 1}, {"rates": [0, 1]}])
def test_numbers_out_of_range_are_refused_where_a_plan_is_read(change: dict) -> None:
    with pytest.raises(InputError, match=f"plan.task.{next(iter(change))}"):
        read_value("plan.task", TaskPlan, asdict(PLAN) | change)
