"""Training from a config to a run folder, in as many processes as the config asks for."""

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from bevreshape.config.settings import OF_THE_COMMAND
from bevreshape.errors import InputError
from bevreshape.storage.run_folder import begin, check_same_run, held
from bevreshape.training.fit import TrainingResult, train
from bevreshape.training.hardware import process_count, with_counted_devices
from bevreshape.training.launch import launch_distributed
from bevreshape.training.processes import rank
from bevreshape.training.schedule import resolve_schedule
from bevreshape.training.validate_config import validate_config


def run(settings: dict[str, Any], folder: Path) -> TrainingResult:
    """Check the settings, prepare the data, train and test.

    Args:
        settings: the composed config as plain values.
        folder: of the run.

    Raises:
        InputError: when the settings or the data are wrong; nothing is written to the folder then.
    """
    cfg = {key: value for key, value in settings.items() if key not in OF_THE_COMMAND}
    cfg["trainer"] = with_counted_devices(cfg["trainer"])
    resumed = settings["resume"] is not None
    if not resumed:
        check_same_run(folder, cfg)
    try:
        data = validate_config(cfg)
        data.prepare_data()
        resolve_schedule(cfg["trainer"], data)  # the sizes of the splits, too
    except InputError:
        with suppress(OSError):
            folder.rmdir()  # made by Hydra; empty unless a run was begun there
        raise
    with held(folder) if rank() == 0 else nullcontext():
        if rank() == 0:
            if not resumed:
                check_same_run(folder, cfg)  # again: another process may have begun there meanwhile
            begin(folder, cfg)
        # The first checkpoint is not written before all processes have reached this line.
        resumed = (folder / "checkpoints" / "last.ckpt").exists()
        return launch_distributed(process_count(cfg["trainer"]), train, cfg, folder, resumed)
