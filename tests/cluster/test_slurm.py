"""Training on a cluster of SLURM: several nodes, and jobs that are interrupted and go on by themselves."""

import fcntl
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import finish, start
from slurm_cluster import PLAIN, TRAINING, Cluster, ended, history_of, metrics_of
from test_compare import TINY as TINY_COMPARISON
from test_compare import records
from test_study import TINY as TINY_STUDY

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TWO = ("+trainer.num_nodes=2", "trainer.strategy=ddp")


def saved(run: Path) -> bool:
    """Whether a run has begun and saved a step."""
    return (run / "history.csv").exists()


def test_two_nodes_train_evaluate_and_resume_as_one_process(cluster: Cluster, tmp_path: Path) -> None:
    """One folder, one run of W&B, one generation of scenes; the same figures but for the order of a sum of floats."""
    shared = [*PLAIN, f"data.root={tmp_path / 'scenes'}", "logger=wandb", "logger.mode=offline"]
    srun = ("srun", "-N2", "--ntasks-per-node=1", "--mem=1000", sys.executable, "-m")
    command = (*srun, "bevreshape.train", *shared, *TWO, "loader.batch_size=2", "hydra.run.dir=both")
    two = cluster.run(*command, cwd=tmp_path)
    assert two.stderr.count("waiting for the process that is writing it") <= 3, "one a split"
    assert len(list((tmp_path / "scenes").rglob("*.record"))) == 24 + 7 + 7
    assert not list((tmp_path / "scenes").rglob("*.part"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "scenes"]
    assert len(list((tmp_path / "both" / "wandb").glob("offline-run-*"))) == 1

    here = {"PYTHONPATH": cluster.environment["PYTHONPATH"]}
    one = finish(start("train", *shared, "loader.batch_size=4", "hydra.run.dir=one", cwd=tmp_path, environment=here))
    assert one.code == 0, one.err
    for ours, alone in zip(history_of(tmp_path / "both"), history_of(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(alone, rel=1e-4, abs=1e-5, nan_ok=True)
    assert metrics_of(tmp_path / "both") == pytest.approx(metrics_of(tmp_path / "one"), rel=1e-4, abs=1e-5, nan_ok=True)

    again = cluster.run(*command, cwd=tmp_path)
    assert "resumes from" in again.stderr
    checkpoint = f"checkpoint={tmp_path / 'both' / 'checkpoints' / 'best.ckpt'}"
    cluster.run(*srun, "bevreshape.evaluate", checkpoint, "trust=[plain]", "trainer.accelerator=cpu", *TWO[:1],
                "hydra.run.dir=evaluated", "loader.num_workers=0", cwd=tmp_path)  # fmt: skip
    assert metrics_of(tmp_path / "evaluated")["test/iou/mean"] == pytest.approx(
        metrics_of(tmp_path / "both")["test/iou/mean"], abs=1e-6
    )


def interrupt_by_preemption(cluster: Cluster, job: str, cwd: Path) -> None:
    cluster.submit("sleep 1", "--partition=urgent", "--nodes=2", "--exclusive", cwd=_beside(cwd))


def interrupt_by_time_limit(cluster: Cluster, job: str, cwd: Path) -> None:
    cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now+1seconds")


def interrupt_by_warning(cluster: Cluster, job: str, cwd: Path) -> None:
    cluster.run("scancel", "--signal=USR1", job)


def interrupt_by_node_failure(cluster: Cluster, job: str, cwd: Path) -> None:
    node = cluster.job(job)["NodeList"]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    with (cwd / "run" / ".lock").open("r+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # the processes end meanwhile, as they do in SLURM's two minutes
    time.sleep(5)  # and so does what SLURM ran for them


def _beside(cwd: Path) -> Path:
    (folder := cwd / "urgent").mkdir()
    return folder


def interrupted_once(
    cluster: Cluster,
    arguments: list[str],
    options: list[str],
    cwd: Path,
    interrupt: Callable[[Cluster, str, Path], None],
) -> str:
    """Train in a job that is interrupted once it has saved; return what it printed until it was complete."""
    script = f"srun python -m bevreshape.train {shlex.join([*arguments, 'hydra.run.dir=run'])}"
    job = cluster.submit(script, *options, "--requeue", cwd=cwd)
    cluster.until(job, lambda state: saved(cwd / "run") or ended(state))
    interrupt(cluster, job, cwd)
    cluster.until(job, lambda state: state["Restarts"] != "0" or ended(state))
    state = cluster.until(job, ended)
    out = (cwd / "out").read_text()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), out
    return out


@pytest.mark.parametrize(
    "interrupt",
    [interrupt_by_preemption, interrupt_by_time_limit, interrupt_by_warning, interrupt_by_node_failure],
)
def test_an_interrupted_job_goes_on_by_itself(
    cluster: Cluster, worlds: Path, tmp_path: Path, uninterrupted: Path, interrupt
) -> None:
    """Bit for bit: the same history and the same metrics."""
    out = interrupted_once(cluster, [*TRAINING, f"data.root={worlds}"], ["--nodes=1", "--time=10"], tmp_path, interrupt)
    assert "resumes from" in out
    assert str(history_of(tmp_path / "run")) == str(history_of(uninterrupted)), "but for NaN, which equals nothing"
    assert str(metrics_of(tmp_path / "run")) == str(metrics_of(uninterrupted))


def test_a_preempted_job_on_two_nodes_goes_on_by_itself(cluster: Cluster, worlds: Path, tmp_path: Path) -> None:
    options = ["--nodes=2", "--ntasks-per-node=1"]
    out = interrupted_once(
        cluster, [*TRAINING, *TWO, f"data.root={worlds}"], options, tmp_path, interrupt_by_preemption
    )
    assert out.count("resumes from") == 1
    assert metrics_of(tmp_path / "run")["fit/steps"] == 240


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, worlds: Path, tmp_path: Path) -> None:
    arguments = shlex.join([*TRAINING, f"data.root={worlds}", "hydra.run.dir=run"])
    script = f"srun python -m bevreshape.train {arguments}"
    job = cluster.submit(script, "--nodes=1", cwd=tmp_path)
    cluster.until(job, lambda state: saved(tmp_path / "run") or ended(state))
    cluster.run("scancel", job)
    state = cluster.until(job, ended)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0")
    out = (tmp_path / "out").read_text()
    assert "stopped; resume with resume=" in out
    assert "starts job" not in out


def test_an_array_of_jobs_shares_a_study(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "conf" / "plan").mkdir(parents=True)
    (tmp_path / "conf" / "plan" / "tiny.yaml").write_text(yaml.safe_dump(TINY_STUDY))
    script = "srun python -m bevreshape.study --config-dir=conf plan=tiny folder=study"
    array = cluster.submit(script, "--array=0-1", "--nodes=1", "--ntasks=1", cwd=tmp_path)
    for task in range(2):
        state = cluster.until(f"{array}_{task}", ended)
        assert state["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    names = [json.loads(line)["name"] for line in (tmp_path / "study" / "records.jsonl").read_text().splitlines()]
    assert len(names) == len(set(names)) > 10


def test_an_array_of_jobs_shares_a_comparison(cluster: Cluster, worlds: Path, tmp_path: Path) -> None:
    arguments = shlex.join([*TINY_COMPARISON, "reshaper=mlp,pool", f"data.root={worlds}"])
    script = f"export TORCHDYNAMO_DISABLE=1\nsrun python -m bevreshape.compare {arguments}"
    array = cluster.submit(script, "--array=0-1", "--nodes=1", "--ntasks=1", cwd=tmp_path)
    for task in range(2):
        state = cluster.until(f"{array}_{task}", ended, seconds=900)
        assert state["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    found = records(tmp_path)  # each once
    assert {f"judge-{name}-seed{seed}" for name in ("mlp", "pool") for seed in (0, 1)} <= found.keys()
