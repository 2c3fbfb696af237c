"""The task level of a study: models trained on the synthetic world, with rates tuned on a separate world."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevreshape.experiments import task_training
from bevreshape.experiments.row import Row
from bevreshape.experiments.runs import TUNING_SEED
from bevreshape.experiments.task_plan import TaskPlan, TaskSetting, Training
from bevreshape.experiments.task_results import TaskResults
from bevreshape.experiments.task_rows import rows
from bevreshape.experiments.task_training import MEASURES, TaskOutcome
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import RULE, Halving, Tuned
from bevreshape.sharing import Work
from bevreshape.storage.records import Entry, Records

CONSTANT_S = 20.0
"""Approximate seconds to measure the map that does not look at the image."""


@dataclass(frozen=True)
class TaskStudy:
    """The task level, with its plan and records.

    Until its entry is done, a training is kept in the folder ``runs`` of the study, from where it resumes.
    """

    plan: TaskPlan
    records: Records
    name = "task"

    def planned(self) -> dict[str, float]:
        """Return the names of all entries, with approximate seconds on one core."""
        found = {f"task-tune-{setting.name}": self.plan.tuning_seconds() for setting in self.plan.tuned()}
        for setting, steps, seed in self.plan.judged():
            found[f"task-{Training(setting, 0.0, steps, seed).name}"] = self.plan.judging_seconds(steps)
        return found | {self._constant(*world).name: CONSTANT_S for world in self.plan.worlds()}

    def work(self, records: Mapping[str, dict[str, Any]]) -> list[Work]:
        """Return all entries that can begin; judging needs the rates."""
        found = [Work(self._tuning(setting), partial(self._tune, setting)) for setting in self.plan.tuned()]
        for training in self._judged(records):
            found.append(Work(self._judging(training), partial(self._judge, training)))
        for world in self.plan.worlds():
            found.append(Work(entry := self._constant(*world), partial(self._measure_constant, entry)))
        return found

    def rows(self) -> list[Row]:
        """Return the rows whose entries are done."""
        return rows(self.results())

    def results(self) -> TaskResults:
        """Return the results of the entries that are done."""
        records, outcomes = self.records.read(), {}
        for training in self._judged(records):
            if (result := self.records.get(records, self._judging(training))) is not None:
                outcomes[training.setting, training.steps, training.seed] = TaskOutcome.from_plain(result)
        constant = {
            world: result["iou"]
            for world in self.plan.worlds()
            if (result := self.records.get(records, self._constant(*world))) is not None
        }
        return TaskResults(self.plan, outcomes, constant)

    def _judged(self, records: Mapping[str, dict[str, Any]]) -> list[Training]:
        """Return the trainings whose rates are known."""
        tuned = {}
        for setting in self.plan.tuned():
            if (result := self.records.get(records, self._tuning(setting))) is not None:
                tuned[setting] = Tuned.from_plain(result)
        return [
            Training(setting, tuned[by].best[steps].rate, steps, seed)
            for setting, steps, seed in self.plan.judged()
            if (by := self.plan.tuned_by(setting)) in tuned
        ]

    def _tune(self, setting: TaskSetting) -> dict[str, Any]:
        begun: list[Path] = []

        def measure(recipes: Sequence[Recipe], steps: int) -> Tensor:
            missed = []
            for recipe in recipes:
                arguments = self.plan.given(Training(setting, recipe.rate, steps, TUNING_SEED))
                begun.append(self._folder(arguments))
                metrics = task_training.run(arguments, begun[-1]).metrics
                missed.append([1 - metrics["val/iou/mean"] if metrics else float("inf")])
            return torch.tensor(missed)

        tuned = Halving([Recipe(rate) for rate in self.plan.rates], measure).run(self.plan.steps)
        for folder in begun:
            shutil.rmtree(folder)
        return tuned.to_plain()

    def _judge(self, training: Training) -> dict[str, Any]:
        given = self._judging(training).made_with
        folder = self._folder(given["arguments"])
        outcome = task_training.judge(given["arguments"], folder, given["unseen"], given["examined"])
        shutil.rmtree(folder)
        return outcome.to_plain()

    def _constant(self, sigma: float, seed: int) -> Entry:
        arguments = self.plan.common(TaskSetting("ipm", sigma_deg=sigma), seed)
        return Entry(f"task-constant-sigma{sigma:g}-seed{seed}", {"arguments": arguments})

    def _measure_constant(self, entry: Entry) -> dict[str, Any]:
        return {"iou": round(task_training.constant_iou(entry.made_with["arguments"]), 4)}

    def _folder(self, arguments: Sequence[str]) -> Path:
        """Return the folder of one training."""
        digest = hashlib.sha256(json.dumps(list(arguments)).encode()).hexdigest()[:16]
        return self.records.folder / "runs" / digest

    def _tuning(self, setting: TaskSetting) -> Entry:
        plan = self.plan
        made_with = {
            "arguments": plan.common(setting, TUNING_SEED), "validations": plan.validations, "steps": list(plan.steps),
            "rates": list(plan.rates), "tuning": RULE,
        }  # fmt: skip
        return Entry(f"task-tune-{setting.name}", made_with)

    def _judging(self, training: Training) -> Entry:
        plan, whole = self.plan, training.steps == self.plan.longest
        made_with = {
            "arguments": plan.given(training),
            "unseen": plan.unseen(training.setting) if whole and training.setting.plain else {},
            "examined": plan.examined if whole else 0,
            "measures": list(MEASURES),
        }
        return Entry(f"task-{training.name}", made_with)
