"""How the processes of a launcher find each other."""

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
    """What Lightning learns its place in the group from.

    Lightning's own choice goes by other signs: it warns of an ``srun`` that is not used, takes the script of ``sbatch``
    for a task of a step, and a step whose job is named ``bash`` for a process of its own.

    Raises:
        InputError: when the processes have no way to find each other.
    """
    found = group()
    if found is None:
        return LightningEnvironment()
    if found.launcher == "torchrun":
        _leave_the_store_of_killed_processes(found)
        return TorchElasticEnvironment()
    if found.launcher == "srun":
        os.environ["SLURM_NTASKS_PER_NODE"] = str(found.local_world)  # Lightning asks for it, srun -N2 does not set it
        return SLURMEnvironment(auto_requeue=False)
    if found.launcher == "jsrun" and LSFEnvironment.detect():
        return LSFEnvironment()
    if found.launcher in ("mpirun", "mpiexec") and MPIEnvironment.detect():
        return MPIEnvironment()
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return TorchElasticEnvironment() if "LOCAL_RANK" in os.environ else KubeflowEnvironment()
    raise InputError(
        f"{found.launcher} has started {found.world} processes that cannot find each other; start them by torchrun, or "
        "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        + (", or install mpi4py" if found.launcher.startswith("mpi") else "")
    )


def _leave_the_store_of_killed_processes(found: Group) -> None:
    """Agree with the other processes on a port for a store of their own, where torchrun has started them anew.

    torchrun keeps its store over restarts, and in it stand the addresses of the processes that were killed: who reads
    one before it is replaced waits for ever.
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
