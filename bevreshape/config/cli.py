"""What all commands share: finding ``conf/``, announcing other packages' reshapers, and refusing nonsense in a sentence."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from bevreshape.config import settings
from bevreshape.config.compose import plain_config
from bevreshape.config.entry_points import reshaper_fields
from bevreshape.config.options import read_settings
from bevreshape.config.overrides import explain_override, explain_value, local_folders
from bevreshape.config.stored import entry_point_reshapers
from bevreshape.environment import make_console_safe
from bevreshape.errors import Divergence, InputError
from bevreshape.storage.files import REMEDIES, system_error
from bevreshape.training.launch import out_of_memory
from bevreshape.training.stopping import TrainingInterrupted, interrupted_by_stops


def conf_dir() -> Path:
    """The folder of config groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def run(
    main: Callable[[DictConfig], None],
    config_name: str,
    prepare: Callable[[str, list[str]], tuple[str, list[str]]] | None = None,
) -> None:
    """Run a command under Hydra, and end with exit code 1 and one sentence where the input is at fault; with 3 where training
    diverged.

    Args:
        main: receives the composed config.
        config_name: the primary config in ``conf/``.
        prepare: looks at the config's name and the command line before Hydra does, and returns those to use.
    """
    full_error = bool(os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them
    try:
        _register_entry_points()
        sys.argv[1:] = local_folders(sys.argv[1:])
        if prepare is not None:
            config_name, sys.argv[1:] = prepare(config_name, sys.argv[1:])
        failures: list[Exception] = []
        with interrupted_by_stops():
            job = _keeping(failures, main)
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()
        if failures:
            raise failures[0]
    except Exception as error:
        sentence = explain_override(error, conf_dir(), config_name, sys.argv[1:]) or explain(error)
        if full_error or sentence is None:
            traceback.print_exc()
        if sentence is not None:
            say(sentence)
        sys.exit(Divergence.exit_code if isinstance(error, Divergence) else 1)
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        say(str(stop) or "stopped")
        sys.exit(130)
    finally:
        if not full_error:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _keeping(failures: list[Exception], main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """A command that keeps its error to be raised later where it runs once; Hydra prints a line of its own about those it sees.

    In a sweep Hydra must see them: they are the status of a job.
    """

    @wraps(main)
    def job(cfg: DictConfig) -> None:
        try:
            main(cfg)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            failures.append(error)

    return job


def composed(arguments: Sequence[str]) -> dict[str, Any]:
    """The config of a training, for a script that takes the same overrides, or a command that trains on the way; the command's
    own Hydra stays as it is.

    Raises:
        InputError: for an override that no training takes.
    """
    running, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        _register_entry_points()
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra.compose("train", [*arguments], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)  # names are made of the groups that were chosen
            own = plain_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    except Exception as error:
        sentence = explain_override(error, conf_dir(), "train", arguments) or explain(error)
        if sentence is None:
            raise
        raise InputError(sentence) from error
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, config
    return read_settings(settings.Train, own)


def say(sentence: str) -> None:
    """Print an error's sentence, or why the program stops."""
    label = "" if sentence.startswith("stopped") else "[red]error:[/] "
    Console(stderr=True).print(f"{label}{_escaped(sentence)}", highlight=False, soft_wrap=True)


def speaking(main: Callable[..., object], *args: object) -> None:
    """Run a script's ``main``; an error of the user's making is a sentence and exit code 1."""
    make_console_safe()
    try:
        main(*args)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        say(sentence)
        sys.exit(1)


def explain(error: BaseException) -> str | None:
    """The sentence for an error of the user's making; ``None`` for one of ours, which deserves its traceback."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (cause.__context__ if isinstance(cause, HydraException) else None)
    for link in chain:
        if isinstance(link, InputError):
            return str(link).rpartition("InputError: ")[2].strip()  # a loader's worker wraps it in its traceback
    if isinstance(error, OverrideParseException):
        return f"{error.override} is not understood ({error.message.splitlines()[0]}); write key=value, and quote what has = or spaces"
    if isinstance(error, OmegaConfBaseException):
        return explain_value(error)
    if isinstance(error, HydraException):
        return " ".join(str(chain[0]).replace("\n", " ").split() + str(chain[-1]).split() * (chain[-1] is not chain[0]))
    if any(map(out_of_memory, chain)):
        link = next(filter(out_of_memory, chain))
        reason = " ".join(str(link).split())[:160]
        return f"memory does not suffice ({reason}); lower loader.batch_size, or choose smaller images, fewer cells or a smaller model"
    system = system_error(error)
    if system is not None and (system.errno in REMEDIES or (system in chain and system.filename)):
        remedy = REMEDIES.get(system.errno or 0, f"{system.strerror}: choose another one")
        return f"cannot use {system.filename or 'a file'}: {remedy}"
    return None


def _register_entry_points() -> None:
    store = ConfigStore.instance()
    built_in = {path.stem for path in (conf_dir() / "reshaper").glob("*.yaml")}
    for name, target in entry_point_reshapers().items():
        if name in built_in:
            raise InputError(
                f"the installed package of {target} announces a reshaper '{name}', which is the name of a built-in; "
                f"rename its entry point, or use reshaper._target_={target}"
            )
        store.store(group="reshaper", name=name, node=reshaper_fields(target))


def typed_value(arguments: list[str], key: str) -> str | None:
    """The value of ``key=value`` among command-line arguments, before Hydra has read them."""
    found: list[Any] = [match[1] for argument in arguments if (match := re.fullmatch(rf"\+*{key}=(.*)", argument))]
    return found[-1].strip("'\"") if found and found[-1] not in ("", "null") else None


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
