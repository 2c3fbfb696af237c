"""Table, charts and README of a comparison."""

import csv
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from comparison.outcomes import FAMILY, candidate, failed, family, outcome, waiting
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from bevreshape.comparison.answer import find_answer
from bevreshape.comparison.outcome import Outcome
from bevreshape.comparison.pareto import AXES, CostAxis, pareto_front
from bevreshape.comparison.sentence import answer_sentence
from bevreshape.reporting.comparison import print_comparison, write_comparison
from bevreshape.reporting.comparison_sections import finding_sections, method_sections
from bevreshape.reporting.page import Report, write
from bevreshape.reporting.pareto import CHOICE, DOMINATED, FRONT, pareto_chart, pareto_points

LIMITED = family(3, latency_ms=5.0, memory_mb=60.0, parameters=1e6)


def whole(**limits: float) -> Outcome:
    """A comparison with candidates of every kind."""
    found = family(3, **limits)
    others = (failed("mine.Broken", "diverged at step 12"), waiting("later"), candidate("dark", [0.5] * 3, ms=None))
    return replace(found, candidates=(*found.candidates, *others), missing=3)


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
@pytest.mark.parametrize("limits", [{}, {"latency_ms": 5.0, "memory_mb": 60.0, "parameters": 1e6}])
def test_labels_of_charts_overlap_nothing(axis: CostAxis, limits: dict[str, float]) -> None:
    found = family(3, **limits)
    figure = pareto_chart(found, find_answer(found), axis)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = figure.axes[0].texts
    assert sorted(text.get_text() for text in texts if text.get_text() in FAMILY) == sorted(FAMILY)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    for a, b in combinations(boxes, 2):
        assert min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
    assert figure.get_figwidth() <= 390 / 96  # of a phone, at its own size


def test_chart_shows_front_choice_seeds_and_limit() -> None:
    answer = find_answer(LIMITED)
    figure = pareto_chart(LIMITED, answer, AXES[0])
    assert figure is not None
    (axes,) = figure.axes
    points = {point.name: point for point in pareto_points(answer, AXES[0])}
    front = pareto_front({name: (point.cost, point.iou) for name, point in points.items()})
    drawn = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])): line
        for line in axes.lines
        if line.get_marker() in "oD"
    }
    assert answer.choice is not None
    for name, point in points.items():
        line = drawn[point.cost, point.iou]
        expected = CHOICE if name == answer.choice.name else FRONT if name in front else DOMINATED
        assert line.get_markeredgecolor() == expected
        within = FAMILY[name][2] <= 5 and FAMILY[name][3] <= 1e6 and 20 + 8 * FAMILY[name][2] <= 60
        assert (line.get_color() != "white") == within
    spans = {tuple(np.round(segment[:, 1], 9)) for group in axes.collections for segment in group.get_segments()}
    assert spans == {tuple(np.round((min(point.seeds), max(point.seeds)), 9)) for point in points.values()}
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [5.0]
    assert "5 ms" in [text.get_text().strip() for text in axes.texts]


def test_colors_differ_for_the_color_blind() -> None:
    """In lightness too, and markers differ."""
    light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, (CHOICE, FRONT, DOMINATED)))
    assert min(np.diff(light)) > 0.02


@pytest.mark.parametrize(
    "found",
    [
        outcome(candidate("a", [0.5], ms=None)), outcome(candidate("a", [0.5])), outcome(failed("a", "diverged")),
        outcome(candidate("a", [0.5] * 2), candidate("b", [0.5] * 2)), outcome(), outcome(waiting("a"), missing=24),
        outcome(candidate("a", [0.5] * 2), candidate("b", [0.6] * 2, ms=None), latency_ms=2.0),
        outcome(candidate("$x_{$", [0.5] * 2), candidate("_b", [0.0] * 2, ms=1e-4)),
    ],
)  # fmt: skip
def test_small_comparisons_are_written(found: Outcome, tmp_path: Path) -> None:
    write_comparison(tmp_path, found)
    text = (tmp_path / "README.md").read_text()
    assert answer_sentence(found, find_answer(found)) in text
    assert not re.search(r"\bnan\b|\bNone\b(?! of)", text)


