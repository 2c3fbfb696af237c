"""Detection of the launcher that started this process, and of the number of its processes."""

import os
import re
from dataclasses import dataclass

from bevreshape.errors import InputError


@dataclass(frozen=True)
class Launcher:
    """A program that starts several processes of one command, known by the environment variables that it sets.

    Attributes:
        name: for messages.
        marker: set in its processes and nowhere else.
        rank: variable of the process's rank.
        world: variable of the number of processes.
        local_world: variable of the number of processes on this machine; empty if the launcher sets none.
    """

    name: str
    marker: str
    rank: str
    world: str
    local_world: str = ""


LAUNCHERS = (
    Launcher("torchrun", "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    # the script of sbatch has most of srun's variables too, but belongs to no step
    Launcher("srun", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
    Launcher("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    Launcher("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE"),
    Launcher("mpiexec", "PMI_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    Launcher("WORLD_SIZE", "WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
)  # fmt: skip
"""In order of precedence: torchrun works inside all others, and they may set torch's own variables."""


@dataclass(frozen=True)
class Group:
    """The processes that a launcher has started, including this one."""

    launcher: str
    rank: int
    world: int
    local_world: int | None


def group() -> Group | None:
    """Return the group that this process belongs to; ``None`` for a single process.

    Raises:
        InputError: when the variables of the environment contradict each other.
    """
    launcher = next((one for one in LAUNCHERS if one.marker in os.environ), None)
    if launcher is None or (world := environment_integer(launcher.world)) == 1:
        return None
    local_world = environment_integer(launcher.local_world) if launcher.local_world in os.environ else None
    return Group(launcher.name, environment_integer(launcher.rank), world, local_world)


def is_distributed_worker() -> bool:
    """Return whether this process is one of several that a launcher has started."""
    return group() is not None


def rank() -> int:
    """Return the rank of this process in its group; 0 for a single process."""
    found = group()
    return 0 if found is None else found.rank


def check_group(devices: int, nodes: int) -> None:
    """Check that the launcher has started as many processes as ``trainer`` asks for.

    Args:
        devices: processes on this machine that ``trainer`` asks for.
        nodes: ``trainer.num_nodes``.

    Raises:
        InputError: when the launcher has started another number of processes.
    """
    found = group()
    asked = f"trainer.devices={devices} on trainer.num_nodes={nodes}"
    if found is None:
        if nodes > 1:
            raise InputError(
                f"trainer.num_nodes={nodes}: this process was started alone; start {devices} on every node by srun or "
                "torchrun, or set trainer.num_nodes=1"
            )
        return
    local_world = found.local_world or (devices if found.world % devices == 0 else found.world)
    if (found.world, local_world) != (devices * nodes, devices):
        raise InputError(
            f"{found.launcher} has started {found.world} processes, {local_world} of them on this machine, but {asked} "
            f"are {devices * nodes}; set trainer.devices={local_world} trainer.num_nodes={found.world // local_world}, "
            "or start as many"
        )


def environment_integer(name: str) -> int:
    """Return the integer value of a variable; SLURM writes ``2(x3)`` if three machines have two tasks each."""
    value = os.environ.get(name)
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", value or "")
    if match is None:
        state = "is not set" if value is None else f"is {value}"
        raise InputError(
            f"{name} {state}, but must give the same number of processes on every machine; start them with srun "
            "or torchrun"
        )
    return int(match[1])
