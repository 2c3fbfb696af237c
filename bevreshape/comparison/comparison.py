"""A comparison: its planned entries, shared between processes and machines, and its outcome."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from bevreshape.bev_spec import BEVSpec
from bevreshape.comparison.budget import Budget
from bevreshape.comparison.combinations import Values, combinations
from bevreshape.comparison.costing import measure_costs, read_cost
from bevreshape.comparison.failures import attempt
from bevreshape.comparison.journal import Journal, open_journal
from bevreshape.comparison.judging import measured, no_iou, read_run
from bevreshape.comparison.outcome import Candidate, Constraints, ModelCost, Outcome, Run, Trial
from bevreshape.comparison.trainings import declared_options, made_with, rate_key, training_config
from bevreshape.comparison.tuning import Score, Tuning, Unit
from bevreshape.errors import InputError
from bevreshape.reporting.machine_results import add_results, comparison_rows, results_path
from bevreshape.sharing import Work
from bevreshape.storage.plain_values import read_yaml
from bevreshape.storage.records import Entry, Records
from bevreshape.training.hardware import conditions, device_name, process_count, read_device
from bevreshape.training.recorded import Tested, Trained, data_of, train_recorded

SETTINGS_FILE = "comparison.yaml"
"""File of the settings in a comparison's folder."""

COMMAND = "comparison"
"""What the same command resumes."""

STEP_S = 0.2
"""Approximate seconds of a training step on one core; only its relation to the other durations matters."""

APART_S, TESTED_S, COST_S = 5.0, 20.0, 20.0
"""Approximate seconds of a training apart from its steps, of a judged model's tests, and of a model's costs."""

