"""Test reports of progress: none at first, then lines at growing intervals, with the remaining time."""

import re
import sys
from itertools import pairwise

import pytest

from bevreshape.reporting import progress
from bevreshape.reporting.progress import Progress, duration, track


class Clock:
    """Hold seconds that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_lines_in_a_pipe_come_after_10_20_40_seconds_and_then_every_10_minutes(clock: Clock, capsys) -> None:
    said = {}
    for second in track(range(10_000), "working"):
        clock.now += 1
        if err := capsys.readouterr().err:
            said[second] = err
    at = list(said)
    assert at[:7] == [10, 20, 40, 80, 160, 320, 640]
    assert {later - earlier for earlier, later in pairwise(at[6:])} == {600}
    assert said[10] == "working: 10 of 10000 in 10 s, about 2 h 46 min left\n"


def test_short_work_prints_nothing_in_a_pipe(clock: Clock, capsys) -> None:
    for _ in track(range(100), "working"):
        clock.now += 0.09
    assert capsys.readouterr().err == ""


def test_the_time_left_follows_this_run(clock: Clock, capsys) -> None:
    with Progress("training", 1000, done=800) as running:
        running.note = "IoU 0.5"
        clock.now += 50
        running.advance(100)
    assert capsys.readouterr().err == "training: 900 of 1000 in 50 s, about 50 s left, IoU 0.5\n"


def test_the_time_left_follows_the_effort_where_steps_are_unequal(clock: Clock, capsys) -> None:
    with Progress("study", 10) as running:
        clock.now += 50
        running.effort = 100.0, 20.0
        running.advance(2)
    assert capsys.readouterr().err == "study: 2 of 10 in 50 s, about 10 s left\n"


def test_an_unknown_number_of_steps(clock: Clock, capsys) -> None:
    with Progress("predicting", None) as running:
        for _ in range(3):
            clock.now += 9
            running.advance(2)
    assert capsys.readouterr().err == "predicting: 4 in 18 s\n"


def test_a_terminal_gets_a_bar_with_the_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for key, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(key, value)
    with Progress("[/] measuring", 8) as running:
        clock.now += 3
        running.advance(2)
        running.print("a line above it")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "[/] measuring" in plain
    assert "2 of 8 in 3 s, about 9 s left" in plain
    assert "a line above it\n" in plain


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (8.2, "9 s"),
        (60, "1 min"),
        (150, "2 min 30 s"),
        (3599.5, "1 h"),
        (3900, "1 h 5 min"),
        (90000, "25 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
