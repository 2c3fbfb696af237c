"""The study by its command line: it goes on where it stopped, and ends with a table, figures and a page."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import DIVERGING, finish, start, without
from lab.studies import done, plain, tiny

from bevreshape.lab.plan import Plan, Unit, task_unit, units
from bevreshape.study import time_left

TASK = (
    *without("trainer.accelerator", "trainer.max_steps", "trainer.val_check_interval"),
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
)


@pytest.fixture
def confs(worlds: Path, tmp_path: Path) -> Path:
    """A folder with a plan whose runs take seconds."""
    given = plain()
    given["tensor"] |= {"rates": [1e-2], "jitter_deg": [0, 4], "told_jitter_deg": 4, "training_samples": [2]}
    given["task"] |= {"arguments": [*TASK, f"data.root={worlds}"], "scenes": [24]}
    folder = tmp_path / "conf"
    (folder / "plan").mkdir(parents=True)
    (folder / "plan" / "tiny.yaml").write_text(yaml.safe_dump(given))
    return folder


def test_from_nothing_to_a_page(confs: Path, trained: Path, tmp_path: Path) -> None:
    plan = Plan(**yaml.safe_load((confs / "plan" / "tiny.yaml").read_text()))
    folder = tmp_path / "studies" / "tiny"
    looked_at = folder / "runs" / task_unit(plan, "mlp", 0).name / "diagnosis" / "diagnosis.json"
    tasks = [unit for unit in units(plan, {}) if unit.settings["level"] == "task"]
    arguments = [f"--config-dir={confs}", "plan=tiny", "device=cpu"]

    # the others are as if a process had been stopped between training and record; one is trained from nothing
    for number, unit in enumerate(tasks):
        run = folder / "runs" / unit.name
        if run != looked_at.parents[1]:
            shutil.copytree(trained, run)
            config = yaml.safe_load((run / "config.yaml").read_text()) | {"seed": number}
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            (run / "diagnosis").mkdir()
            (run / "diagnosis" / "diagnosis.json").write_text(
                json.dumps(
                    {
                        "data_dependence": 0.1 * number,
                        "order": {"iou": {"intact": 0.5, "permuted": 0.1 + 0.01 * number, "unrelated": 0.08}},
                    }
                )
            )
    ended = finish(start("study", *arguments, cwd=tmp_path))
    assert ended.code == 0, ended.err
    assert json.loads(looked_at.read_text())["order"]["iou"].keys() == {"intact", "permuted", "unrelated"}
    records = tiny(folder, plan).records()
    assert not records[task_unit(plan, "ipm", 0).name]["diagnosis"]  # no claim is about it
    known = units(plan, records)
    assert {unit.name for unit in known} == set(records)
    assert sum(unit.settings.get("features") == "encoder" for unit in known) == 2 * 4  # tried and measured
    for name in (
        "claims.json",
        "claims.md",
        "weights.png",
        "convergence.png",
        "when_cameras_move.png",
        "what_more_data_does.png",
        "report.html",
    ):
        assert (folder / name).stat().st_size > 1000, name
    rows = json.loads((folder / "claims.json").read_text())
    assert {row["number"] for row in rows} == {"A7", "A8", "A9", "A10", "A11", "A12", "Q1", "Q2"}
    page = (folder / "report.html").read_text()
    for text in ("XᵀX does not change", ">Convergence<", ">When cameras move<", ">Explorer<"):
        assert text in page

    # again: nothing is left to do, and what somebody lost is made anew
    (folder / "records" / f"{known[0].name}.json").unlink()
    ended = finish(start("study", *arguments, cwd=tmp_path))
    assert ended.code == 0, ended.err
    assert f"{known[0].name}: error" in ended.out
    assert ended.out.count(": error") == 1


def test_a_run_that_diverges_is_recorded_as_such(confs: Path, tmp_path: Path) -> None:
    given = yaml.safe_load((confs / "plan" / "tiny.yaml").read_text())
    given["task"]["contenders"]["mlp"] = ["reshaper=mlp", *DIVERGING]
    plan = Plan(**given)
    study, unit = tiny(tmp_path / "study", plan), task_unit(plan, "mlp", 0)
    made = done(study, unit)
    assert (made["metrics"], made["diagnosis"]) == ({}, {})
    assert "training: the loss is" in (study.place.run_folder(unit.name) / "train.log").read_text()
    assert study.has(unit)


def test_what_runs_in_other_processes_ends_with_a_study_that_is_terminated(confs: Path, tmp_path: Path) -> None:
    plan = Plan(**yaml.safe_load((confs / "plan" / "tiny.yaml").read_text()))
    long = yaml.safe_load((confs / "plan" / "tiny.yaml").read_text())
    long["task"]["arguments"] = [a.replace("max_steps=4", "max_steps=4000") for a in long["task"]["arguments"]]
    (confs / "plan" / "tiny.yaml").write_text(yaml.safe_dump(long))
    process = start("study", f"--config-dir={confs}", "plan=tiny", "device=cpu", cwd=tmp_path)
    folder = tmp_path / "studies" / "tiny"
    try:
        until(lambda: any(folder.glob("runs/*/config.yaml")))
        (begun,) = folder.glob("runs/*/config.yaml")
        process.terminate()
    except BaseException:
        process.kill()
        raise
    finally:
        finish(process)
    with tiny(folder, plan).claimed(begun.parent.name) as lock:
        assert lock is not None  # which lasts as long as any process of the run


def until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_sentences(command) -> None:
    ended = command("study", "plan.seeds=[1]", "device=cpu")
    assert ended.code == 1
    assert "plan.seeds=[1] must be two different ones" in ended.err
    assert "Traceback" not in ended.err
    ended = command("study", "plan=none")
    assert "plan=none is unknown" in ended.err


def test_the_time_left_is_of_the_mean_of_each_level() -> None:
    def unit(level: str) -> Unit:
        return Unit(level, {"level": level})

    spent = {"tensor": [2.0, 4.0], "task": [100.0]}
    assert time_left([unit("tensor"), unit("tensor"), unit("task")], spent) == "; about 1 min 46 s left"
    assert time_left([unit("tensor"), unit("task")], {"tensor": [2.0]}) == ""
    assert time_left([], spent) == ""
