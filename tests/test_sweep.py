"""A sweep leaves one table, the failed job in it."""

import csv
from pathlib import Path

from commands import finish, start, without


def rows_of(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_summary_has_a_row_a_job_and_the_reason_of_the_failed_one(command, worlds: Path, tmp_path: Path) -> None:
    arguments = [*without("trainer.max_steps"), "trainer.max_steps=2", f"data.root={worlds}", "hydra.sweep.dir=sweep"]
    ended = command("train", "-m", *arguments, "reshaper=mlp,pool", "optimizer.lr=1e-3,-1")
    assert ended.code == 1, "a failed job must not look like success"
    rows = rows_of(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["done", "failed", "done", "failed"]
    assert "optimizer.lr=-1" in rows[1]["reason"]
    assert [row["reshaper"] for row in rows] == ["mlp", "mlp", "pool", "pool"]
    assert float(rows[0]["test/iou/mean"]) >= 0
    assert "test/iou/drivable/0-10m" not in rows[0]
    assert "Traceback" not in ended.err
    assert "failed" in ended.out


def test_sweep_over_two_processes_each(worlds: Path, tmp_path: Path) -> None:
    arguments = [*without("trainer.max_steps", "trainer.val"), "trainer.max_steps=2", f"data.root={worlds}"]
    ended = finish(
        start(
            "train", "-m", *arguments, "seed=0,1", "trainer.devices=2", "trainer.strategy=ddp", "trainer.val_check_interval=2",
            "hydra.sweep.dir=sweep", cwd=tmp_path,
        )
    )  # fmt: skip
    assert ended.code == 0, ended.err
    rows = rows_of(tmp_path / "sweep")
    assert [(row["seed"], row["status"]) for row in rows] == [("0", "done"), ("1", "done")]
    assert all(row["fit/steps"] == "2" for row in rows)
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == ["0", "1"]


def test_every_job_is_a_wandb_run_of_its_own_and_a_resumed_one_is_the_same(worlds: Path, tmp_path: Path) -> None:
    arguments = [*without("trainer.max_steps", "logger"), "trainer.max_steps=3", f"data.root={worlds}", "logger=wandb"]
    ended = finish(
        start("train", "-m", *arguments, "seed=0,1", "logger.mode=offline", "hydra.sweep.dir=sweep", cwd=tmp_path)
    )
    assert ended.code == 0, ended.err
    runs = [next((tmp_path / "sweep" / job / "wandb").glob("offline-run-*")).name for job in "01"]
    ids = [(tmp_path / "sweep" / job / "wandb_id").read_text() for job in "01"]
    assert ids[0] != ids[1]
    assert [run.endswith(key) for run, key in zip(runs, ids, strict=True)] == [True, True]
    again = finish(start("train", "resume=sweep/0", cwd=tmp_path))
    assert again.code == 0, again.err
    assert {p.name.rpartition("-")[2] for p in (tmp_path / "sweep" / "0" / "wandb").glob("offline-run-*")} == {ids[0]}
