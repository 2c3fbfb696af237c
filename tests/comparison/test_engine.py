"""A comparison without real trainings: entries are done once, failures are rows, the outcome is what was measured."""

import csv
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from bevreshape import sharing
from bevreshape.comparison import comparison as engine
from bevreshape.comparison import failures
from bevreshape.comparison.budget import TUNING_SEED, Budget
from bevreshape.comparison.comparison import SETTINGS_FILE, Comparison
from bevreshape.comparison.judging import measured
from bevreshape.comparison.run_comparison import check
from bevreshape.config.compose import plain_config
from bevreshape.config.options import read_settings
from bevreshape.config.paths import conf_dir
from bevreshape.config.settings import Compare
from bevreshape.errors import Divergence, InputError, RunError, TrainingInterrupted
from bevreshape.geometry import BEVGrid
from bevreshape.storage.plain_values import to_yaml
from bevreshape.training import hardware
from bevreshape.training.recorded import Trained

BEST = {"MLP": 0.003, "IPM": 0.03, "Pool": 0.001}
"""Rates that are made to be the best; the second and third are at an end of the grid or beyond."""

GIVEN = (
    "budget.steps=40", "budget.rungs=[10,20]", "budget.rates=[0.001,0.003,0.01]", "budget.trials=4", "budget.seeds=2",
    "budget.errors={yaw_deg:[1]}", "logger=csv", "latency_ms=20", "command=typed", "device=cpu", "name=made_up",
)  # fmt: skip


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    """Settings as the command reads them."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        chosen = [f"+reshaper@reshapers.{name}={name}" for name in ("mlp", "ipm", "pool")]
        cfg = compose("compare", [*chosen, *GIVEN, f"folder={folder}", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return read_settings(Compare, plain_config(cfg))


def name_of(config: dict[str, Any]) -> str:
    return config["reshaper"]["_target_"].rpartition(".")[2]


Fail = Callable[[dict[str, Any]], None]


Iou = Callable[[dict[str, Any], float], float | None]


def pretend(
    patch: pytest.MonkeyPatch, fail: Fail = lambda config: None, iou_of: Iou = lambda config, iou: iou
) -> list[dict[str, Any]]:
    """Train nothing; configs of all trainings that are asked for from here on.

    ``fail`` may raise for one of them; ``iou_of`` may return another IoU for one of them.
    """
    asked: list[dict[str, Any]] = []

    def train(config: dict[str, Any], folder: Path, command: str, tested: bool = True) -> Trained:
        asked.append(config)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("best.ckpt", "last.ckpt"):
            (folder / "checkpoints" / name).touch()
        (folder / "history.csv").write_text("step,seconds\n10,2.5\n")
        fail(config)
        iou = 0.5 - 10 * abs(config["optimizer"]["lr"] - BEST[name_of(config)])
        return Trained(folder, config, ((10, iou),), {"val/iou/mean": iou_of(config, iou)})

    def results(trained: Trained, errors: Any) -> dict[str, Any]:
        value = trained.metrics["val/iou/mean"]
        return {
            "validation": value, "iou": {"road": value, "lane": value - 0.2, "mean": value - 0.1},
            "bands": {"0-10m": 0.3}, "curve": [list(point) for point in trained.curve],
            "changed": {"yaw_deg=1": 0.2}, "seconds": 2.5,
        }  # fmt: skip

    def costs(configs: dict[str, Any], *_: Any) -> dict[str, Any]:
        one = {"parameters": 7, "flops": 9, "latency_ms": {"eager": 3.0}, "unmeasured": {}, "memory_mb": None}
        return {"device": "a processor", "costs": dict.fromkeys(configs, one), "failed": {}}

    patch.setattr(failures, "RETRY_S", 0.0)
    patch.setattr(engine, "train_recorded", train)
    patch.setattr(engine, "measured", results)
    patch.setattr(engine, "measure_costs", costs)
    patch.setattr(engine, "data_of", lambda config: type("Data", (), {"source": None}))
    patch.setattr(engine, "Tested", lambda data: [[0]])
    patch.setattr(engine.BEVSpec, "of", lambda source: None)
    return asked


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, list[dict[str, Any]]]:
    """A comparison and the configs of its trainings."""
    comparison = Comparison(settings(tmp_path_factory.mktemp("comparison")))
    with pytest.MonkeyPatch.context() as patch:
        asked = pretend(patch)
        for _ in sharing.run([comparison]):
            pass
    return comparison, asked


def tuning(config: dict[str, Any]) -> bool:
    return config["seed"] >= TUNING_SEED


def test_all_that_is_planned_is_done_once(done) -> None:
    comparison, asked = done
    assert isinstance(comparison, sharing.Planned)
    records = comparison.records.read()
    assert records.keys() == comparison.planned().keys()
    judged = [f"judge-{name}-seed{seed}" for name in ("mlp", "ipm", "pool") for seed in (0, 1)]
    assert {name for name in records if not name.startswith("cost-")} == {*judged, "tune-mlp", "tune-ipm", "tune-pool"}
    assert sharing.left(comparison) == []
    keys = [
        (name_of(one), str(one["reshaper"]), one["optimizer"]["lr"], one["trainer"]["max_steps"], one["seed"])
        for one in asked
    ]
    assert len(set(keys)) == len(keys)


def test_costs_are_kept_by_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    spec = engine.BEVSpec(BEVGrid((0, 48), (-24, 24), 2.0), ("a",), ("front",), (32, 64))
    monkeypatch.setattr(engine.BEVSpec, "of", lambda source: spec)
    for _ in sharing.run([Comparison(settings(tmp_path, f"results={tmp_path / 'kept'}"))]):
        pass
    (path,) = (tmp_path / "kept").glob("benchmark-*-float32.csv")
    with path.open(newline="") as file:
        found = [(row["reshaper"], row["subject"], row["form"], row["forward_ms"]) for row in csv.DictReader(file)]
    assert found == [(name, "model", "eager", "3") for name in ("mlp", "ipm", "pool")]


@pytest.mark.parametrize("other", ["processor", "cores", "threads", "torch", "repeats"])
def test_costs_are_measured_again_under_other_conditions(done, tmp_path, monkeypatch, other: str) -> None:
    pretend(monkeypatch)
    own = copied(done, tmp_path, "nothing")
    before = own.outcome()
    with pytest.MonkeyPatch.context() as patch:
        if other == "processor":
            patch.setattr(hardware, "processor_name", lambda: "another processor")
        elif other == "cores":
            patch.setattr(os, "cpu_count", lambda: 999)
        elif other == "threads":
            patch.setattr(torch, "get_num_threads", lambda: 999)
        elif other == "torch":
            patch.setattr(torch, "__version__", "999.0")
        else:
            own = Comparison({**own.settings, "budget": {**own.settings["budget"], "repeats": 999}})
        cost = {"parameters": 7, "flops": 9, "latency_ms": {"eager": 4.0}, "unmeasured": {}, "memory_mb": None}
        patch.setattr(
            engine,
            "measure_costs",
            lambda configs, *_: {"device": "x", "costs": dict.fromkeys(configs, cost), "failed": {}},
        )
        done_now = [one.name for one in sharing.run([own])]
        assert [name.partition("-")[0] for name in done_now] == ["cost"]
        assert {one.cost.latency_ms["eager"] for one in own.outcome().candidates if one.cost} == {4.0}
    first = Comparison({**done[0].settings, "folder": str(tmp_path)})
    assert sharing.left(first) == []
    assert first.outcome() == before


def test_costs_of_unknown_conditions_are_shown_and_measured_again(done, tmp_path, monkeypatch) -> None:
    """Their names held the device alone."""
    pretend(monkeypatch)
    own = copied(done, tmp_path, "nothing")
    text = own.records.path.read_text()
    before = own.outcome()
    own.records.path.write_text(re.sub(r'"cost-.*-([0-9a-f]{8})"(?=, "made_with")', r'"cost-a-processor-\1"', text))
    assert own.records.path.read_text() != text
    assert own.outcome() == before
    assert [work.entry.name.partition("-")[0] for work in sharing.left(own)] == ["cost"]


def test_costs_are_measured_once_all_else_is_recorded(done) -> None:
    comparison, _ = done
    records = comparison.records.read()
    for name in records:
        rest = {key: value for key, value in records.items() if key != name and not key.startswith("cost-")}
        offered = [work.entry.name for work in comparison.work(rest) if work.entry.name.startswith("cost-")]
        assert bool(offered) == name.startswith("cost-")


def test_judged_seeds_are_no_tuning_seeds_and_only_tuned_values_are_judged(done) -> None:
    _, asked = done
    judged = [one for one in asked if not tuning(one)]
    assert sorted((name_of(one), one["seed"]) for one in judged) == [
        (name, seed) for name in ("IPM", "MLP", "Pool") for seed in (0, 1)
    ]
    for one in judged:
        assert one["trainer"]["max_steps"] == 40
        assert one["optimizer"]["lr"] == pytest.approx(BEST[name_of(one)], rel=0.07)  # 0.032 for IPM
        assert one["logger"] is not None
    assert all(one["logger"] is None and one["trainer"]["max_steps"] in (10, 20) for one in asked if tuning(one))
    assert len({one["data"]["seed"] for one in asked}) == 1


def test_everyone_tries_the_same_number_and_an_end_is_extended(done) -> None:
    first: dict[str, set[str]] = {}
    for one in done[1]:
        if one["trainer"]["max_steps"] == 10:
            first.setdefault(name_of(one), set()).add(f"{one['optimizer']['lr']} {one['reshaper']}")
    assert {name: len(tried) for name, tried in first.items()} == {"MLP": 4, "IPM": 6, "Pool": 5}
    ipm = sorted({one["optimizer"]["lr"] for one in done[1] if name_of(one) == "IPM"})
    assert ipm[-2:] == [0.032, 0.1]
    assert any(one["reshaper"].get("mode") == "max" for one in done[1])  # declared by Pool


def test_outcome(done) -> None:
    comparison, _ = done
    outcome = comparison.outcome()
    assert [one.name for one in outcome.candidates] == ["mlp", "ipm", "pool"]
    assert (outcome.planned, outcome.missing) == (10, 0)
    assert outcome.classes == ("road", "lane")
    assert outcome.constraints.latency_ms == 20
    assert (outcome.command, outcome.device) == ("typed", "a processor")
    mlp = outcome.candidates[0]
    assert mlp.tuned == {"optimizer.lr": 0.003}
    assert mlp.cost is not None
    assert mlp.cost.latency_ms == {"eager": 3.0}
    assert [run.seed for run in mlp.runs] == [0, 1]
    assert mlp.runs[0].iou["mean"] == pytest.approx(0.4)
    for run in mlp.runs:
        assert (comparison.folder / run.folder / "checkpoints" / "best.ckpt").is_file()
        assert not (comparison.folder / run.folder / "checkpoints" / "last.ckpt").exists()
    assert max(trial.validation for trial in mlp.tried if trial.validation is not None) == pytest.approx(0.5)


def copied(done, folder: Path, lost: str) -> Comparison:
    """A copy of the comparison without some records."""
    shutil.copytree(done[0].folder, folder, dirs_exist_ok=True)
    own = Comparison({**done[0].settings, "folder": str(folder)})
    lines = own.records.path.read_text().splitlines(keepends=True)
    own.records.path.write_text("".join(line for line in lines if lost not in line.partition(",")[0]))
    for one in (*folder.glob("runs/mlp-seed1-*"), folder / "runs" / "tuning"):
        shutil.rmtree(one, ignore_errors=True)
    return own


def test_an_interrupted_comparison_does_what_is_left(done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch)
    own = copied(done, tmp_path, "judge-mlp-seed1")
    assert own.outcome().missing == 1
    assert [one.name for one in sharing.run([own])] == ["judge-mlp-seed1"]
    assert [(name_of(one), one["seed"]) for one in asked] == [("MLP", 1)]
    assert own.outcome() == Comparison({**done[0].settings, "folder": str(tmp_path)}).outcome()


def test_a_tuning_that_was_not_recorded_trains_nothing_again(done, tmp_path, monkeypatch) -> None:
    asked = pretend(monkeypatch)
    own = copied(done, tmp_path, "tune-ipm")
    assert [one.name for one in sharing.run([own])] == ["tune-ipm"]
    assert asked == []
    assert own.records.read()["tune-ipm"]["result"] == done[0].records.read()["tune-ipm"]["result"]


def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Fail) -> dict[str, str | None]:
    """Reasons by name."""
    pretend(monkeypatch, fail)
    comparison = Comparison(settings(tmp_path))
    for _ in sharing.run([comparison]):
        pass
    outcome = comparison.outcome()
    assert outcome.missing == 0
    for one in outcome.candidates:
        assert (one.cost is None) == (one.reason is not None and not one.runs)
    return {one.name: one.reason for one in outcome.candidates}


def raising(error: BaseException, name: str, when: Callable[[dict[str, Any]], bool] = lambda config: True) -> Fail:
    def fail(config: dict[str, Any]) -> None:
        if name_of(config) == name and when(config):
            raise error

    return fail


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Divergence("training: the loss is nan at step 3"), "tuning: training: the loss is nan at step 3"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "tuning: out of memory"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "tuning: out of memory"),
        (MemoryError(), "tuning: out of memory"),
        (KeyError("own"), "tuning: KeyError: 'own'"),
    ],
)
def test_a_candidate_that_fails_is_a_row(tmp_path, monkeypatch, error: BaseException, reason: str) -> None:
    assert failed(tmp_path, monkeypatch, raising(error, "IPM")) == {"mlp": None, "ipm": reason, "pool": None}


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_validation_iou_that_is_no_number_is_a_reason(tmp_path, monkeypatch, value: float | None) -> None:
    pretend(monkeypatch, iou_of=lambda config, iou: value if name_of(config) == "IPM" else iou)
    comparison = Comparison(settings(tmp_path, "~reshapers.pool"))
    for _ in sharing.run([comparison]):
        pass
    reasons = {one.name: one.reason for one in comparison.outcome().candidates}
    assert reasons["mlp"] is None
    assert str(reasons["ipm"]).startswith("tuning: val/iou/mean is not a number")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_judged_iou_that_is_no_number_is_refused(tmp_path: Path, split: str) -> None:
    metrics = {"val/iou/mean": 0.5, "test/iou/mean": 0.4, f"{split}/iou/mean": float("nan")}
    with pytest.raises(InputError, match=rf"{split}/iou/mean is not a number"):
        measured(Trained(tmp_path, {}, (), metrics), {})


def test_a_judged_seed_that_diverges_is_the_reason(tmp_path, monkeypatch) -> None:
    fail = raising(Divergence("training: the loss is nan"), "MLP", lambda config: config["seed"] == 1)
    assert failed(tmp_path, monkeypatch, fail)["mlp"] == "seed 1: training: the loss is nan"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left"), TrainingInterrupted("stopped"),
        RunError("logger: W&B cannot begin a run"), RunError("runs/x is in use by process 7"),
    ],
)  # fmt: skip
def test_a_full_disk_or_a_stop_is_no_failure_of_a_candidate(tmp_path, monkeypatch, error: BaseException) -> None:
    pretend(monkeypatch, raising(error, "MLP"))
    with pytest.raises(type(error)):
        list(sharing.run([Comparison(settings(tmp_path))]))
    assert not (tmp_path / "records.jsonl").exists()


def test_other_settings_are_refused(done) -> None:
    changed = settings(done[0].folder, "data.rig=surround")
    with pytest.raises(InputError, match=r"tune-mlp was made with data.rig=front but the plan says surround"):
        sharing.left(Comparison(changed))


def test_other_settings_take_no_training_of_the_same_name(done) -> None:
    value, own = done[0].outcome().candidates[0].tuned, Comparison(settings(done[0].folder, "budget.steps=50"))
    for other in (own, Comparison(settings(done[0].folder, "data.rig=surround"))):
        assert other.run_folder("mlp", value, 0) != done[0].run_folder("mlp", value, 0)
    assert own.run_folder("mlp", value, 0) != own.run_folder("mlp", value, 1)
    again = Comparison(settings(done[0].folder, "latency_ms=1", "checkpoint_every_n_steps=7"))
    assert again.run_folder("mlp", value, 0) == done[0].run_folder("mlp", value, 0)


def test_limits_and_places_do_not_make_another_comparison(done) -> None:
    changed = settings(done[0].folder, "latency_ms=1", "margin=0.1", "loader.num_workers=0", "data.root=elsewhere")
    assert sharing.left(Comparison(changed)) == []


def test_settings_that_fit_no_candidate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoder.strides"):
        check(Comparison(settings(tmp_path, "encoder.strides=[8,16]", "~reshapers.ipm")))
    with pytest.raises(InputError, match="metric: none gives the IoU"):
        check(Comparison(settings(tmp_path, "~metric.iou")))


BUDGET = {
    "steps": 40, "rungs": [10, 20], "rates": [0.001, 0.01], "trials": 2, "tuning_seeds": 1, "seeds": 2,
    "validations": 2, "errors": {}, "repeats": 2,
}  # fmt: skip


def test_without_trials_the_rates_alone_are_tried() -> None:
    assert Budget.read(BUDGET | {"trials": None, "rates": [0.001, 0.01, 0.1]}).combinations == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rungs": [20, 10]}, "ascending order"),
        ({"rates": [0.01, 0.01]}, "ascending order"),
        ({"rungs": [10, 80]}, "must end at budget.steps=40 or before"),
        ({"trials": 1}, "budget.trials=1 is less than the 2 rates"),
        ({"trials": 0}, "budget.trials=0 must be an integer from 1"),
        ({"seeds": 0}, "budget.seeds=0 must be an integer from 1"),
        ({"step": 3}, "budget.step is unknown; did you mean steps"),
        ({"errors": {"yaw": [1]}}, "budget.errors.yaw is unknown; did you mean yaw_deg"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Budget.read(BUDGET | change)


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 other seed"), (2, "2 other seeds")])
def test_samples_are_those_of_all_processes(tmp_path: Path, seeds: int, words: str) -> None:
    given = ("+trainer.num_nodes=3", "trainer.devices=2", "trainer.accelerator=cpu", "loader.batch_size=4")
    protocol = Comparison(settings(tmp_path, *given, f"budget.tuning_seeds={seeds}")).outcome().protocol
    assert protocol["samples"] == str(40 * 4 * 2 * 3)
    assert protocol["tuning"].endswith(words)


def test_no_training_stops_early(tmp_path: Path) -> None:
    comparison = Comparison(settings(tmp_path, "trainer.early_stopping.patience=2"))
    config = comparison.config("mlp", comparison.initial("mlp")[0], 0)
    assert config["trainer"]["early_stopping"]["patience"] is None


def test_wandb_runs_are_one_group(tmp_path: Path) -> None:
    comparison = Comparison(settings(tmp_path, "logger=wandb", "name=mine"))
    loggers = [
        comparison.config(name, comparison.initial(name)[0], seed)["logger"]
        for name in ("mlp", "ipm")
        for seed in (0, 1)
    ]
    assert {one["group"] for one in loggers} == {"mine"}
    assert [one["name"] for one in loggers] == ["mlp-seed0", "mlp-seed1", "ipm-seed0", "ipm-seed1"]


def test_mlflow_runs_are_one_group(tmp_path: Path) -> None:
    comparison = Comparison(settings(tmp_path, "logger=mlflow", "name=mine"))
    (values, *_) = comparison.initial("mlp")
    logger = comparison.config("mlp", values, 1)["logger"]
    assert (logger["run_name"], logger["tags"]["group"]) == ("mlp-seed1", "mine")
    assert comparison.settings["logger"]["tags"]["group"] == "synthetic"


def test_the_rate_of_any_optimizer_is_tuned(tmp_path: Path) -> None:
    comparison = Comparison(settings(tmp_path, "optimizer=sgd_cosine"))
    (first, *_) = comparison.initial("mlp")
    assert first == {"optimizer.optimizer.lr": 0.001}
    assert comparison.config("mlp", first, 0)["optimizer"]["optimizer"]["lr"] == 0.001


def test_a_stored_comparison_is_read_without_its_device(done, tmp_path: Path) -> None:
    """Nothing is written, and the folder may have been moved."""
    shutil.copytree(done[0].folder, tmp_path / "moved", ignore=shutil.ignore_patterns("optuna.log", "locks"))
    (tmp_path / "moved" / SETTINGS_FILE).write_text(to_yaml({**done[0].settings, "device": "cuda:99"}))
    before = sorted(tmp_path.rglob("*"))
    outcome = Comparison.stored(tmp_path / "moved").outcome()
    assert outcome.candidates == done[0].outcome().candidates
    assert (outcome.device, outcome.missing) == ("a processor", 0)
    (tmp_path / "moved" / "records.jsonl").write_text("")
    empty = Comparison.stored(tmp_path / "moved").outcome()
    assert (empty.device, empty.missing, empty.planned) == ("cuda:99", 10, 10)
    assert sorted(tmp_path.rglob("*")) == before
