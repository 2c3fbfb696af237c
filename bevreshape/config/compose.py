"""Composing configs as plain values."""

from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bevreshape.config import settings
from bevreshape.config.choices import register_choices
from bevreshape.config.options import read_settings
from bevreshape.config.overrides import command_message, explain_override
from bevreshape.config.paths import conf_dir
from bevreshape.errors import InputError


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed config as plain values, resolved.

    Raises:
        InputError: when a required value is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise InputError(f"{', '.join(missing)} must be given, for instance {missing[0]}=…")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def compose_training(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the config of a training for scripts, and for commands that train models.

    The state of a running Hydra command is restored.

    Raises:
        InputError: when training does not take an override.
    """
    running, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        register_choices(arguments)
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra.compose("train", [*arguments], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)  # names contain the chosen groups
            own = plain_config(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    except Exception as error:
        message = explain_override(error, conf_dir(), "train", arguments) or command_message(error)
        if message is None:
            raise
        raise InputError(message) from error
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, config
    return {key: value for key, value in read_settings(settings.Train, own).items() if key != "sweep"}
