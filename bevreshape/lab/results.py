"""What the claims ask of a study's records, seed by seed and as estimates over the seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bevreshape.lab.plan import RIVALS, Plan, Records, best_rates, final_error, task_unit, tuned_unit, tuning_unit
from bevreshape.lab.tensor_level import Point, Reached
from bevreshape.lab.verdict import Estimate, Figure, Known, crossover, estimate


def figure_of(value: float | int | None) -> Figure:
    """Nothing is known where there is no number."""
    found = number_of(value)
    return Figure(found) if math.isfinite(found) else Figure(1.0, Known.NOTHING)


def number_of(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


class Results:
    """What the claims ask of a plan's records."""

    def __init__(self, plan: Plan, records: Records) -> None:
        rates = best_rates(plan, records)
        assert rates is not None
        self.plan, self.records, self.rates = plan, records, rates

    def tensor(self, role: str, seed: int, **given: Any) -> Mapping[str, Any]:
        """Record of a tensor-level run."""
        return self.records[tuned_unit(self.plan, self.rates, role, seed, **given).name]

    def task(self, role: str, seed: int, jitter_deg: float | int = 0, scenes: int | None = None) -> Mapping[str, Any]:
        """Record of a task-level run."""
        return self.records[task_unit(self.plan, role, seed, jitter_deg, scenes).name]

    def over_seeds(self, measure: Callable[[int], Figure | float], *, ratios: bool = False) -> Estimate:
        """Estimate of a figure that every seed has."""
        found = [measure(seed) for seed in self.plan.seeds]
        return estimate([one if isinstance(one, Figure) else figure_of(one) for one in found], ratios=ratios)

    def examined(self, role: str, key: str) -> Estimate:
        """What an instrument found; nothing is known of a run that diverged, or where the instrument does not apply."""
        return self.over_seeds(lambda seed: figure_of(self.tensor(role, seed).get("examined", {}).get(key)))

    def error(self, role: str, seed: int, **given: Any) -> Figure:
        """Final error; of a run that diverged at least that of the mean."""
        found = final_error(self.tensor(role, seed, **given))
        return Figure(found) if math.isfinite(found) else Figure(1.0, Known.AT_LEAST)

    def error_ratio(self, over: str, under: str, **given: Any) -> Estimate:
        """Final error of one contender in parts of another's, the same seeds beside each other."""
        return self.over_seeds(
            lambda seed: self.error(over, seed, **given).over(self.error(under, seed, **given)), ratios=True
        )

    def reached(self, role: str, seed: int, what: str, **given: Any) -> Figure:
        """How many ``steps``, ``samples``, ``seconds`` or ``flops`` it took to the threshold; at least all, if it never did."""
        record = self.tensor(role, seed, **given)
        curve = [Point(**{**point, "error": number_of(point["error"])}) for point in record["curve"]]
        hit = Reached.of(curve, self.plan.tensor["threshold"])

        def taken(point: Point) -> float:
            return (
                3.0 * record["flops"] * point.samples if what == "flops" else float(getattr(point, what))
            )  # backward: twice

        if hit.censored:
            return Figure(taken(hit.at), Known.AT_LEAST)
        before = curve[max(curve.index(hit.at) - 1, 0)]
        return Figure(taken(hit.at), between=(taken(before), taken(hit.at)))

    def later(self, what: str, **given: Any) -> Estimate:
        """The attention's need of something in parts of the MLP's."""
        mlp, attention = (partial(self.reached, role, what=what, **given) for role in RIVALS)
        return self._compared(mlp, attention, what, partial(self.tensor, **given))

    def _compared(
        self,
        mlp: Callable[[int], Figure],
        attention: Callable[[int], Figure],
        what: str,
        record: Callable[[str, int], Mapping[str, Any]],
    ) -> Estimate:
        """A ratio of what two runs took; nothing is known of seconds on different machines, or beside another process's runs."""

        def ratio(seed: int) -> Figure:
            both = [record(role, seed) for role in RIVALS]
            if not all(taken(seed).value > 0 for taken in (mlp, attention)):
                return figure_of(None)  # one diverged before anything was measured
            found = attention(seed).over(mlp(seed))
            alike = both[0]["machine"] == both[1]["machine"] and not any(map(self._disturbed, both))
            return found if alike or what != "seconds" else Figure(found.value, Known.NOTHING)

        return self.over_seeds(ratio, ratios=True)

    def _disturbed(self, record: Mapping[str, Any]) -> bool:
        """Whether another process of the study was at work on the same machine meanwhile."""
        if "process" not in record:
            return False
        host, began, ended = record["process"][0], record["began"], record["ended"]
        return any(
            other["process"][0] == host and other["process"] != record["process"] and other["began"] < ended
            and began < other["ended"]
            for other in self.records.values()
            if "process" in other
        )  # fmt: skip

    def doubts(self) -> list[str]:
        """Learning rates that may not be the best: those at an end of what was tried, and those none of which converged."""
        tried, said = self.plan.tensor["rates"], []
        for (role, camera), rate in self.rates.items():
            units = [tuning_unit(self.plan, role, rate, seed, camera) for seed in self.plan.seeds]
            if not all(math.isfinite(final_error(self.records[unit.name])) for unit in units):
                said.append(f"No learning rate of {role} ({camera}) converged with every seed.")
            elif len(tried) > 1 and rate in (tried[0], tried[-1]):
                end = "lowest" if rate == tried[0] else "highest"
                said.append(f"The best learning rate of {role} ({camera}) is the {end} that was tried, {rate:g}.")
        return said

    def samples_needed(self, role: str, seed: int) -> Figure:
        """Fewest training samples with which the error ends at the threshold; between the amounts tried, by interpolation of
        both logarithms."""
        amounts = self.plan.tensor["training_samples"]
        errors = [self.error(role, seed, training_samples=amount) for amount in amounts]
        if any(error.known is not Known.EXACT for error in errors):
            return Figure(1.0, Known.NOTHING)
        short = [math.log(self.plan.tensor["threshold"] / error.value) for error in errors]
        found = crossover([math.log2(amount) for amount in amounts], short)
        low, high = found.bracket
        return Figure(2**found.value, found.known, (2**low, 2**high))

    def overtaken(self, seed: int, rivals: Sequence[str], **given: Any) -> Figure:
        """Jitter from which on the second of two has the lower error."""
        levels = self.plan.tensor["jitter_deg"]
        gains = []
        for level in levels:
            first, second = (self.error(role, seed, jitter_deg=level, **(given if level else {})) for role in rivals)
            if not first.known is second.known is Known.EXACT:
                return Figure(1.0, Known.NOTHING)
            gains.append(math.log(first.value / second.value))
        return crossover(levels, gains)

    def gap_closed(self, seed: int, rivals: Sequence[str], jitter_deg: float | int) -> Figure:
        """By which factor the ratio of the larger to the smaller error shrinks from fewest samples to new ones."""
        mlp, attention = rivals
        fewest = self.plan.tensor["training_samples"][0]
        ratios = [
            self.error(attention, seed, jitter_deg=jitter_deg, training_samples=amount).over(
                self.error(mlp, seed, jitter_deg=jitter_deg, training_samples=amount)
            )
            for amount in (fewest, None)
        ]
        exact = all(ratio.known is Known.EXACT for ratio in ratios)
        few, many = (abs(math.log(ratio.value)) for ratio in ratios)
        return Figure(math.exp(few - many), Known.EXACT if exact else Known.NOTHING)

    @property
    def iou_to_reach(self) -> float:
        """The plan's share of the reference's validation IoU at its end, the mean of the seeds."""
        records = [self.task("ipm", seed) for seed in self.plan.seeds]
        ends = [record["curve"][-1]["iou"] for record in records if record["metrics"]]
        return float(self.plan.task["share"] * statistics.mean(ends)) if ends else math.nan

    def iou(self, role: str, seed: int, jitter_deg: float | int = 0, scenes: int | None = None) -> float:
        """Mean IoU on the test split; NaN of a run that diverged."""
        return number_of(self.task(role, seed, jitter_deg, scenes)["metrics"].get("test/iou/mean"))

    def iou_reached(self, role: str, seed: int, what: str) -> Figure:
        """How many ``steps`` or ``seconds`` it took to :attr:`iou_to_reach`."""
        record = self.task(role, seed)
        curve, metrics = record["curve"], record["metrics"]
        steps = next((point["steps"] for point in curve if point["iou"] >= self.iou_to_reach), None)
        if not metrics:
            return Figure(curve[-1]["steps"], Known.AT_LEAST) if what == "steps" else figure_of(None)
        unit = 1.0 if what == "steps" else metrics["fit/seconds"] / metrics["fit/steps"]
        if steps is None:
            return Figure(unit * curve[-1]["steps"], Known.AT_LEAST)
        before = max((point["steps"] for point in curve if point["steps"] < steps), default=0)
        return Figure(unit * steps, between=(unit * before, unit * steps))

    def iou_later(self, what: str) -> Estimate:
        """The attention's need of something in parts of the MLP's."""
        mlp, attention = (partial(self.iou_reached, role, what=what) for role in RIVALS)
        return self._compared(mlp, attention, what, self.task)

    def iou_kept(self, role: str) -> Estimate:
        """Share of the IoU beyond that of unrelated pictures that is left when tokens are permuted after training; nothing
        is known of a model that is no better than these."""

        def kept(seed: int) -> Figure:
            iou = self.task(role, seed)["diagnosis"].get("order", {}).get("iou")
            if iou is None or iou["intact"] <= iou["unrelated"]:
                return figure_of(None)
            return figure_of((iou["permuted"] - iou["unrelated"]) / (iou["intact"] - iou["unrelated"]))

        return self.over_seeds(kept)
