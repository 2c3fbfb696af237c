"""Check that all processes of a launcher share one run folder."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bevreshape.errors import InputError
from bevreshape.training.processes import group


def check_shared_folder() -> None:
    """Check that all processes of a launcher use the same run folder.

    Raises:
        InputError: for a sweep, or when the name of the run folder contains the time.
    """
    launched = group()
    if launched is None:
        return
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        raise InputError(
            f"a sweep cannot be started {launched.world} times by {launched.launcher}; start it once, and set "
            "trainer.devices, so that each of its jobs starts its own processes"
        )
    if not any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra):
        raise InputError(
            f"started {launched.world} times by {launched.launcher}: set hydra.run.dir=FOLDER, so that all processes "
            "share one run folder"
        )
