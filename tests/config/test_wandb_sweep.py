"""The sweep file of W&B, with the command line that its agent makes of it."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT, without
from wandb.wandb_agent import Agent
from wandb_file import records

from bevreshape.config.compose import compose_training

SWEEP = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text(encoding="utf-8"))


def test_its_parameters_are_keys_of_train() -> None:
    for name, parameter in SWEEP["parameters"].items():
        for value in parameter.get("values", [parameter.get("min")]):
            compose_training([f"{name}={value}"])


@pytest.mark.slow
def test_the_agents_command_trains(worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own code begins the run, offline: only the server, which chooses the values, is left out."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": "",
        "WANDB_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    tiny = [*without("logger", "trainer.max_steps", "trainer.val"), f"data.root={worlds}", "hydra.run.dir=run"]
    tiny += ["trainer.max_steps=2", "trainer.val_check_interval=2"]
    agent = Agent.__new__(Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = [*SWEEP["command"], *tiny], None, False
    agent._forward_signals, agent._run_processes = False, {}
    chosen = {"reshaper": {"value": "cross_attention"}, "optimizer.lr": {"value": 0.00031622776601683794}}
    agent._command_run({"run_id": "abcd1234", "program": SWEEP["program"], "args": chosen})
    assert agent._run_processes["abcd1234"].wait() == 0
    assert (tmp_path / "run" / "wandb_id").read_text() == "abcd1234"
    found = records(next((tmp_path / "run" / "wandb").glob("offline-run-*-abcd1234")))
    summary = {"/".join(i.nested_key) or i.key for one in found for i in one.summary.update}
    assert SWEEP["metric"]["name"] in summary
    assert (run := next(one.run for one in found if one.HasField("run"))).sweep_id == "s1"
    assert any(i.key == "optimizer.lr" for i in run.config.update)
