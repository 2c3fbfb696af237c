"""The tensor level of a study: what is left to do, doing it, and the results of all of it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.records import Entry, Records
from bevreshape.experiments.rows import Results
from bevreshape.experiments.runs import Budget, Setting, cost, from_plain, judge, to_plain, tune
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import Tuned

PAUSE_S = 2.0
"""Between looks at what other processes have done."""


@dataclass(frozen=True)
class Work:
    """An entry and what it is about."""

    entry: Entry
    setting: Setting
    tuned: Tuned | None
    """Recipes to be judged with; ``None`` where they are to be found."""


@dataclass(frozen=True)
class TensorStudy:
    """A plan and its records."""

    plan: TensorPlan
    records: Records

    def work(self, records: Mapping[str, dict[str, Any]]) -> list[Work]:
        """All entries that can be told yet: judged ones need their recipes."""
        found = []
        for setting in dict.fromkeys(map(self.plan.tuned_by, self.plan.settings())):
            found.append(Work(self._tuning(setting), setting, None))
        for setting in self.plan.settings():
            result = self.records.get(records, self._tuning(self.plan.tuned_by(setting)))
            if result is not None:
                tuned = Tuned.from_plain(result)
                found.append(Work(self._judging(setting, tuned), setting, tuned))
        return found

    def left(self) -> list[Work]:
        """Entries that are not done."""
        records = self.records.read()
        return [work for work in self.work(records) if self.records.get(records, work.entry) is None]

    def run(self) -> Iterator[tuple[Work, int, float]]:
        """Do what is left, one entry at a time, and wait for what other processes are doing.

        Yields:
            What was done, how many are left, and the seconds that it took.
        """
        while left := self.left():
            for work in left:
                with self.records.claimed(work.entry) as ours:
                    if not ours or self.records.get(self.records.read(), work.entry) is not None:
                        continue
                    start = time.perf_counter()
                    self.records.add(work.entry, self._do(work))
                yield work, len(self.left()), time.perf_counter() - start
                break
            else:
                time.sleep(PAUSE_S)

    def results(self) -> Results:
        """Of a study that is done."""
        records, outcomes, tuned = self.records.read(), {}, {}
        for work in self.work(records):
            result = self.records.get(records, work.entry)
            assert result is not None  # or it is not done
            if work.tuned is None:
                tuned[work.setting] = Tuned.from_plain(result)
            else:
                outcomes[work.setting] = from_plain(work.setting, result)
        costs = {method: cost(Setting(method)) for method in ("mlp", "adaptive", "positional", "attention", "posed")}
        for scale in self.plan.scales:
            for method in ("mlp", "attention"):
                setting = Setting(method, scale=scale)
                costs[setting.name] = cost(setting)
        return Results(self.plan, outcomes, tuned, costs)

    def _do(self, work: Work) -> dict[str, Any]:
        if work.tuned is None:
            return tune(work.setting, self.plan.budget).to_plain()
        seeds, at = self.plan.seeds_of(work.setting), self.plan.at(work.setting)
        return to_plain(judge(work.setting, work.tuned, self.plan.budget, seeds, at))

    def _tuning(self, setting: Setting) -> Entry:
        return _tuning(setting, self.plan.budget)

    def _judging(self, setting: Setting, tuned: Tuned) -> Entry:
        budget = self.plan.budget
        made_with = {
            "setting": _plain(setting),
            "seeds": len(self.plan.seeds_of(setting)),
            "batch": budget.batch,
            "held_out": budget.held_out,
            "recipes": {str(steps): _plain(recipe) for steps, recipe in tuned.best.items()},
        }
        return Entry(f"judge-{setting.name}", made_with)


@cache
def _tuning(setting: Setting, budget: Budget) -> Entry:
    return Entry(f"tune-{setting.name}", {"setting": _plain(setting), "budget": _plain(budget)})


@cache
def _plain(values: Setting | Budget | Recipe) -> dict[str, Any]:
    return asdict(values)
