"""Tuning: which combinations are tried and kept, by scores that are made up, and what remains of a killed process."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest

from bevreshape.comparison.combinations import Values, beyond, combinations
from bevreshape.comparison.journal import JOURNAL, open_journal
from bevreshape.comparison.tuning import Score, Tuning, Unit
from bevreshape.errors import InputError

RATE = "optimizer.lr"
RATES = (0.001, 0.003, 0.01, 0.03)
SEEDS = (1_000_000, 1_000_001)


def tuning(folder: Path, rates: Sequence[float] = RATES, rungs: Sequence[int] = (10, 20), number: int = 0) -> Tuning:
    """A process's view of a tuning without declared options."""
    found = combinations(RATE, rates, number or len(rates), {})
    return Tuning("mlp", open_journal(folder), folder / "lock", RATE, found, {}, rungs, SEEDS)


def peak(rate: float) -> Callable[[Unit], float]:
    """Scores that are best at a rate."""
    return lambda unit: 0.5 - 0.1 * abs(math.log10(float(str(unit.values[RATE])) / rate))


def run(tuning: Tuning, score: Callable[[Unit], float | None]) -> list[Unit]:
    """Do all that is missing; return the trainings in their order."""
    done = []
    while units := tuning.units():
        done.append(units[0])
        value = score(units[0])
        tuning.report(units[0], Score(value, 1.5, None if value is not None else "the loss is nan"))
    return done


def test_a_rung_keeps_the_better_half(tmp_path: Path) -> None:
    own = tuning(tmp_path)
    done = run(own, peak(0.008))
    first = [(rate, 10, seed) for rate in RATES for seed in SEEDS]
    second = [(rate, 20, seed) for rate in (0.003, 0.01, 0.032) for seed in SEEDS]  # the last one beyond the best
    assert [(unit.values[RATE], unit.steps, unit.seed) for unit in done] == first + second
    result = own.result()
    assert result["values"] == {RATE: 0.01}
    assert [(one[0][RATE], one[1], one[3]) for one in result["tried"]] == [
        (0.001, 10, "pruned"), (0.003, 20, "complete"), (0.01, 20, "complete"), (0.03, 10, "pruned"),
        (0.032, 20, "complete"),
    ]  # fmt: skip
    own_score = next(peak(0.008)(unit) for unit in done if unit.values[RATE] == 0.01 and unit.steps == 20)
    assert result["tried"][2][2] == pytest.approx(own_score, abs=1e-4)
    assert result["seconds"] == len(done) * 1.5


@pytest.mark.parametrize(("best", "extended"), [(0.5, [0.095, 0.3, 0.95]), (1e-4, [3.2e-4, 1e-4, 3.2e-5])])
def test_a_best_rate_at_an_end_is_extended(tmp_path: Path, best: float, extended: list[float]) -> None:
    own = tuning(tmp_path)
    done = run(own, peak(best))
    tried = list(dict.fromkeys(unit.values[RATE] for unit in done))
    assert tried == [*RATES, *extended]
    assert own.result()["values"][RATE] == (min(tried, key=lambda rate: abs(math.log(float(rate) / best))))


def test_an_end_that_only_a_later_rung_prefers_is_extended_there(tmp_path: Path) -> None:
    own = tuning(tmp_path, (0.001, 0.003, 0.01))
    done = run(own, lambda unit: peak(0.004 if unit.steps == 10 else 0.03)(unit))
    later = [unit.values[RATE] for unit in done if unit.steps == 20 and unit.seed == SEEDS[0]]
    assert later == [0.003, 0.01, 0.032, 0.1]
    assert own.result()["values"] == {RATE: 0.032}


def test_a_rate_that_an_earlier_rung_dropped_comes_back(tmp_path: Path) -> None:
    """The best rate falls with the steps, so the next one is tried in a long rung whatever a short one made of it."""
    own = tuning(tmp_path, (0.01, 0.032, 0.1, 0.32))
    done = run(own, lambda unit: peak(0.15 if unit.steps == 10 else 0.01)(unit))
    later = [unit.values[RATE] for unit in done if unit.steps == 20 and unit.seed == SEEDS[0]]
    assert later == [0.1, 0.32, 0.032, 0.01, 0.0032]
    assert own.result()["values"] == {RATE: 0.01}


def test_grids_end_at_the_bounds_of_rates() -> None:
    assert beyond({RATE: 9.0}, RATE, [{RATE: 1.0}, {RATE: 9.0}]) is None


def test_one_combination_alone_is_tried_on_both_sides(tmp_path: Path) -> None:
    done = run(tuning(tmp_path, (0.01,), (10,)), peak(0.01))
    assert [unit.values[RATE] for unit in done[:: len(SEEDS)]] == [0.01, 0.032, 0.0032]


def test_diverged_combinations_are_dropped(tmp_path: Path) -> None:
    own = tuning(tmp_path)
    done = run(own, lambda unit: None if unit.values[RATE] == 0.01 else peak(0.01)(unit))
    assert sum(unit.values[RATE] == 0.01 for unit in done) == 1  # its other seed is not trained
    result = own.result()
    assert result["values"] != {RATE: 0.01}
    assert [0.01, 10, None, "fail"] in [[one[0][RATE], *one[1:]] for one in result["tried"]]
    assert result["reason"] is None


def test_if_all_diverge_the_reason_is_the_result(tmp_path: Path) -> None:
    own = tuning(tmp_path)
    assert len(run(own, lambda unit: None)) == len(RATES)
    assert own.result()["values"] is None
    assert own.result()["reason"] == "tuning: the loss is nan"


