"""From a composed config of Hydra's to plain values."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from bevreshape.errors import InputError


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, resolved.

    Raises:
        InputError: when a value that must be given is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise InputError(f"{', '.join(missing)} must be given, for instance {missing[0]}=…")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