Records_ = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """The settings of a comparison, and the records in its folder.

    A training keeps its folder below ``runs``: one of tuning until the tuning is recorded, a judged one for good.

    Attributes:
        settings: of the command, see :class:`~bevreshape.config.settings.Compare`.
    """

    settings: Mapping[str, Any]

    @classmethod
    def stored(cls, folder: Path) -> "Comparison":
        """Read the comparison of a folder, wherever it was moved.

        Raises:
            InputError: when its settings cannot be read.
        """
        return cls({**read_yaml(folder / SETTINGS_FILE), "folder": str(folder)})

    @property
    def folder(self) -> Path:
        """Return the folder."""
        return Path(self.settings["folder"])

    @property
    def records(self) -> Records:
        """Return the records."""
        return Records(self.folder)

    @cached_property
    def budget(self) -> Budget:
        """Return the budget."""
        return Budget.read(self.settings["budget"])

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the view transformers."""
        return tuple(self.settings["reshapers"])

    @cached_property
    def device(self) -> torch.device:
        """Return the device on which costs are measured."""
        return read_device(self.settings["device"])

    @cached_property
    def _journal(self) -> Journal:
        return open_journal(self.folder)

    def planned(self) -> dict[str, float]:
        """Return the names of all entries, with the approximate seconds on one core that remain for them."""
        records = self.records.read()
        found = dict.fromkeys(self._trained(records), self.budget.steps * STEP_S + TESTED_S)
        for name in self.names:
            found[f"tune-{name}"] = 0.0
            if self._tuned(records, name) is None:
                found[f"tune-{name}"] = self.tuning(name).left() * STEP_S + APART_S
        return found | {self._cost_name: len(self.names) * COST_S}

    def _trained(self, records: Records_) -> list[str]:
        """Return the names of the entries of tuning and judging."""
        found = [f"tune-{name}" for name in self.names]
        for name in self.names:
            tuned = self._tuned(records, name)
            if tuned is None or tuned["reason"] is None:
                found += [f"judge-{name}-seed{seed}" for seed in self.budget.judged]
        return found

    def work(self, records: Records_) -> list[Work]:
        """Return the work that can begin: judging needs the tuned values, and the costs the end of all else."""
        found, judging, tuned = [], [], {}
        for name in self.names:
            result = self._tuned(records, name)
            if result is None:
                found += self._tune(name)
            else:
                tuned[name] = result
        left = {name: result["values"] for name, result in tuned.items() if result["reason"] is None}
        for seed in self.budget.judged:
            for name, values in left.items():
                judging.append(Work(self._judged(name, values, seed), partial(self._judge, name, values, seed)))
        if len(tuned) == len(self.names) and all(work.entry.name in records for work in judging):
            found.append(Work(self._cost(left), partial(self._measure_costs, left)))  # while no worker trains
        return [*found, *judging]

    def outcome(self) -> Outcome:
        """Return the outcome of what is done; the device of the costs need not be here."""
        records, settings = self.records.read(), self.settings
        planned = self._trained(records)
        missing = [name for name in planned if name not in records]
        measured = self._costs(records)
        costs = {name: read_cost(cost) for name, cost in measured["costs"].items()}
        found = [self._candidate(records, name, costs, measured["failed"]) for name in self.names]
        classes = next((tuple(run.iou) for one in found for run in one.runs), ())
        return Outcome(
            settings["name"], tuple(found),
            Constraints(settings["latency_ms"], settings["memory_mb"], settings["parameters"]),
            measured.get("device", settings["device"]),
            tuple(name for name in classes if name != "mean"), self._protocol() | _conditions(measured),
            settings["margin"],
            settings["command"], len(planned) + 1, len(missing) + ("device" not in measured),
        )  # fmt: skip

    def tuning(self, name: str) -> Tuning:
        """Return the tuning of a view transformer."""
        if name not in self._tunings:
            self._tunings[name] = self._new_tuning(name)
        return self._tunings[name]

    @cached_property
    def _tunings(self) -> dict[str, Tuning]:
        return {}

    def _new_tuning(self, name: str) -> Tuning:
        budget, entry = self.budget, self._tuning_entry(name)
        return Tuning(
            f"{name}-{_digest(entry.made_with)[:8]}", self._journal, self.folder / "locks" / f"tune-{name}",
            rate_key(self.settings["optimizer"]), self.initial(name), self._options(name), budget.rungs, budget.tuning,
        )  # fmt: skip

    def initial(self, name: str) -> list[Values]:
        """Return the combinations of a view transformer that are tried at first."""
        rate = rate_key(self.settings["optimizer"])
        return combinations(rate, self.budget.rates, self.budget.combinations, self._options(name))

    def _options(self, name: str) -> dict[str, tuple[object, ...]]:
        return declared_options(self.settings["reshapers"][name])

    def run_folder(self, name: str, values: Mapping[str, object], seed: int) -> Path:
        """Return the folder of a judged training, relative to that of the comparison; other settings have another."""
        entry = self._judged(name, values, seed)
        return Path("runs") / f"{name}-seed{seed}-{_digest(entry.made_with)[:8]}"

    def config(self, name: str, values: Mapping[str, object], seed: int) -> dict[str, Any]:
        """Return the config of a judged training."""
        return training_config(self.settings, name, values, self.budget.steps, seed, judged=True)

    def _tuning_entry(self, name: str) -> Entry:
        budget = self.budget
        own = {
            "rungs": list(budget.rungs), "rates": list(budget.rates), "trials": budget.combinations,
            "tuning_seeds": budget.tuning_seeds, "ends": "of every rung",
        }  # fmt: skip
        return Entry(f"tune-{name}", made_with(self.settings, name) | {f"budget.{key}": own[key] for key in own})

    def _tuned(self, records: Records_, name: str) -> dict[str, Any] | None:
        return self.records.get(records, self._tuning_entry(name))

    def _tune(self, name: str) -> list[Work]:
        """Return the missing trainings of a tuning; without any, the end of it."""
        tuning, entry = self.tuning(name), self._tuning_entry(name)
        if units := tuning.units():
            return [
                Work(entry, partial(self._try, name, unit), unit.name, partial(tuning.needs, unit)) for unit in units
            ]
        return [Work(entry, partial(self._end_tuning, name))]

    def _try(self, name: str, unit: Unit) -> None:
        config = training_config(self.settings, name, unit.values, unit.steps, unit.seed, judged=False)
        folder = self._tuning_folder(name) / _digest([unit.values, unit.steps, unit.seed])[:16]
        folder.mkdir(parents=True, exist_ok=True)
        train = partial(train_recorded, config, folder, COMMAND, tested=False)
        trained, reason = attempt(train, folder / "train.log")
        self.tuning(name).report(unit, _score(trained, reason))

    def _end_tuning(self, name: str) -> dict[str, Any]:
        result = self.tuning(name).result()
        shutil.rmtree(self._tuning_folder(name), ignore_errors=True)
        return result

    def _tuning_folder(self, name: str) -> Path:
        return self.folder / "runs" / "tuning" / self.tuning(name).name

    def _judged(self, name: str, values: Mapping[str, object], seed: int) -> Entry:
        budget = self.budget
        own = {"budget.steps": budget.steps, "budget.validations": budget.validations, "budget.errors": budget.errors}
        return Entry(f"judge-{name}-seed{seed}", {**made_with(self.settings, name), **own, **values, "seed": seed})

    def _judge(self, name: str, values: Mapping[str, object], seed: int) -> dict[str, Any]:
        folder = self.folder / self.run_folder(name, values, seed)
        folder.mkdir(parents=True, exist_ok=True)

        def judge() -> dict[str, Any]:
            trained = train_recorded(self.config(name, values, seed), folder, COMMAND)
            return measured(trained, self.budget.errors) if trained.metrics else {"reason": trained.reason}

        result, reason = attempt(judge, folder / "train.log")
        (folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        return {"reason": reason} if result is None else result

    @property
    def _cost_conditions(self) -> dict[str, Any]:
        return {**conditions(self.device), "repeats": self.budget.repeats}

    @property
    def _cost_name(self) -> str:
        """Return the name of the costs under these conditions; under others they are measured again."""
        shown = "-".join(f"{key}-{value}" for key, value in self._cost_conditions.items())
        return f"cost-{re.sub(r'[^a-z0-9]+', '-', shown.lower())}-{self._cost_key}"

    @property
    def _cost_key(self) -> str:
        """Return what costs of the same view transformers have in common: they are measured together."""
        return _digest(list(self.names))[:8]

    def _cost(self, left: Mapping[str, Mapping[str, object]]) -> Entry:
        own = {name: {**made_with(self.settings, name), **values} for name, values in left.items()}
        shared = {key: value for one in own.values() for key, value in one.items() if not key.startswith("reshaper.")}
        apart = {
            name: {key: value for key, value in one.items() if key.startswith("reshaper.")} for name, one in own.items()
        }
        return Entry(self._cost_name, {**shared, "reshapers": apart, "conditions": self._cost_conditions})

    def _measure_costs(self, left: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
        configs = {name: self.config(name, values, 0) for name, values in left.items()}
        if not configs:
            return {"device": device_name(self.device), "costs": {}, "failed": {}}
        data = data_of(next(iter(configs.values())))
        sample = next(iter(Tested(data)))[:1]
        spec = BEVSpec.of(data.source)
        found = measure_costs(configs, sample, spec, self.device, self.budget.repeats)
        if self.settings.get("results") is not None:
            path = results_path(Path(self.settings["results"]), self.device, "32-true")
            add_results(path, comparison_rows(found, configs, spec, self.device))
        return found

    def _costs(self, records: Records_) -> dict[str, Any]:
        """Return the costs under these conditions; else the latest on this device, or on another; else no device."""
        of_these = re.compile(rf"cost-.+-{self._cost_key}")
        found = [(name, one["result"]) for name, one in records.items() if of_these.fullmatch(name)]
        with suppress(InputError):  # the device is not here
            here, exact = device_name(self.device), self._cost_name
            found.sort(key=lambda cost: (cost[0] == exact, cost[1]["device"] == here))
        return found[-1][1] if found else {"costs": {}, "failed": {}}

    def _candidate(
        self, records: Records_, name: str, costs: Mapping[str, ModelCost], failed: Mapping[str, str]
    ) -> Candidate:
        tuned = self._tuned(records, name)
        if tuned is None:
            return Candidate(name, {}, (), (), None)
        tried = tuple(Trial(values, steps, value) for values, steps, value, _ in tuned["tried"])
        if tuned["reason"] is not None:
            return Candidate(name, {}, tried, (), None, tuned["reason"])
        runs: list[Run] = []
        reasons = []
        for seed in self.budget.judged:
            result = self.records.get(records, self._judged(name, tuned["values"], seed))
            if result is not None and "reason" in result:
                reasons.append(f"seed {seed}: {result['reason']}")
            elif result is not None:
                runs.append(read_run(result, seed, self.run_folder(name, tuned["values"], seed)))
        reason = "; ".join(reasons) or None
        return Candidate(name, tuned["values"], tried, tuple(runs), costs.get(name), reason, failed.get(name))

    def _protocol(self) -> dict[str, str]:
        settings, budget = self.settings, self.budget
        trainer, encoder = settings["trainer"], settings["encoder"]
        batch = settings["loader"]["batch_size"] * trainer.get("accumulate_grad_batches", 1)
        processes = process_count(trainer) * int(trainer.get("num_nodes") or 1)
        others = f"{budget.tuning_seeds} other seed{'' if budget.tuning_seeds == 1 else 's'}"
        rungs = ", ".join(map(str, budget.rungs))
        return {
            "data": _class_name(settings["data"]),
            "encoder": str(encoder.get("name", _class_name(encoder))),
            "steps": str(budget.steps),
            "samples": str(budget.steps * batch * processes),
            "seeds": ", ".join(map(str, budget.judged)),
            "tuning": f"{budget.combinations} combinations, rungs of {rungs} steps, {others}",
        }


def _score(trained: Trained | None, reason: str | None) -> Score:
    """Return the score of a tuning training; without a finite IoU it is a failure with a reason."""
    if trained is None or not trained.metrics:
        return Score(None, 0.0, reason or (trained and trained.reason) or "it diverged")
    value = trained.metrics.get("val/iou/mean")
    if value is None or not math.isfinite(value):
        return Score(None, trained.seconds, no_iou("val"))
    return Score(value, trained.seconds)


def _conditions(measured: Mapping[str, Any]) -> dict[str, str]:
    """Return the conditions under which costs were measured."""
    if measured.get("load") is None:
        return {}
    return {"costs": f"{measured['threads']} threads; the machine had {measured['load']:g} busy processes"}


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_", "")).rpartition(".")[2]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
