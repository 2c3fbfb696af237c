"""Seconds of a step against steps of known length."""

import time

import pytest

from bevreshape.experiments import pace
from bevreshape.experiments.pace import measure_pace, median_seconds
from bevreshape.training.hardware import processor_name


def test_a_step_that_sleeps_takes_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TURNS", 5)
    found = median_seconds({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)})
    assert 0.002 <= found["short"] < 0.02 <= found["long"]


def test_one_turn_that_is_disturbed_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TURNS", 5)
    waits = iter([0.3] + [0.0] * 20)
    assert median_seconds({"": lambda: time.sleep(next(waits))})[""] < 0.05


def test_every_method_has_a_pace_and_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TURNS", 2)
    found = measure_pace([("mlp", "projected"), ("attention", "projected"), ("attention", "direct")], 4)
    assert found.seconds.keys() == {"mlp", "attention", "attention, direct Q"}
    assert min(found.seconds.values()) > 0
    assert found.processor == processor_name() != ""
    assert pace.Pace(**found.to_plain()).processor == found.processor