def test_readme_has_answer_first_and_every_part(tmp_path: Path) -> None:
    found = whole(latency_ms=5.0)
    write_comparison(tmp_path, found)
    text = (tmp_path / "README.md").read_text()
    parts = [
        answer_sentence(found, find_answer(found)), "## Candidates", "## Not ranked", "## IoU against cost",
        "## Classes", "## Distance", "## Robustness", "## Costs", "## Tuning", "## Protocol", "## How it is judged",
    ]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    for words in (
        "| bilinear | 10.1 ms is 5.1 ms above the limit of 5 ms |", "| mine.Broken | diverged at step 12 |",
        "| later |  |  | not done |", "| dark | its latency was not measured, and the limit is 5 ms |",
        "Not measured, compiled: no C++ compiler was found.", "lr=0.03: failed (100)", "| yaw 1° | without front |",
        f"```bash\n{found.command}\n```", "| limit of latency | 5 ms |",
    ):  # fmt: skip
        assert words in text
    images = re.findall(r'src="([^"]+)"', text)
    assert len(images) == 4
    for name in images:
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_csv_has_all_figures(tmp_path: Path) -> None:
    found = whole(latency_ms=5.0)
    write_comparison(tmp_path, found)
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["reshaper"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*FAMILY, "mine.Broken", "later", "dark"}
    for one in found.candidates:
        row = rows[one.name]
        assert int(row["seeds"]) == len(one.runs)
        for run in one.runs:
            assert float(row[f"iou/mean/seed{run.seed}"]) == pytest.approx(run.iou["mean"], abs=1e-5)
        if one.runs:
            mean = np.mean([run.iou["road"] for run in one.runs])
            assert float(row["iou/road"]) == pytest.approx(mean, abs=1e-5)
    assert rows["mine.Broken"]["notes"] == "diverged at step 12"
    assert float(rows["ipm"]["exported_ms"]) == 0.9
    assert (tmp_path / "table.md").read_text().count("\n") == len(rows) + 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_the_screen_with_the_answer_on_top(width: int, browser: Browser, tmp_path: Path) -> None:
    found = whole(latency_ms=5.0)
    answer = find_answer(found)
    sections = [*finding_sections(found, answer), *method_sections(found)]
    write(Report("Compared", answers=[answer_sentence(found, answer)], sections=sections), tmp_path / "page.html")
    page = browser.open(tmp_path / "page.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('thead') && "
        "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 99))"
    )
    assert wide == []
    assert page.evaluate("document.querySelector('.answer').textContent") == answer_sentence(found, answer)
    assert page.evaluate("document.querySelector('.answer').getBoundingClientRect().bottom") < 600
    scales = page.evaluate(
        "[...document.querySelectorAll('.charts img')].map(e => e.clientWidth / e.getAttribute('width'))"
    )
    assert len(scales) == 4
    assert min(scales) > 0.9  # letters keep their size
    assert page.events("Runtime.exceptionThrown") == []


@pytest.mark.parametrize(("width", "columns"), [(80, 6), (110, 6), (123, 10), (200, 10)])
def test_console_table_fits(
    width: int, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = whole(latency_ms=5.0)
    print_comparison(found)
    lines = capsys.readouterr().out.splitlines()
    framed = [line for line in lines if line.startswith(("│", "┃", "┏"))]
    assert max(map(len, framed)) <= width
    assert framed[0].count("┳") == columns - 1
    assert "over 5 ms: " in lines[-3]
    assert "bilinear 10.1 ms" in lines[-3]
    assert lines[-2:] == ["mine.Broken failed: diverged at step 12", answer_sentence(found, find_answer(found))]
