"""The folder of a run: whether its name is known before the run begins."""

import os

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from bevreshape.errors import InputError
from bevreshape.training.processes import group


def check_shared_folder() -> None:
    """Check that all processes of a launcher use the same run folder.

    Raises:
        InputError: when the name of the run folder contains the time.
    """
    launched = group()
    if launched is not None and not folder_is_known():
        raise InputError(
            f"started {launched.world} times by {launched.launcher}: set hydra.run.dir=FOLDER, so that all processes "
            "share one run folder"
        )


def folder_is_known() -> bool:
    """Return whether the same job, started again or several times, uses the same run folder.

    The folder of a job of a sweep is known only if a launcher starts the job, as submitit does on SLURM; a sweep that
    begins again has another folder.
    """
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        return "SUBMITIT_EXECUTOR" in os.environ
    run = OmegaConf.to_container(hydra.run, resolve=False)
    return isinstance(run, dict) and "${now:" not in str(run["dir"])
