"""One run folder for all processes that a launcher has started."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from bevreshape.errors import InputError
from bevreshape.training.processes import group


def check_shared_folder() -> None:
    """Refuse what would give every process of a launcher a run folder of its own.

    Raises:
        InputError: for a sweep, or a run folder that is named by the time.
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
