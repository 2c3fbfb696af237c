"""Run a command under Hydra."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bevreshape.config.choices import register_choices
from bevreshape.config.command_line import local_folders, overrides_first
from bevreshape.config.completion import completes, prepare_completion
from bevreshape.config.compose import plain_config
from bevreshape.config.options import read_settings
from bevreshape.config.overrides import command_message, explain_override
from bevreshape.config.paths import conf_dir
from bevreshape.config.shared_folder import folder_is_known
from bevreshape.console import log_to_stderr, print_error
from bevreshape.errors import Divergence, InputError, TrainingInterrupted
from bevreshape.signals import stops_as_interrupts
from bevreshape.training.processes import Group, group
from bevreshape.training.requeue import requeueing

Main = Callable[[dict[str, Any], Path], object]
"""The function of a command, called with its settings and its output folder."""

Rewrite = Callable[[str, list[str]], tuple[str, list[str]]]
"""Change the name of the primary config and the arguments before Hydra reads them."""


def run_command(main: Main, name: str, keys: type, rewrite: Rewrite | None = None, *, resumes: bool = False) -> None:
    """Run a command. A user error ends it with one line and exit code 1, divergence with exit code 3.

    Args:
        main: the function of the command.
        name: of the command and of its primary config in ``conf/``.
        keys: a TypedDict of :mod:`bevreshape.config.settings`, to check the composed config.
        rewrite: changes the command line before Hydra reads it.
        resumes: whether the command resumes in a folder in which it was stopped, so that SLURM may start it again.
    """
    log_to_stderr()
    full_error = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    try:
        arguments = sys.argv[1:]
        prepare = partial(_prepare, rewrite)
        if completes(arguments):
            name, sys.argv[1:] = prepare_completion(name, arguments, prepare)
        else:
            name, sys.argv[1:] = prepare(name, arguments)
        failures: list[Exception] = []
        with stops_as_interrupts():
            job = _keeping(failures, main, keys, group(), resumes)
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
        if failures:
            raise failures[0]
    except Exception as error:
        message = explain_override(error, conf_dir(), name, sys.argv[1:]) or command_message(error)
        if full_error or message is None:
            traceback.print_exc()
        if message is not None:
            print_error(message)
        sys.exit(Divergence.exit_code if isinstance(error, Divergence) else 1)
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        print_error(str(stop) or "stopped")
        sys.exit(130)
    finally:
        if not full_error:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _prepare(rewrite: Rewrite | None, name: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of the primary config and the arguments that Hydra reads; register the choices they name."""
    arguments = overrides_first(arguments)
    register_choices(arguments)
    arguments = local_folders(arguments)
    if rewrite is not None:
        name, rewritten = rewrite(name, arguments)
        arguments = overrides_first(rewritten)
    return name, arguments


def _keeping(
    failures: list[Exception], main: Main, keys: type, started_by: Group | None, resumes: bool
) -> Callable[[DictConfig], object]:
    """Return a job that stores its error in ``failures``, so that Hydra does not print a line about it.

    In a sweep the job raises the error, since Hydra sets the status of the job by it. A launcher may call the job in
    another process, also of another machine.

    Args:
        failures: gets the error.
        main: the function of the command.
        keys: of its settings.
        started_by: the processes of the command line; those of a job are others if a launcher of Hydra's starts it.
        resumes: as of :func:`run_command`.
    """

    @wraps(main)
    def job(cfg: DictConfig) -> object:
        sweeps = HydraConfig.get().mode is RunMode.MULTIRUN
        try:
            if sweeps and started_by is not None:
                raise InputError(
                    f"a sweep cannot be started {started_by.world} times by {started_by.launcher}; start it once, and "
                    "set trainer.devices, so that each of its jobs starts its own processes"
                )
            remedy = "" if sweeps else "; set hydra.run.dir=FOLDER to let SLURM start it again"
            with requeueing(folder_is_known(), remedy) if resumes else nullcontext():
                return main(read_settings(keys, plain_config(cfg)), Path(HydraConfig.get().runtime.output_dir))
        except Exception as error:
            if sweeps:
                raise
            failures.append(error)
            return None

    return job