def test_processes_agree_whatever_their_order(tmp_path: Path) -> None:
    """Each has its own view of the journal; the second takes the last of the missing trainings."""
    alone = tuning(tmp_path / "alone")
    expected = {unit.name for unit in run(alone, peak(0.03))}
    both, done = (tuning(tmp_path / "both"), tuning(tmp_path / "both")), []
    while units := both[len(done) % 2].units():
        turn = len(done) % 2
        done.append(units[-turn])
        both[turn].report(done[-1], Score(peak(0.03)(done[-1]), 1.5))
        assert not both[1 - turn].needs(done[-1])
    assert sorted(unit.name for unit in done) == sorted(expected)
    assert both[0].result() == both[1].result() == alone.result()


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_line_is_cut_and_tuning_goes_on(tmp_path: Path, cut: int) -> None:
    other = tuning(tmp_path)  # a process that has opened it before
    units = other.units()
    other.report(units[0], Score(0.4))
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-cut])
    assert tuning(tmp_path).units() == units  # the torn result is missing again
    with path.open("ab") as file:
        file.write(b'{"op_code":8,"wor')  # of a process that is killed now
    other.report(units[1], Score(0.5))
    run(tuning(tmp_path), peak(0.008))
    assert tuning(tmp_path).result()["values"] == {RATE: 0.01}
    for line in path.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("damage", [b"hello\n", b'{"op_code":4}\n', b"3\n", b'{"op_code":99,"worker_id":"a"}\n'])
def test_a_damaged_journal_is_named(tmp_path: Path, damage: bytes) -> None:
    tuning(tmp_path).units()
    path = tmp_path / JOURNAL
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, damage, *rest]))
    with pytest.raises(InputError, match=r"optuna.log is damaged .* restore a copy, delete it"):
        tuning(tmp_path).units()


def test_trials_of_others_are_skipped(tmp_path: Path) -> None:
    units = tuning(tmp_path).units()
    optuna.load_study(study_name="mlp", storage=open_journal(tmp_path)).enqueue_trial({RATE: 0.1})
    optuna.load_study(study_name="mlp", storage=open_journal(tmp_path)).ask()
    own = tuning(tmp_path)
    assert own.left() == tuning(tmp_path).left()
    assert own.units() == units
    run(own, peak(0.008))
    assert [one[0][RATE] for one in own.result()["tried"]] == [0.001, 0.003, 0.01, 0.03, 0.032]  # no .1


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_scores_that_are_no_number_are_failures_with_a_reason(tmp_path: Path, value: float | None) -> None:
    own = tuning(tmp_path, RATES[:2])
    while units := own.units():
        own.report(units[0], Score(value))
    assert {one[3] for one in own.result()["tried"]} == {"fail"}
    assert own.result()["values"] is None
    assert own.result()["reason"] == "tuning: no combination has a finite mean IoU on the validation split"


def test_what_a_killed_process_began_is_missing_and_not_counted(tmp_path: Path) -> None:
    begun = tuning(tmp_path).units()  # its trials run when it is killed
    journal = (tmp_path / JOURNAL).read_text()
    again = tuning(tmp_path)
    assert again.units() == begun
    assert (tmp_path / JOURNAL).read_text().count('"op_code":4') == journal.count('"op_code":4')  # no further trial
    run(again, peak(0.008))
    trials = optuna.load_study(study_name="mlp", storage=open_journal(tmp_path)).trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]


def test_a_process_killed_between_enqueueing_and_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", die)
        with pytest.raises(Killed):
            tuning(tmp_path).units()
    assert [unit.values[RATE] for unit in tuning(tmp_path).units()[:: len(SEEDS)]] == list(RATES)


def options(number: int, declared: dict[str, Sequence[object]]) -> list[Values]:
    return combinations(RATE, (0.001, 0.003, 0.01), number, declared)


@pytest.mark.parametrize("number", [3, 4, 5, 7, 12])
def test_everyone_tries_the_same_number(number: int) -> None:
    for declared in ({}, {"reshaper.mode": ("max",)}, {"reshaper.hidden": ([512], [64, 64]), "reshaper.rank": (8,)}):
        found = options(number, declared)
        assert len(found) == number
        assert all(one not in found[:place] for place, one in enumerate(found))
        assert found[:3] == [{RATE: rate} for rate in (0.001, 0.003, 0.01)]
        assert all(0.001 <= float(str(one[RATE])) <= 0.01 for one in found)


def test_options_are_changed_one_at_a_time_at_middle_rates_first() -> None:
    found = options(6, {"reshaper.mode": ("max",), "reshaper.rank": (8,)})
    assert found[3:5] == [{RATE: 0.003, "reshaper.mode": "max"}, {RATE: 0.003, "reshaper.rank": 8}]
    assert found[5] == {RATE: 0.001, "reshaper.mode": "max"}


def test_a_chosen_option_is_extended_by_its_own_rates(tmp_path: Path) -> None:
    declared = {"reshaper.hidden": ([512],)}
    found = options(4, declared)
    own = Tuning("mlp", open_journal(tmp_path), tmp_path / "lock", RATE, found, declared, (10,), SEEDS)
    run(own, lambda unit: peak(0.003)(unit) + 0.2 * ("reshaper.hidden" in unit.values))
    result = own.result()
    assert result["values"] == {RATE: 0.003, "reshaper.hidden": [512]}
    with_hidden = [one[0][RATE] for one in result["tried"] if "reshaper.hidden" in one[0]]
    assert with_hidden == [0.003, 0.0095, 0.00095]
