"""A sweep leaves one table, the failed job in it."""

import csv
from pathlib import Path

import pytest
from commands import finish, start, without
from wandb.proto.wandb_internal_pb2 import Record
from wandb_file import records

from bevreshape.config.build_logger import wandb_identity
from bevreshape.config.sweep import write_summary
from bevreshape.errors import InputError

pytestmark = pytest.mark.slow


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
            "train", "-m", *arguments, "seed=0,1", "trainer.devices=2", "trainer.strategy=ddp",
            "trainer.val_check_interval=2",
            "hydra.sweep.dir=sweep", cwd=tmp_path,
        )
    )  # fmt: skip
    assert ended.code == 0, ended.err
    rows = rows_of(tmp_path / "sweep")
    assert [(row["seed"], row["status"]) for row in rows] == [("0", "done"), ("1", "done")]
    assert all(row["fit/steps"] == "2" for row in rows)
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == ["0", "1"]


def steps(part: list[Record]) -> list[int]:
    """The ``trainer/global_step`` of every line of a part's history."""
    items = [{"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item} for record in part]
    return [int(line["trainer/global_step"]) for line in items if "trainer/global_step" in line]


def test_every_job_is_a_wandb_run_of_its_own_and_so_is_every_offline_part(worlds: Path, tmp_path: Path) -> None:
    arguments = [
        *without("trainer.max_steps", "trainer.val", "logger"), "trainer.max_steps=3", "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1", f"data.root={worlds}", "logger=wandb", "logger.mode=offline",
    ]  # fmt: skip
    ended = finish(start("train", "-m", *arguments, "seed=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path))
    assert ended.code == 0, ended.err
    runs = [next((tmp_path / "sweep" / job / "wandb").glob("offline-run-*")) for job in "01"]
    ids = [(tmp_path / "sweep" / job / "wandb_id").read_text() for job in "01"]
    assert ids[0] != ids[1]
    assert [run.name.endswith(key) for run, key in zip(runs, ids, strict=True)] == [True, True]
    again = finish(start("train", "resume=sweep/0", cwd=tmp_path))
    assert again.code == 0, again.err
    (later,) = {*(tmp_path / "sweep" / "0" / "wandb").glob("offline-run-*")} - {runs[0]}
    parts = [records(runs[0]), records(later)]
    first, second = (next(record.run for record in part if record.HasField("run")) for part in parts)
    assert (first.run_id, second.run_id == first.run_id) == (ids[0], False), "one would be written over the other"
    assert second.display_name == f"{first.display_name}, part 2"
    assert second.notes == f"Resumes the run {ids[0]}."
    assert second.run_group == first.run_group
    assert min(steps(parts[0])) == 0
    assert min(steps(parts[1])) == max(steps(parts[0])) == 3


@pytest.mark.parametrize(
    ("offline_before", "offline_now", "same"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_only_what_the_server_has_goes_on_as_the_same_run(
    tmp_path: Path, offline_before: bool, offline_now: bool, same: bool
) -> None:
    first = wandb_identity(tmp_path, offline_before, {"name": "a"})
    (tmp_path / "wandb" / f"{'offline-' if offline_before else ''}run-20260101_000000-{first['id']}").mkdir(
        parents=True
    )
    second = wandb_identity(tmp_path, offline_now, {"name": "a", "notes": "Mine."})
    assert (second["id"] == first["id"]) is same
    assert second.get("notes") == (None if same else f"Mine. Resumes the run {first['id']}.")
    assert second.get("name") == (None if same else "a, part 2")


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"", b"../../elsewhere", b"*", b"ab\ncd", b"a" * 100])
def test_damaged_wandb_id_is_named_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    with pytest.raises(InputError, match=r"wandb_id"):
        wandb_identity(tmp_path, True, {"name": "a"})
    assert (tmp_path / "wandb_id").read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b'{"job": 7, "status": "done", "reason": ""}', b'{"job": "1"']
)
def test_damaged_job_takes_no_other_row_away(tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes) -> None:
    for job, text in (("0", b'{"job": "0", "status": "done", "reason": "", "seed": "4"}'), ("1", content)):
        (tmp_path / job).mkdir()
        (tmp_path / job / "job.json").write_bytes(text)
    write_summary(tmp_path)
    assert rows_of(tmp_path) == [{"job": "0", "status": "done", "reason": "", "seed": "4"}]
    assert f"left out of the sweep's table: {tmp_path}/1/job.json is damaged" in capsys.readouterr().err.replace(
        "\n", ""
    )
    assert (tmp_path / "1" / "job.json").read_bytes() == content
