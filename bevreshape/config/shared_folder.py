"""Check that all processes of a launcher share one run folder."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bevreshape.errors import InputError
from bevreshape.training.processes import group


def check_shared_folder() -> None:
    """Check that all processes of a launcher use the same run folder. The jobs of a sweep do.

    Raises:
        InputError: when the name of the run folder contains the time.
    """
    launched, hydra = group(), HydraConfig.get()
    if launched is None or hydra.mode is RunMode.MULTIRUN:
        return
    if not any(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra):
        raise InputError(
            f"started {launched.world} times by {launched.launcher}: set hydra.run.dir=FOLDER, so that all processes "
            "share one run folder"
        )
