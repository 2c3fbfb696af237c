"""Tuning of one view transformer by successive halving (Jamieson and Talwalkar 2016), in a storage of Optuna.

A rung is a set of whole trainings, each with its own schedule: the score of a one-cycle schedule that is cut off says
little about its end. A rung is decided when all of its trainings are done, so the result does not depend on which of
several processes finishes first. Optuna's own pruner decides at once instead.

Optuna's journal holds the trials. A trial is a combination of values. It runs until a rung drops it, whatever process
trains it, so one that a killed process has left behind is taken up by the next process.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from bevreshape.comparison.combinations import HIGHEST, LOWEST, Values, beyond
from bevreshape.comparison.journal import Journal, readable
from bevreshape.storage.lock import locked

FEWEST = 2
"""Smallest number of combinations that a rung keeps."""

NO_SCORE = "no combination has a finite mean IoU on the validation split"

ENTERED = "entered"
"""Attribute of a trial: the steps of its first rung."""


class Unit(NamedTuple):
    """A training of tuning.

    Attributes:
        trial: number of the trial.
        steps: of the rung.
        seed: of the training.
        values: of the trial, by config key.
    """

    trial: int
    steps: int
    seed: int
    values: Values

    @property
    def name(self) -> str:
        """Return a name that is unique in the tuning of a view transformer."""
        return f"trial {self.trial}, {self.steps} steps, seed {self.seed}"


class Score(NamedTuple):
    """Result of a training.

    Attributes:
        value: best mean IoU on the validation split; ``None`` if the training failed.
        seconds: of training.
        reason: why it failed.
    """

    value: float | None
    seconds: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Tuning:
    """The tuning of one view transformer.

    After the steps of a rung the better half of its combinations goes on to the next one, with more steps. If the best
    rate of a rung is at an end of those tried there, the next rate is tried until it is not. A rate that was dropped
    after a shorter rung then comes back as another trial: the best rate falls with the steps.

    Attributes:
        name: of Optuna's study.
        storage: shared by all studies of a comparison.
        lock: file that is locked while trials are added or decided.
        rate: config key of the learning rate.
        initial: combinations of the first rung.
        options: all values of the declared options, by config key.
        rungs: steps, ascending.
        seeds: of every training.
    """

    name: str
    storage: Journal
    lock: Path
    rate: str
    initial: Sequence[Values]
    options: Mapping[str, Sequence[object]]
    rungs: Sequence[int]
    seeds: Sequence[int]

    def units(self) -> list[Unit]:
        """Decide all rungs that are done, and return the missing trainings of the next one; empty once all is done."""
        with locked(self.lock), readable(self.storage.path):
            study = self._study
            self._ask(study, self.initial, self.rungs[0])
            for steps in self.rungs:
                while not (units := self._missing(study, steps)):
                    if (more := self._extension(study, steps)) is None:
                        break
                    self._ask(study, [more], steps)
                if units:
                    return units
                self._drop(study, steps)
            for trial in self._trials(study, self.rungs[-1]):
                if trial.state is TrialState.RUNNING:
                    study.tell(trial.number, trial.intermediate_values[self.rungs[-1]])
            return []

    def needs(self, unit: Unit) -> bool:
        """Return whether a training is still missing."""
        return any(unit.name == other.name for other in self.units())

    def report(self, unit: Unit, score: Score) -> None:
        """Store the result of a training, unless its trial has failed meanwhile by that of another seed."""
        with suppress(UpdateFinishedTrialError), readable(self.storage.path):
            self.storage.set_trial_user_attr(self._id(unit.trial), f"{unit.steps}-{unit.seed}", list(score))

    def result(self) -> dict[str, Any]:
        """Return the chosen values and all trials, plain for a line of JSON; a reason if no combination was left."""
        with readable(self.storage.path):
            trials = self._known(self._study)
        last = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        best = min(last, key=_order(self.rungs[-1]), default=None)
        reasons = [one.reason for trial in trials for one in self._scores(trial) if one.reason is not None]
        return {
            "values": None if best is None else self._values(best),
            "tried": [[self._values(trial), *self._reached(trial), trial.state.name.lower()] for trial in trials],
            "seconds": round(math.fsum(one.seconds for trial in trials for one in self._scores(trial)), 1),
            "reason": f"tuning: {(*reasons, NO_SCORE)[0]}" if best is None else None,
        }

    def left(self) -> int:
        """Return about how many steps of training are left, without extensions of the grid."""
        with readable(self.storage.path):
            trials = self._known(self._study)
        number, found = len(self.initial), 0
        for steps in self.rungs:
            done = sum(len(self._scores(trial, steps)) for trial in trials)
            found += max(number * len(self.seeds) - done, 0) * steps
            number = max(FEWEST, math.ceil(number / 2))
        return found

    @cached_property
    def _study(self) -> optuna.Study:
        sampler = optuna.samplers.RandomSampler(seed=0)  # never asked, all values are given
        return optuna.create_study(
            storage=self.storage, study_name=self.name, direction="maximize", load_if_exists=True, sampler=sampler
        )

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(self.name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def _ask(self, study: optuna.Study, wanted: Sequence[Values], steps: int) -> None:
        """Begin the trials of combinations that a rung lacks; one that was only enqueued is begun first."""
        for foreign in _waiting(study):
            if "values" not in foreign.user_attrs:
                self.storage.set_trial_state_values(self._id(foreign.number), TrialState.FAIL)
        waiting = len(_waiting(study))
        begun = [trial for trial in self._known(study) if trial.state is TrialState.WAITING]
        known = [self._values(trial) for trial in [*begun, *self._trials(study, steps)]]
        for values in wanted:
            if values not in known:
                written = {key: value if key == self.rate else json.dumps(value) for key, value in values.items()}
                study.enqueue_trial(written, user_attrs={ENTERED: steps, "values": values})
                waiting += 1
        for _ in range(waiting):
            study.ask({key: self._distribution(key) for key in self._values(_waiting(study)[0])})

    def _distribution(self, key: str) -> BaseDistribution:
        if key == self.rate:
            return FloatDistribution(LOWEST, HIGHEST, log=True)
        return CategoricalDistribution([json.dumps(value) for value in self.options[key]])

    def _known(self, study: optuna.Study) -> list[FrozenTrial]:
        """Return the trials that this tuning has begun; a dashboard or a script may have added others."""
        return [one for one in study.get_trials(deepcopy=False) if {"values", ENTERED} <= one.user_attrs.keys()]

    def _values(self, trial: FrozenTrial) -> Values:
        return dict(trial.user_attrs["values"])

    def _scores(self, trial: FrozenTrial, steps: int | None = None) -> list[Score]:
        """Return the results of a trial's trainings, of one rung or of all."""
        rungs = self.rungs if steps is None else (steps,)
        keys = [f"{rung}-{seed}" for rung in rungs for seed in self.seeds]
        return [Score(*trial.user_attrs[key]) for key in keys if key in trial.user_attrs]

    def _reached(self, trial: FrozenTrial) -> tuple[int, float | None]:
        """Return the steps of the last rung of a trial, and its score there; ``None`` if it failed."""
        steps = max((rung for rung in self.rungs if self._scores(trial, rung)), default=self.rungs[0])
        value = None if trial.state is TrialState.FAIL else trial.intermediate_values.get(steps)
        return steps, None if value is None else float(f"{value:.4g}")

    def _trials(self, study: optuna.Study, steps: int) -> list[FrozenTrial]:
        """Return the trials of a rung: those that have a result there, and those that still run."""
        trials = self._known(study)
        entered = [trial for trial in trials if trial.user_attrs[ENTERED] <= steps]
        return [trial for trial in entered if trial.state is TrialState.RUNNING or self._scores(trial, steps)]

    def _missing(self, study: optuna.Study, steps: int) -> list[Unit]:
        """Return the missing trainings of a rung; report the mean of its finished trials, and let others fail."""
        units = []
        for trial in self._trials(study, steps):
            if trial.state is not TrialState.RUNNING or steps in trial.intermediate_values:
                continue
            scores = self._scores(trial, steps)
            if any(one.value is None or not math.isfinite(one.value) for one in scores):
                study.tell(trial.number, state=TrialState.FAIL)
            elif len(scores) == len(self.seeds):
                mean = math.fsum(one.value or 0.0 for one in scores) / len(scores)
                self.storage.set_trial_intermediate_value(self._id(trial.number), steps, mean)
            else:
                for seed in self.seeds:
                    if f"{steps}-{seed}" not in trial.user_attrs:
                        units.append(Unit(trial.number, steps, seed, self._values(trial)))
        return units

    def _extension(self, study: optuna.Study, steps: int) -> Values | None:
        """Return the combination beyond the best one of a rung, if its rate is at an end of those tried there."""
        tried = self._trials(study, steps)
        finished = [trial for trial in tried if steps in trial.intermediate_values]
        if not finished:
            return None
        return beyond(self._values(min(finished, key=_order(steps))), self.rate, [self._values(one) for one in tried])

    def _drop(self, study: optuna.Study, steps: int) -> None:
        """Prune the worse half of a rung, unless it is the last one."""
        if steps == self.rungs[-1]:
            return
        trials = self._trials(study, steps)
        finished = sorted((trial for trial in trials if steps in trial.intermediate_values), key=_order(steps))
        for trial in finished[max(FEWEST, math.ceil(len(trials) / 2)) :]:
            if trial.state is TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.PRUNED)


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return [one for one in study.get_trials(deepcopy=False) if one.state is TrialState.WAITING]


def _order(steps: int) -> Any:
    """Return the key that sorts the trials of a rung: the best first, of equal ones the first."""
    return lambda trial: (-trial.intermediate_values[steps], trial.number)
