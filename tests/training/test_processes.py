"""Processes of launchers: compared with the trainer group, and refused if each would train alone."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import TINY
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.plugins.environments import (
    KubeflowEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from bevreshape.config.shared_folder import check_shared_folder
from bevreshape.errors import InputError
from bevreshape.training.cluster import agree, cluster_environment
from bevreshape.training.processes import LAUNCHERS, check_group, group

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_JOB_NAME": "bash",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
JSRUN = {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
MPIEXEC = {"PMI_RANK": "1", "PMI_SIZE": "2"}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "job.sh"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch):
    """Set these and no other launcher's."""
    for launcher in LAUNCHERS:
        for name in (launcher.marker, launcher.rank, launcher.world, launcher.local_world, "LOCAL_RANK"):
            if name:
                monkeypatch.delenv(name, raising=False)

    def put(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def refusal(devices: int, nodes: int) -> str | None:
    try:
        check_group(devices, nodes)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("given", "rank", "devices", "nodes"),
    [(TORCHRUN, 3, 2, 2), (SRUN, 1, 1, 2), (JSRUN, 1, 2, 1), (MPIRUN, 1, 2, 1), (MPIEXEC, 1, 1, 2), (BY_HAND, 1, 1, 2)],
)
def test_only_the_trainer_group_that_fits_is_taken(variables, given, rank: int, devices: int, nodes: int) -> None:
    variables(given)
    found = group()
    assert found is not None
    assert (found.rank, found.world) == (rank, devices * nodes)
    fits = []
    for some in range(1, 5):
        for others in range(1, 5):
            refused = refusal(some, others)
            if refused is None:
                fits.append((some, others))
            else:
                assert f"trainer.devices={some} on trainer.num_nodes={others}" in refused
                assert f"has started {devices * nodes} processes" in refused
    one_of_two = found.local_world is None  # the number per machine is unknown: then any product is right
    assert fits == ([(1, 2), (2, 1)] if one_of_two else [(devices, nodes)])


@pytest.mark.parametrize("given", [{}, SBATCH, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, {"WORLD_SIZE": "1"}])
def test_a_process_alone(variables, given) -> None:
    variables(given)
    assert group() is None
    assert isinstance(cluster_environment(), LightningEnvironment)
    check_group(2, 1)
    with pytest.raises(InputError, match=r"trainer\.num_nodes=2: this process was started alone"):
        check_group(1, 2)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (TORCHRUN, TorchElasticEnvironment),
        ({**SRUN, **TORCHRUN}, TorchElasticEnvironment),
        (SRUN, SLURMEnvironment),
        (BY_HAND, KubeflowEnvironment),
        ({**BY_HAND, "LOCAL_RANK": "0"}, TorchElasticEnvironment),
    ],
)
def test_lightning_gets_rank_and_world_size(variables, given, kind: type) -> None:
    variables(given)
    found, expected = cluster_environment(), group()
    assert type(found) is kind
    assert expected is not None
    assert (found.global_rank(), found.world_size()) == (expected.rank, expected.world)
    if kind is SLURMEnvironment:
        found.validate_settings(1, 2)
        assert not found.auto_requeue, "what is saved in the midst of a step cannot be resumed exactly"


def test_processes_of_one_start_agree_despite_earlier_ones() -> None:
    """torchrun keeps its store over restarts; a process of an earlier start had asked, and had been answered."""
    kept = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def start(number: int) -> list[str]:
        stores = [TCPStore("localhost", kept.port, is_master=False) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            order = [2, 0, 1] if number else [0, 1, 2]
            asked = {rank: pool.submit(agree, stores[rank], rank, 3, lambda: f"start {number}") for rank in order}
            return [asked[rank].result(timeout=60) for rank in range(3)]

    kept.set("bevreshape/asks/1", "of a process that was killed")
    assert [start(number) for number in range(3)] == [[f"start {number}"] * 3 for number in range(3)]


def test_a_start_by_torchrun_has_a_store_of_its_own(variables) -> None:
    kept = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for attempt in "01":
        variables({
            **TORCHRUN, "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(kept.port),
            "TORCHELASTIC_RESTART_COUNT": attempt, "TORCHELASTIC_USE_AGENT_STORE": "True",
        })  # fmt: skip
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(agree, TCPStore("localhost", kept.port, is_master=False), 1, 2, str)
            port = cluster_environment().main_port
            assert other.result(timeout=60) == f"localhost {port}"
        assert port != kept.port
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"


@pytest.mark.parametrize("given", [MPIRUN, MPIEXEC, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_processes_that_cannot_find_each_other(variables, given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bevreshape.training.cluster.MPIEnvironment.detect", lambda: False)
    variables(given)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="cannot find each other; start them with torchrun"):
        cluster_environment()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is two"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2,1"}, "SLURM_STEP_TASKS_PER_NODE is 2,1"),
    ],
)
def test_contradictory_variables(variables, given, word: str) -> None:
    variables(given)
    with pytest.raises(InputError, match=word):
        check_group(1, 1)


def test_tasks_that_would_train_separately_are_refused(command, worlds, variables, tmp_path) -> None:
    variables(SRUN)
    ended = command("train", *TINY, f"data.root={worlds}", "hydra.run.dir=run")
    assert ended.code == 1
    assert "srun has started 2 processes, 1 of them on this machine, but trainer.devices=1" in ended.err
    assert "set trainer.devices=1 trainer.num_nodes=2" in ended.err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_run_folders_that_differ_by_process_are_refused(command, worlds, variables) -> None:
    variables(SRUN)
    ended = command("train", *TINY, f"data.root={worlds}", "+trainer.num_nodes=2")
    assert (ended.code, "started 2 times by srun: set hydra.run.dir=FOLDER" in ended.err) == (1, True)
    ended = command("train", "-m", *TINY, f"data.root={worlds}", "+trainer.num_nodes=2", "seed=0,1")
    assert (ended.code, "a sweep cannot be started 2 times" in ended.err) == (1, True)


def test_the_processes_of_a_sweeps_job_share_its_folder(variables, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that submitit starts on several nodes; the sweep's folder was named before them."""
    variables(SRUN)
    hydra = OmegaConf.create({"hydra": {"mode": "MULTIRUN", "overrides": {"hydra": ["hydra.mode=MULTIRUN"]}}})
    hydra.hydra.mode = RunMode.MULTIRUN
    monkeypatch.setattr(HydraConfig.instance(), "cfg", hydra)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    check_shared_folder()
