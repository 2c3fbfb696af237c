"""Levels whose entries are settings, such as the tensor level: remaining work and outcomes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, ClassVar, Generic

from bevreshape.experiments import beyond, capacity
from bevreshape.experiments.models import METHODS, Query, called
from bevreshape.experiments.outcomes import Outcomes, P
from bevreshape.experiments.pace import Pace, measure_pace
from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.row import Row
from bevreshape.experiments.rows import rows
from bevreshape.experiments.runs import Budget, Setting, cost, from_plain, judge, to_plain, tune
from bevreshape.experiments.tensor_results import PACE, Results
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import RULE, Tuned
from bevreshape.sharing import Work
from bevreshape.storage.records import Entry, Records

PACED: tuple[tuple[str, Query], ...] = (
    ("mlp", "projected"),
    ("positional", "projected"),
    ("attention", "projected"),
    ("attention", "direct"),
)
"""Methods whose steps are timed, with the form of Q."""

PACE_S = 2.0
"""Approximate seconds of that measurement."""


@dataclass(frozen=True)
class SettingStudy(Generic[P]):
    """A level of settings: recipes are tuned first, then judged."""

    plan: P
    records: Records

    PREFIX: ClassVar[str]
    """Prefix of the names of its entries."""

    def planned(self) -> dict[str, float]:
        """Return the names of all entries, with approximate seconds."""
        plan = self.plan
        tuned = dict.fromkeys(map(plan.tuned_by, plan.settings()))
        return {f"{self.PREFIX}tune-{setting.name}": plan.tuning_seconds(setting) for setting in tuned} | {
            f"{self.PREFIX}judge-{setting.name}": plan.judging_seconds(setting) for setting in plan.settings()
        }

    def work(self, records: Mapping[str, dict[str, Any]]) -> list[Work]:
        """Return all entries that can begin, those of primary rows first; judging needs the recipes."""
        plan, found, tuned_here = self.plan, [], set()
        for setting in sorted(plan.settings(), key=lambda one: -len(plan.seeds_of(one))):
            if (by := plan.tuned_by(setting)) not in tuned_here:
                tuned_here.add(by)
                found.append(Work(self._tuning(by), partial(self._tune, by)))
            if (tuned := self._tuned(setting, records)) is not None:
                found.append(Work(self._judging(setting, tuned), partial(self._judge, setting, tuned)))
        return found

    def outcomes(self) -> Outcomes[P]:
        """Return the results of the entries that are done."""
        records, outcomes, recipes = self.records.read(), {}, {}
        for setting in self.plan.settings():
            if (tuned := self._tuned(setting, records)) is None:
                continue
            recipes[self.plan.tuned_by(setting)] = tuned
            if (result := self.records.get(records, self._judging(setting, tuned))) is not None:
                outcomes[setting] = from_plain(setting, result)
        return Outcomes(self.plan, outcomes, recipes)

    def _tune(self, setting: Setting) -> dict[str, Any]:
        return tune(setting, self.plan.budget).to_plain()

    def _judge(self, setting: Setting, tuned: Tuned) -> dict[str, Any]:
        seeds, at = self.plan.seeds_of(setting), self.plan.at(setting)
        return to_plain(judge(setting, tuned, self.plan.budget, seeds, at))

    def _tuned(self, setting: Setting, records: Mapping[str, dict[str, Any]]) -> Tuned | None:
        """Return the recipes of a setting; ``None`` if it is not tuned."""
        result = self.records.get(records, self._tuning(self.plan.tuned_by(setting)))
        return None if result is None else Tuned.from_plain(result)

    def _tuning(self, setting: Setting) -> Entry:
        made_with = {"setting": _plain(setting), "budget": _plain(self.plan.budget), "tuning": RULE}
        return Entry(f"{self.PREFIX}tune-{setting.name}", made_with)

    def _judging(self, setting: Setting, tuned: Tuned) -> Entry:
        budget = self.plan.budget
        made_with = {
            "setting": _plain(setting),
            "seeds": len(self.plan.seeds_of(setting)),
            "batch": budget.batch,
            "held_out": budget.held_out,
            "recipes": {str(steps): _plain(recipe) for steps, recipe in tuned.best.items()},
        }
        return Entry(f"{self.PREFIX}judge-{setting.name}", made_with)


@dataclass(frozen=True)
class TensorStudy(SettingStudy[TensorPlan]):
    """The tensor level, a :class:`~bevreshape.experiments.level.Level`."""

    PREFIX = ""

    @property
    def name(self) -> str:
        """Return the name of the level."""
        return "tensor"

    def planned(self) -> dict[str, float]:
        """Return the names of all entries, with approximate seconds."""
        return super().planned() | {PACE: PACE_S}

    def work(self, records: Mapping[str, dict[str, Any]]) -> list[Work]:
        """Return all entries that can begin."""
        return [*super().work(records), Work(self._pace, self._measure_pace)]

    @property
    def _pace(self) -> Entry:
        return Entry(PACE, {"methods": [called(*one) for one in PACED], "batch": self.plan.budget.batch})

    def _measure_pace(self) -> dict[str, Any]:
        return measure_pace(PACED, self.plan.budget.batch).to_plain()

    def rows(self) -> list[Row]:
        """Return the rows whose entries are done."""
        results = self.results()
        return [*rows(results), *capacity.rows(results), *beyond.rows(results)]

    def results(self) -> Results:
        """Return the results of the entries that are done."""
        found = self.outcomes()
        counted = [Setting(method) for method in METHODS]
        counted += [Setting(method, scale=scale) for scale in self.plan.scales for method in ("mlp", "attention")]
        batch = self.plan.budget.batch
        costs = {(setting, query): cost(setting, query, batch) for setting in counted for query in setting.queries}
        pace = self.records.get(self.records.read(), self._pace)
        return Results(self.plan, found.outcomes, found.tuned, costs, None if pace is None else Pace(**pace))


@cache
def _plain(values: Setting | Budget | Recipe) -> dict[str, Any]:
    return asdict(values)
