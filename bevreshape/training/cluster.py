"""The cluster environment by which the processes of a launcher find each other."""

import os
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    KubeflowEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import Store, TCPStore

from bevreshape.errors import InputError
from bevreshape.training.processes import Group, environment_integer, group

LONGEST_WAIT = timedelta(hours=1)
"""How long processes wait for each other; another one may still generate scenes."""


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
    """Agree with the other processes on a new store, one for every start by torchrun.

    torchrun keeps its store over restarts, with the addresses of the killed processes. A process that reads such an
    address before it is replaced waits forever. The count of restarts does not tell the starts apart: each node has its
    own, of the failures that happened there.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port = os.environ["MASTER_ADDR"], environment_integer("MASTER_PORT")
    kept = TCPStore(host, port, is_master=False, timeout=LONGEST_WAIT)
    address = agree(kept, found.rank, found.world, lambda: f"{_own_address(host, port)} {_free_port()}")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address.split()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def agree(kept: Store, rank: int, world: int, value: Callable[[], str]) -> str:
    """Return the value of process 0 to all processes of one start, through a store that holds entries of earlier ones.

    Every other process asks by a word of its own, and process 0 answers until each has said that it has the answer.
    """
    if rank > 0:
        word = secrets.token_hex(8)
        kept.set(f"bevreshape/asks/{rank}", word)
        start, _, found = kept.get(f"bevreshape/answers/{word}").decode().partition(" ")
        kept.set(f"bevreshape/has/{start}/{rank}", "")
        return found
    own, start = value(), secrets.token_hex(8)
    waiting, until = set(range(1, world)), time.monotonic() + LONGEST_WAIT.total_seconds()
    while waiting:
        for other in sorted(waiting):
            if kept.check([f"bevreshape/has/{start}/{other}"]):
                waiting.discard(other)
            elif kept.check([f"bevreshape/asks/{other}"]):
                word = kept.get(f"bevreshape/asks/{other}").decode()
                kept.set(f"bevreshape/answers/{word}", f"{start} {own}")
        if time.monotonic() > until:
            raise InputError(f"process {min(waiting)} of {world} has not started; look into its messages")
        time.sleep(0.02)
    return own


def _own_address(host: str, port: int) -> str:
    """Return the address by which this machine reaches the store, or the store's if it is here."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as datagrams:
        datagrams.connect(address)  # sends nothing
        own = str(datagrams.getsockname()[0])
    return host if own == address[0] or own.startswith(("127.", "::1")) else own


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
