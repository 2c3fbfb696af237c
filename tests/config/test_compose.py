"""A training's config, composed inside another command."""

import pytest
from commands import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from bevreshape.config.compose import compose_training
from bevreshape.errors import InputError


def test_a_training_is_composed_within_a_command_whose_own_config_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as it is afterwards too
        HydraConfig.instance().set_config(compose("study", return_hydra_config=True))
        running, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        found = compose_training(["reshaper=cross_attention", "seed=3"])
        with pytest.raises(InputError, match="lr is not a key of this command"):
            compose_training(["lr=3"])
        assert GlobalHydra.instance().hydra is running
        assert HydraConfig.instance().cfg is config
    assert found["name"] == "cross_attention-synthetic-seed3"
    assert found["reshaper"]["calibration"] is False
