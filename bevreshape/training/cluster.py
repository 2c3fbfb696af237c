"""The cluster environment by which the processes of a launcher find each other."""

import os
import socket

from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    KubeflowEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import TCPStore

from bevreshape.errors import InputError
from bevreshape.training.processes import Group, environment_integer, group


def cluster_environment() -> ClusterEnvironment:
    """Return the environment from which Lightning reads rank and world size.

    Lightning's own detection is not used: it warns about an unused ``srun``, takes the script of ``sbatch`` for a task
    of a step, and takes a step whose job is named ``bash`` for a single process.

    Raises:
        InputError: when the processes have no way to find each other.
    """
    found = group()
    if found is None:
        return LightningEnvironment()
    if found.launcher == "torchrun":
        _use_new_store(found)
        return TorchElasticEnvironment()
    if found.launcher == "srun":
        os.environ["SLURM_NTASKS_PER_NODE"] = str(found.local_world)  # Lightning requires it, srun -N2 does not set it
        return SLURMEnvironment(auto_requeue=False)
    if found.launcher == "jsrun" and LSFEnvironment.detect():
        return LSFEnvironment()
    if found.launcher in ("mpirun", "mpiexec") and MPIEnvironment.detect():
        return MPIEnvironment()
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return TorchElasticEnvironment() if "LOCAL_RANK" in os.environ else KubeflowEnvironment()
    raise InputError(
        f"{found.launcher} has started {found.world} processes that cannot find each other; start them with torchrun, "
        "or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        + (", or install mpi4py" if found.launcher.startswith("mpi") else "")
    )


def _use_new_store(found: Group) -> None:
    """Agree with the other processes on a port for a new store after a restart by torchrun.

    torchrun keeps its store over restarts, with the addresses of the killed processes. A process that reads such an
    address before it is replaced waits forever.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    kept = TCPStore(os.environ["MASTER_ADDR"], environment_integer("MASTER_PORT"), is_master=False)
    key = f"bevreshape/port_of_attempt_{attempt}"
    if found.rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            kept.set(key, str(free.getsockname()[1]))
    os.environ["MASTER_PORT"] = kept.get(key).decode()  # waits for process 0
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
