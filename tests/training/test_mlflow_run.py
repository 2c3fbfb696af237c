"""Runs of MLflow, read back from their database and artifacts."""

import os
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command, finish, start, without
from PIL import Image

from bevreshape.config.build_logger import logger_options, make_logger
from bevreshape.errors import InputError
from bevreshape.storage.plain_values import read_history
from bevreshape.training.loggers import log_settings
from bevreshape.training.mlflow_run import check_mlflow_classes

NODE = {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "experiment_name": "mine"}


@pytest.fixture(autouse=True)
def no_store_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the result of a query to the database of a run's folder."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return connection.execute(query).fetchall()


def begun(folder: Path, **options: Any) -> Any:
    """Begin a run with MLflow as the logger."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    return make_logger({"logger": {**NODE, **options}}, folder)


def test_a_run_and_its_resuming_in_a_moved_folder_are_one_mlflow_run(
    command: Command, worlds: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    arguments = [*without("logger"), f"data.root={worlds}", "logger=mlflow", "trainer.log_every_n_steps=1"]
    ended = command("train", *arguments, "+logger.tags.mine=first", "logger.log_model=true", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    run, moved = tmp_path / "run", tmp_path / "elsewhere" / "run"
    ((identity, name, status),) = rows(run, "SELECT run_uuid, name, status FROM runs")
    assert (name, status) == ("mlp-synthetic-seed0", "FINISHED")
    tags = dict(rows(run, "SELECT key, value FROM tags"))
    assert {"group": "synthetic", "job_type": "train", "mine": "first"}.items() <= tags.items()
    parameters = dict(rows(run, "SELECT key, value FROM params"))
    assert parameters["trainer/max_steps"] == "8"
    assert parameters["model/reshaper"] == "mlp"
    points = rows(run, "SELECT key, step, value FROM metrics ORDER BY step")
    assert [step for key, step, _ in points if key == "train/loss"] == [*range(8)]
    latest: Mapping[str, float] = dict(rows(run, "SELECT key, value FROM latest_metrics WHERE NOT is_nan"))
    found = yaml.safe_load((run / "metrics.json").read_text())
    known = {key: value for key, value in found.items() if value is not None}
    assert {key: latest[key] for key in known} == pytest.approx(known)
    best = max(float(row["val/iou/mean"]) for row in read_history(run / "history.csv"))
    assert latest["best/val/iou/mean"] == pytest.approx(best, abs=1e-6)

    artifacts = Path("mlflow") / identity / "artifacts"
    stored = yaml.safe_load((run / artifacts / "config.yaml").read_text())
    assert stored["trainer"]["max_steps"] == 8
    assert (run / artifacts / "best" / "best.ckpt").read_bytes() == (run / "checkpoints" / "best.ckpt").read_bytes()
    logged = [Image.open(path).convert("RGB").tobytes() for path in (run / artifacts / "images").glob("*.png")]
    drawn = [Image.open(path).convert("RGB").tobytes() for path in (run / "images").glob("*.png")]
    assert sorted(logged) == sorted(drawn)
    assert len(drawn) == 3  # two validations and the test

    moved.parent.mkdir()
    shutil.move(run, moved)
    # in a process of its own: MLflow remembers where the artifacts of a run are
    ended = finish(start("train", f"resume={moved}", "logger.tags.mine=second", cwd=tmp_path))
    assert ended.code == 0, ended.err
    assert not run.exists()
    assert rows(moved, "SELECT run_uuid, status FROM runs") == [(identity, "FINISHED")]
    assert dict(rows(moved, "SELECT key, value FROM params"))["logger/tags/mine"] == "first"
    assert len([*(moved / artifacts / "images").glob("*.png")]) == 4


def test_a_moved_folder_keeps_its_run_and_its_artifacts(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    identity = begun(tmp_path / "first").run_id
    shutil.move(tmp_path / "first", tmp_path / "moved")
    logger = begun(tmp_path / "moved")
    assert logger.run_id == identity
    location = (tmp_path / "moved" / "mlflow" / identity / "artifacts").as_uri()
    assert rows(tmp_path / "moved", "SELECT artifact_uri, status FROM runs") == [(location, "RUNNING")]
    assert "MLFLOW_TRACKING_URI" not in os.environ  # the next run of this process has another store
    (tmp_path / "other").mkdir()
    assert begun(tmp_path / "other").run_id != identity
    assert not (tmp_path / "first").exists()


def test_a_run_that_the_store_does_not_have_is_named_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "mlflow_id").write_text("0123456789abcdef0123456789abcdef")
    logger = begun(tmp_path)
    assert (tmp_path / "mlflow_id").read_text() == logger.run_id
    tags = dict(rows(tmp_path, "SELECT key, value FROM tags"))
    assert tags["resumes"] == "0123456789abcdef0123456789abcdef"


def test_settings_have_names_that_mlflow_allows_and_never_change(tmp_path: Path) -> None:
    logger = begun(tmp_path)
    log_settings(logger, {"classes": {"Straße": {"all": [1, 2]}}, "lr": 0.5})
    log_settings(logger, {"classes": {"Straße": {"all": [1, 2]}}, "lr": 0.25, "new": 1})
    expected = {"classes/Stra_e/all": "[1, 2]", "lr": "0.5", "new": "1"}
    assert dict(rows(tmp_path, "SELECT key, value FROM params")) == expected


def test_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bevreshape.training.mlflow_run.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install mlflow-skinny"):
        logger_options({"logger": NODE})


def test_unreachable_server_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="correct MLFLOW_TRACKING_URI") as caught:
        begun(tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "mlflow_id").exists()


def test_damaged_identity_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow_id").write_text("../../x")
    with pytest.raises(InputError, match=r"mlflow_id holds '\.\./\.\./x'"):
        begun(tmp_path)
    assert (tmp_path / "mlflow_id").read_text() == "../../x"


@pytest.mark.parametrize("classes", [("car", "小車"), ("a≥b", "ab")])
def test_classes_that_mlflow_would_confuse_are_refused(classes: tuple[str, ...]) -> None:
    check_mlflow_classes(("car", "Straße", "drivable area"))
    with pytest.raises(InputError, match="rename it in ASCII letters"):
        check_mlflow_classes(classes)
