"""A sweeper of Hydra's gets the objective of every job."""

import json
import os
from pathlib import Path

import pytest
from commands import ROOT, finish, start, without

from bevreshape.config.sweep import sweep_objective
from bevreshape.errors import InputError

PLUGIN = '''
"""Run the jobs of one list of overrides, and store what each returned."""

import json
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class ListSweeper(Sweeper):
    def __init__(self, jobs):
        self.jobs = jobs

    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        jobs = [[*arguments, *job] for job in self.jobs]
        found = []
        for job in self.launcher.launch(jobs, initial_job_idx=0):
            try:
                found.append(job.return_value)
            except ValueError as error:
                found.append(str(error))
        (Path(self.config.hydra.sweep.dir) / "objectives.json").write_text(json.dumps(found))


ConfigStore.instance().store(
    group="hydra/sweeper", name="listed",
    node={"_target_": "hydra_plugins.listed.ListSweeper", "jobs": []}, provider="test",
)
'''


@pytest.mark.slow
def test_a_sweeper_gets_the_score_and_reasons(worlds: Path, tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins" / "listed").mkdir(parents=True)
    (tmp_path / "hydra_plugins" / "listed" / "__init__.py").write_text(PLUGIN)
    jobs = "[['seed=1'],['sweep.metric=fit/steps'],['sweep.metric=val/iou/maen'],['sweep.metric=mean']]"
    arguments = [*without("trainer.max_steps", "trainer.val"), "trainer.max_steps=2", "trainer.val_check_interval=2"]
    ended = finish(
        start(
            "train", "-m", *arguments, f"data.root={worlds}", "hydra/sweeper=listed", f"hydra.sweeper.jobs={jobs}",
            "hydra.sweep.dir=sweep", cwd=tmp_path,
            environment={"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        )
    )  # fmt: skip
    assert ended.code == 0, ended.err
    sweep = tmp_path / "sweep"
    score, steps, typo, no_key = json.loads((sweep / "objectives.json").read_text())
    metrics = json.loads((sweep / "0" / "metrics.json").read_text())
    assert (score, steps) == (metrics["val/iou/mean"], 2)
    assert "sweep.metric=val/iou/maen is not a metric of this run; did you mean val/iou/mean" in typo
    assert "sweep.metric='mean' is not the key of a metric" in no_key
    assert not (sweep / "3" / "metrics.json").exists(), "refused before anything is trained"
    assert "sweep" not in (sweep / "0" / "config.yaml").read_text()


def test_impossible_objectives_are_refused() -> None:
    metrics = {"val/loss": 0.5, "val/iou/mean": float("nan"), "fit/steps": 3}
    assert sweep_objective("val/loss", "val/iou/mean", metrics) == 0.5
    with pytest.raises(InputError, match=r"sweep.metric=val/iou/mean is nan, which cannot be optimized"):
        sweep_objective("val/iou/mean", "val/loss", metrics)
    with pytest.raises(InputError, match=r"sweep.metric=test/loss is not a metric of this run"):
        sweep_objective("test/loss", "val/loss", metrics)
