"""A comparison by its command line: it is shared, it resumes, failures are rows, and the winner is exported."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from commands import Ended, finish, start, without

from bevreshape.comparison.journal import open_journal

pytestmark = pytest.mark.slow

TINY = (
    *without("trainer.max", "trainer.val", "logger"),
    "logger=none", "device=cpu", "budget.steps=8", "budget.rungs=[2,4]", "budget.rates=[1.0e-3,1.0e-2]",
    "budget.trials=2", "budget.seeds=2", "budget.validations=2", "budget.repeats=2", "name=tiny",
)  # fmt: skip
"""Arguments that make a comparison a matter of seconds."""

UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}
"""Without torch.compile, which takes as long as all the rest."""

MINE = """
import math

from bevreshape.reshapers import Reshaper

class ColumnMean(Reshaper):
    def __init__(self, source, grid, gain: float = 1.0):
        super().__init__(source, grid, source.channels)
        self.gain = gain

    def reshape(self, features, cameras):
        return self.gain * features.mean((1, 3, 4), keepdim=True)[:, 0].expand(-1, -1, *self.target_shape)

class Exploding(ColumnMean):
    def reshape(self, features, cameras):
        return math.inf * super().reshape(features, cameras)
"""


def records(cwd: Path) -> dict[str, dict]:
    """Results by name; every name occurs once."""
    lines = (cwd / "comparisons" / "tiny" / "records.jsonl").read_text().splitlines()
    found = {(record := json.loads(line))["name"]: record["result"] for line in lines}
    assert len(found) == len(lines)
    return found


def test_two_view_transformers_are_compared(worlds: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    line = ("reshaper=mlp,mine.ColumnMean", "export=true", *TINY, f"data.root={worlds}")
    ended = finish(start("compare", *line, cwd=tmp_path))
    assert ended.code == 0, ended.err
    found = records(tmp_path)
    judged = {f"judge-{name}-seed{seed}" for name in ("mlp", "ColumnMean") for seed in (0, 1)}
    assert {name for name in found if not name.startswith("cost-")} == {"tune-mlp", "tune-ColumnMean", *judged}
    for name in judged:
        (folder,) = (tmp_path / "comparisons" / "tiny" / "runs").glob(f"{name.removeprefix('judge-')}-*")
        own = json.loads((folder / "metrics.json").read_text())
        assert found[name]["iou"]["mean"] == pytest.approx(own["test/iou/mean"], rel=1e-4)
        assert found[name]["validation"] == pytest.approx(own["val/iou/mean"], rel=1e-4)
        assert {"yaw_deg=1", "pitch_deg=1", "height_m=0.1"} == found[name]["changed"].keys()
    (costs,) = (result["costs"] for name, result in found.items() if name.startswith("cost-"))
    assert costs["mlp"]["parameters"] > costs["ColumnMean"]["parameters"] > 0
    for cost in costs.values():
        assert cost["latency_ms"].keys() | cost["unmeasured"].keys() == {"eager", "compiled", "exported"}
        assert all(latency > 0 for latency in cost["latency_ms"].values())
    assert (tmp_path / "comparisons" / "tiny" / "winner.ckpt").stat().st_size > 10_000
    assert (tmp_path / "comparisons" / "tiny" / "winner.onnx").stat().st_size > 10_000
    assert "tiny" in ended.out
    page = (tmp_path / "comparisons" / "tiny" / "report.html").read_text()
    (answer,) = re.findall(r'<p class="answer">(.+?)</p>', page)
    assert f"\n{answer}\n" in ended.out
    explored = json.loads(re.findall(r'id="explorer-data">(.+?)</script>', page, re.DOTALL)[0])
    assert {entry["name"] for entry in explored["entries"]} == {"mlp", "ColumnMean"}
    for title in ("IoU against cost", "Candidates", "Learning curves", "Example predictions", "Protocol"):
        assert f">{title}<" in page


def begun(cwd: Path) -> dict[str, int]:
    """How often each training was begun, by its folder; a log says where one resumes."""
    logs = (cwd / "comparisons" / "tiny" / "runs").rglob("train.log")
    return {str(log.parent.name): len(re.findall(r"encoder .* parameters →", log.read_text())) for log in logs}


def test_processes_resume_and_share_a_comparison(worlds: Path, tmp_path: Path) -> None:
    line = ("reshaper=mlp,ipm", *TINY, f"data.root={worlds}")
    first = start("compare", *line, cwd=tmp_path, environment=UNCOMPILED)
    journal, runs = tmp_path / "comparisons" / "tiny" / "optuna.log", tmp_path / "comparisons" / "tiny" / "runs"
    until(lambda: journal.exists() and '"2-1000000"' in journal.read_text())  # one training is done, the next runs
    until(lambda: len(list(runs.rglob("config.yaml"))) > 1)
    first.kill()
    finish(first)
    done = journal.read_text().count('"2-1000000"')
    processes = [start("compare", *line, cwd=tmp_path, environment=UNCOMPILED) for _ in range(2)]
    for ended in map(finish, processes):
        assert ended.code == 0, ended.err
    found = records(tmp_path)
    assert len(found) == 2 + 2 * 2 + 1
    studies = optuna.get_all_study_summaries(storage=open_journal(journal.parent))
    assert {study.study_name.partition("-")[0] for study in studies} == {"mlp", "ipm"}
    for study in studies:
        own = optuna.load_study(study_name=study.study_name, storage=open_journal(journal.parent))
        assert {trial.state.name for trial in own.trials} <= {"PRUNED", "COMPLETE"}
        tried = {(str(trial.params), trial.user_attrs["entered"]) for trial in own.trials}
        assert len(tried) == len(own.trials)  # a rate that a rung dropped may come back in a longer one
    # every training's result is written once: none is repeated, by whichever process
    written = re.findall(r'"trial_id":(\d+),"user_attr":\{"(\d+-\d+)"', journal.read_text())
    assert len(written) == len(set(written)) > done
    assert set(begun(tmp_path).values()) == {1}  # of judged trainings


def test_a_diverging_candidate_is_a_row(worlds: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    line = ("reshaper=ipm,mine.Exploding", *TINY, f"data.root={worlds}")
    ended = finish(start("compare", *line, cwd=tmp_path, environment=UNCOMPILED))
    assert ended.code == 0, ended.err
    found = records(tmp_path)
    assert {name for name in found if name.startswith("judge")} == {"judge-ipm-seed0", "judge-ipm-seed1"}
    assert re.search("loss is (nan|inf)", found["tune-Exploding"]["reason"])
    assert {one[3] for one in found["tune-Exploding"]["tried"]} == {"fail"}
    assert "Exploding" in ended.out
    assert found["tune-Exploding"]["reason"] in ended.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reshaper=mpl,ipm"], "reshaper=mpl is unknown; did you mean mlp"),
        (["reshaper=mine.Absent"], "mine.Absent"),
        (["reshaper=bevreshape.reshapers.MLP,bevreshape.reshapers.mlp.MLP"], "two are named MLP"),
        (["reshaper=mlp", "budget=quik"], "budget=quik is unknown; did you mean quick"),
        (["reshaper=mlp", "budget.step=3"], "budget.step is not a key of this command; did you mean budget.steps"),
        (["reshaper=mlp", "budget={step: 3}"], "budget.step"),
        (["reshaper=mlp", "budget={rates: [0]}"], "budget.rates=[0] must be a list of 1 or more numbers > 0"),
        (["reshaper=mlp", "budget.rungs=[9999]"], "budget.rungs=[9999] must end at budget.steps="),
        (
            ["reshaper=mlp", "trainer.max_steps=9"],
            "a comparison decides trainer.max_steps; set budget",
        ),
        (["reshaper=mlp", "trainer.early_stopping.patience=2"], "decides trainer.early_stopping.patience; set budget"),
        (["reshaper=mlp", "++trainer.early_stopping={patience: 2}"], "decides trainer.early_stopping; set"),
        (["reshaper=mlp", "seed=3"], "set budget.seeds"),
        (["reshaper=mlp", "reshaper.rank=3"], "reshapers.NAME.OPTION"),
        (["reshaper=mlp", "latency_ms=0"], "latency_ms=0 must be a number > 0"),
        (["reshaper=mlp", "device=tpu"], "device=tpu is not available"),
        (["reshaper=mlp", "data.rig=back"], "data.rig='back' must be"),
        (["reshaper=mlp", "~metric.iou"], "none gives the IoU"),
    ],
)
def test_error_messages(command: Callable[..., Ended], tmp_path: Path, arguments: list[str], says: str) -> None:
    ended = command("compare", *arguments)
    assert ended.code == 1
    assert says in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "comparisons").exists()


def until(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
