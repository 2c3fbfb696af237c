"""Test that runs are named by their distinguishing settings."""

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from bevreshape.reporting import overview
from bevreshape.reporting.labels import distinguishing_settings, figure_text, labels
from bevreshape.reporting.runs import Run, differing, flattened, grouped

MLP = {"_target_": "bevreshape.reshapers.MLP", "hidden": []}
ATTENTION = {"_target_": "bevreshape.reshapers.CrossAttention", "heads": 4}
WORLD = {
    "_target_": "bevreshape.data.sources.synthetic.SyntheticSource",
    "scenes": {"train": 100},
    "jitter": {"yaw_deg": 0.0},
}
KITTI = {"_target_": "bevreshape.data.sources.kitti.benchmark.Kitti", "sequences": [1, 2, 3], "batch_size": 2}


def run(kind: str, reshaper: dict[str, Any], data: dict[str, Any], seed: int = 0, **settings: Any) -> Run:
    config = {"seed": seed, "name": f"{kind}-seed{seed}", "reshaper": reshaper, "data": data, **settings}
    return Run(
        Path("run"), kind, flattened(config), {"test/iou/mean": 0.5, "test/iou/$x_{$ y": 0.1, "test/iou/car": None}
    )  # type: ignore[arg-type]


def test_kinds_alone_name_runs_that_they_distinguish() -> None:
    lr = {"optimizer": {"lr": 0.1}}
    rows = grouped([run("mlp-synthetic", MLP, WORLD), run("attention-synthetic", ATTENTION, WORLD, **lr)])
    assert labels(rows) == ["mlp", "attention"]
    rows = grouped([run("mlp-synthetic", MLP, WORLD), run("attention-kitti", ATTENTION, KITTI)])
    assert labels(rows) == ["mlp-synthetic", "attention-kitti"]
    assert not any("scenes" in key or "sequences" in key or "heads" in key for key in differing(rows))


def test_fewest_settings_distinguish_the_rows_of_a_kind() -> None:
    def swept(kind: str, reshaper: dict[str, Any], yaw: float, rate: float) -> Run:
        data = {**WORLD, "jitter": {"pitch_deg": yaw / 2, "yaw_deg": yaw}}
        return run(kind, reshaper, data, optimizer={"lr": rate}, trainer={"max_steps": round(1000 * rate)})

    rows = grouped([swept("mlp", MLP, yaw, 0.1) for yaw in (0.0, 2.0)] + [swept("attention", ATTENTION, 0.0, 0.2)])
    assert labels(rows) == ["mlp pitch_deg=0.0", "mlp pitch_deg=1.0", "attention"]
    assert labels(rows, ["data.jitter.yaw_deg", "data.jitter.pitch_deg"]) == ["mlp", "mlp", "attention"]
    assert distinguishing_settings(rows)[1] == "pitch_deg=1.0, yaw_deg=2.0, lr=0.1, max_steps=100"


def test_loggers_and_drawings_make_no_other_run() -> None:
    watched = {"logger": {"_target_": "x.WandbLogger", "tags": ["a"]}, "log_images": {"num_samples": 1}}
    rows = grouped([run("mlp", MLP, WORLD, seed=0), run("mlp", MLP, WORLD, seed=1, **watched)])
    assert [len(runs) for runs in rows] == [2]
    assert labels(rows) == ["mlp"]


def test_long_values_are_cut_and_names_stay_different() -> None:
    rows = grouped([run("mlp", MLP, {**WORLD, "note": "x" * 80 + end}) for end in "ab"])
    assert labels(rows) == ["mlp", "mlp #2"]
    rows = grouped([run("mlp", MLP, {**WORLD, "note": start + "x" * 80}) for start in "ab"])
    assert labels(rows) == [f"mlp note={start}{'x' * 24}..." for start in "ab"]
    classes = [run("mine", one, WORLD) for one in (MLP, ATTENTION)]
    assert labels(grouped(classes)) == ["mine reshaper=mlp", "mine reshaper=cross_attention"]


@pytest.mark.parametrize("name", ["$x_{$ y", "a $5 b", "_hidden", "two\nlines", r"\frac{", "$$"])
def test_matplotlib_draws_any_name_as_it_is(name: str) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=figure_text(name))
    (text,) = axes.legend().get_texts()
    figure.savefig(io.BytesIO(), format="svg")
    shown, is_formula = text._preprocess_math(text.get_text())
    assert (shown.strip(), bool(is_formula)) == (" ".join(name.split()), False)


def test_results_have_a_column_of_differing_settings() -> None:
    rows = grouped(
        [run("mlp", MLP, WORLD), run("a", ATTENTION, WORLD, optimizer={"lr": 1}), run("b", MLP, {**WORLD, "x": 1})]
    )
    table = overview.results(rows).table
    assert table is not None
    assert table.columns == ("run", "seeds", "mean", "$x_{$ y", "car")
    assert table.rows[0] == ("mlp", "1", "0.500", "0.100", "")
