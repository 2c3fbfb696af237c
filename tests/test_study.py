"""The study by its command line: it resumes, several processes share it, and it ends with tables, a chart and a
page."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import finish, start

pytestmark = pytest.mark.slow

TINY = {
    "tensor": {
        "budget": {
            "steps": [1, 2], "batch": 2, "rates": [0.01], "warmups": [0], "decays": [0], "queries": ["projected"],
            "tuning_seeds": 1, "held_out": 6,
        },
        "seeds": 2, "primary_seeds": 2, "sigma_deg": [0, 2], "samples": [4], "tuned_sigma_deg": [0],
        "tuned_samples": [4], "primary_samples": [4],
        "primary_sigma_deg": 2, "scales": [0.25, 0.5], "capacity_samples": [4],
    }
}  # fmt: skip


@pytest.fixture
def confs(tmp_path: Path) -> Path:
    """A folder with a plan of seconds."""
    folder = tmp_path / "conf"
    (folder / "plan").mkdir(parents=True)
    (folder / "plan" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def test_processes_resume_and_share_a_study(confs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    arguments = (f"--config-dir={confs}", "plan=tiny", f"folder={folder}")
    first = start("study", *arguments, cwd=tmp_path)
    until(lambda: (folder / "records.jsonl").exists())
    first.kill()
    finish(first)
    begun = (folder / "records.jsonl").read_text().splitlines()

    processes = [start("study", *arguments, cwd=tmp_path) for _ in range(2)]
    for ended in map(finish, processes):
        assert ended.code == 0, ended.err
        assert "fixed camera, steps" in ended.out
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert lines[: len(begun)] == begun
    names = [json.loads(line)["name"] for line in lines]
    assert len(names) == len(set(names))
    for name in ("README.md", "results.json", "results.csv", "crossover.png", "report.html", "plan.yaml"):
        assert (folder / name).stat().st_size > 100, name
    assert f"{len(names)} of" not in (folder / "README.md").read_text()


def test_records_of_another_plan_are_left_alone(confs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "tiny"
    folder.mkdir(parents=True)
    made = {"setting": {}, "budget": {}}
    line = json.dumps({"name": "tune-mlp-pose_unknown-sigma0-samples_new", "made_with": made, "result": {}})
    (folder / "records.jsonl").write_text(line + "\n")
    (folder / "plan.yaml").write_text("other\n")
    ended = finish(start("study", f"--config-dir={confs}", "plan=tiny", cwd=tmp_path))
    assert ended.code == 1
    assert "tune-mlp-pose_unknown-sigma0-samples_new was made with" in ended.err
    assert (folder / "plan.yaml").read_text() == "other\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan.tensor.seeds=1"], "plan.tensor.seeds=1 must be an integer from 2"),
        (["plan.tensor.budget.rates=[0]"], "plan.tensor.budget.rates=[0] must be a list of 1 or more numbers > 0"),
        (["plan.tensor.sigma_deg=[1,2]"], "must begin with 0"),
        (["+plan.tensors={}"], "plan.tensors is unknown"),
        (["plan.tensor=null", "plan.features=null", "plan.task=null"], "has no level"),
        (["plan=none"], "plan=none is unknown"),
    ],
)
def test_error_messages(command, arguments: list[str], says: str) -> None:
    ended = command("study", *arguments)
    assert ended.code == 1
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_a_folder_elsewhere_is_refused_before_it_is_made(command, tmp_path: Path) -> None:
    assert "is an address, not a path" in command("study", "folder=s3://bucket/x").err
    assert not (tmp_path / "s3:").exists()


def test_jobs_of_a_multirun_share_a_study(confs: Path, tmp_path: Path) -> None:
    line = ("-m", f"--config-dir={confs}", "plan=tiny", "plan.tensor=null", "worker=0,1")
    ended = finish(start("study", *line, cwd=tmp_path))
    assert ended.code == 1
    assert "has no level" in ended.err  # of both: nothing else stands in the way


def until(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)
