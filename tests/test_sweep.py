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
