"""Finished runs as one page, by the command line and section by section."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from batches import batch_of
from browser import Browser
from commands import ROOT, TINY, finish, start
from matplotlib.backends.backend_agg import FigureCanvasAgg
from reporting.test_page import Explored, explorer
from torch import nn

from bevreshape.analysis.costs import ring
from bevreshape.analysis.permutation import PermutedReshaper
from bevreshape.config.load_model import load_model
from bevreshape.console import log_to_stderr
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.model import BEVModel
from bevreshape.report import read_arguments
from bevreshape.reporting import overview
from bevreshape.reporting.comparison_page import stored_comparisons
from bevreshape.reporting.explore import fit_explorer, view
from bevreshape.reporting.explorer import choose_cells
from bevreshape.reporting.explorer_data import explorer_data
from bevreshape.reporting.report import other_runs, write_report
from bevreshape.reporting.reported_model import first_batch
from bevreshape.reporting.runs import grouped, read_runs
from bevreshape.reshapers import MLP, CrossAttention, FeatureShape

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as if it had been swept over two seeds and two jitters, with other scores."""
    folder = tmp_path_factory.mktemp("sweep")
    for jitter in (0.0, 2.0):
        for seed in (0, 1):
            run = folder / f"{jitter}-{seed}"
            shutil.copytree(trained, run)
            config = yaml.safe_load((run / "config.yaml").read_text())
            config["seed"] = seed
            config["data"]["jitter"]["yaw_deg"] = jitter
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            metrics = json.loads((run / "metrics.json").read_text())
            metrics["test/iou/mean"] = 0.5 - 0.1 * jitter + 0.02 * seed
            (run / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_page_of_a_sweep(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_report([sweep], out, samples=1, cells=3, probes=1)
    page = out.read_text()
    for title in ("Results", "Learning curves", "Cost against IoU", "IoU against data.jitter.yaw_deg", "Explorer"):
        assert f">{title}<" in page
    assert "0.510 ± 0.014" in page
    assert "0.310 ± 0.014" in page
    assert "https://" not in page.replace("http://www.w3.org", "")


def test_command(trained: Path, tmp_path: Path) -> None:
    arguments = [str(trained), "out=one.html", "samples=1", "cells=2", "probes=1"]
    ended = subprocess.run(
        [sys.executable, "-m", "bevreshape.report", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "one.html" in ended.stdout
    assert (tmp_path / "one.html").stat().st_size > 50_000


def test_curves_have_a_point_a_validation_and_sweeps_a_point_a_value(sweep: Path) -> None:
    rows = grouped(read_runs(sweep))
    assert sorted(len(runs) for runs in rows) == [2, 2]
    drawn = overview.curves(rows)
    assert drawn is not None
    axes = drawn.charts[0].figure.axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2]  # validated twice in 8 steps
    (swept,) = overview.sweeps(rows)
    axes = swept.charts[0].figure.axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.0, 2.0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.51, 0.31])


def test_error_messages(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run below it"):
        write_report([tmp_path], tmp_path / "x.html", samples=1, cells=2, probes=1)


def test_axes_that_were_swept_together_are_one(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "together"
    shutil.copytree(sweep, folder)
    for path in folder.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["data"]["jitter"]["pitch_deg"] = config["data"]["jitter"]["yaw_deg"] / 2
        path.write_text(yaml.safe_dump(config))
    (swept,) = overview.sweeps(grouped(read_runs(folder)))
    assert swept.title == "IoU against data.jitter.pitch_deg"
    assert "Swept together with it: data.jitter.yaw_deg" in swept.text
    assert len(swept.charts[0].figure.axes[0].lines[0].get_xdata()) == 2


def test_unreadable_run_is_named_and_others_are_reported(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "pruned"
    shutil.copytree(sweep, folder)
    (folder / "2.0-0" / "checkpoints" / "best.ckpt").unlink()
    (folder / "0.0-0" / "history.csv").unlink()
    log_to_stderr()
    write_report([folder], tmp_path / "page.html", samples=1, cells=2, probes=1)
    said = capsys.readouterr().err
    assert "Not compared: mlp-synthetic yaw_deg=2.0" in said
    assert "best.ckpt" in said
    assert "Not compared: mlp-synthetic yaw_deg=2.0" in (tmp_path / "page.html").read_text()
    for path in folder.glob("*/checkpoints/best.ckpt"):
        path.unlink()
    with pytest.raises(InputError, match="no run can be shown"):
        write_report([folder], tmp_path / "page.html", samples=1, cells=2, probes=1)


def test_incompatible_runs_are_left_out_and_reported() -> None:
    whole = explorer(1)
    size = len(json.dumps(explorer_data(whole)))
    found, remarks = fit_explorer(whole, size)
    assert (found, remarks) == (whole, [])
    found, remarks = fit_explorer(whole, size - 1)
    assert len(found.scenes) == 1
    assert all(len(one.views) == 1 for one in found.entries)
    assert "1 of 2 samples" in remarks[0]
    rows, cols = found.entries[0].cells.rows, found.entries[0].cells.cols
    thinner, remarks = fit_explorer(whole, len(json.dumps(explorer_data(found))) - 1)
    for old, new in zip(found.entries, thinner.entries, strict=True):
        assert (new.cells.rows, new.cells.cols) == (rows[::2], cols[::2])
        weights = {query: old.views[0]["in order"].heads[:, i] for i, query in enumerate(old.cells.queries.tolist())}
        for i, query in enumerate(new.cells.queries.tolist()):
            torch.testing.assert_close(new.views[0]["in order"].heads[:, i], weights[query])
    assert "every 2nd cell" in remarks[0]
    for size in (int(len(json.dumps(explorer_data(thinner))) * 0.9**power) for power in range(1, 30)):
        last, remarks = fit_explorer(whole, size)
        if len(last.entries) == 1:
            break
    assert [one.name for one in last.entries] == ["ipm"]
    assert remarks[-1].endswith("noise.")
    with pytest.raises(InputError, match="set cells= to fewer"):
        fit_explorer(whole, 1000)


def test_runs_of_comparisons_are_not_reported_twice(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparisons"
    shutil.copytree(sweep, folder / "one" / "runs")
    shutil.copytree(sweep / "0.0-0", folder / "another-run")
    apart = [folder / "one"]
    assert [run.folder.name for run in other_runs(folder, apart)] == ["another-run"]
    assert other_runs(folder / "one", apart) == []
    shutil.rmtree(folder / "another-run")
    assert other_runs(folder, apart) == []
    assert len(other_runs(folder, [])) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no finished run below it"):
        other_runs(tmp_path / "empty", apart)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("name: x\n", "comparison.yaml, or the records next to it, are damaged"),
        ("a: [1\n", "is damaged or no YAML"),
        ("reshapers: 3\n", r"are damaged \(TypeError"),
    ],
)
def test_damaged_comparisons_are_named(settings: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.yaml").write_text(settings)
    with pytest.raises(InputError, match=says):
        stored_comparisons([tmp_path])


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_weights_of_permuted_tokens_are_at_their_image_positions(kind: str) -> None:
    torch.manual_seed(0)
    grid, source = BEVGrid((0, 4), (-2, 2), 1.0), FeatureShape(3, 4, 6)
    inner = (
        MLP(source, grid, activation="none")
        if kind == "mlp"
        else CrossAttention(source, grid, dim=8, heads=2, token_encoding="learned")
    )
    order = torch.randperm(24)
    model = BEVModel(nn.Identity(), inner, {"segmentation": nn.Conv2d(inner.out_channels, 1, 1)}).eval()
    rig = ring(1, (4, 6), 1, torch.device("cpu"))
    sample = batch_of(torch.rand(1, 1, 3, 4, 6), rig)
    cells = choose_cells(grid, 4)
    found = view(model, PermutedReshaper(inner, order), sample, cells, 1).heads.flatten(2)  # kinds q t
    if kind == "mlp":
        weight = inner.layers[0].weight[0].abs()  # q t
        for place in range(24):
            at = order.tolist().index(place)  # where the token of this place comes to stand
            torch.testing.assert_close(found[0, :, place] / found[0].sum(), weight[:, at] / weight.sum())
        return
    assert found.shape == (4, 16, 24)
    shuffled = sample.images.flatten(3)[..., order].view_as(sample.images)
    matrix = inner.attention_weights(shuffled, rig)[0].flatten(2)  # a q t
    for place in range(24):
        at = order.tolist().index(place)
        torch.testing.assert_close(found[2:, :, place], matrix[:, :, at])
        torch.testing.assert_close(found[1, :, place], matrix[:, :, at].mean(0))


def test_page_of_ipm_shows_the_true_projection(worlds: Path, tmp_path: Path, browser: Browser) -> None:
    arguments = [*TINY, "reshaper=ipm", f"data.root={worlds}", "data.calibration=exact", "hydra.run.dir=run"]
    ended = finish(start("train", *arguments, cwd=tmp_path))
    assert ended.code == 0, ended.err
    write_report([tmp_path / "run"], tmp_path / "page.html", samples=1, cells=4, probes=4)
    (run,) = read_runs(tmp_path / "run")
    batch = first_batch(run, 1)
    k, pose = (stored[0, 0].double().numpy() for stored in (batch.cameras.intrinsics, batch.cameras.ego_from_cam))
    model, frame, _ = load_model(str(run.checkpoint))
    source = model.reshaper.source
    page = Explored(
        browser.open(tmp_path / "page.html"), SimpleNamespace(entries=[SimpleNamespace(cells=None)], grid=frame.grid)
    )
    compared = 0
    for x, y in choose_cells(frame.grid.coarsen(2), 4).centers.tolist():
        u, v, depth = k @ (np.linalg.inv(pose) @ [x, y, 0, 1])[:3]
        page.point_at_ground(x, y)
        heat = page.heat_over_images()[0]
        if depth > 0 and 0 <= u / depth < 63 and 0 <= v / depth < 31:
            row, col = np.unravel_index(heat.argmax(), heat.shape)
            at = np.array([col, row]) * source.stride + source.offset_px
            assert np.abs(at - [u / depth, v / depth]).max() <= source.stride
            compared += 1
    assert compared >= 6
    assert page.page.events("Runtime.exceptionThrown") == []


def test_arguments_are_folders_and_options_alike_those_of_other_commands(tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    folders, options = read_arguments([str(tmp_path / "lr=0.1"), "out=a.html", "samples=2", "trust=[mine,yours]"])
    assert folders == [tmp_path / "lr=0.1"]
    assert options == {"out": "a.html", "samples": 2, "cells": 20, "probes": 2, "trust": ["mine", "yours"]}
    for argument, words in {
        "sampels=2": "did you mean samples",
        "samples=0": "samples=0 must be an integer from 1 to 1024",
        "nowhere": "there is no such folder",
        "cells=-1": "cells=-1 must be an integer from 1 to 1024",
        "probes=two": "probes='two' must be an integer",
        "out=": "out='' is not a path; name a file",
    }.items():
        with pytest.raises(InputError, match=words):
            read_arguments([str(tmp_path), argument])
    with pytest.raises(InputError, match="no folder is named"):
        read_arguments(["out=a.html"])


def test_a_folder_may_have_the_name_of_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("out", "samples", "cells", "probes", "trust")
    for name in names:
        Path(name).mkdir()
    folders, options = read_arguments([*names, "samples=2"])
    assert folders == [Path(name) for name in names]
    assert options["samples"] == 2


@pytest.fixture(scope="module")
def unlike(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten runs of several kinds, classes and loggers, whose configs differ in dozens of settings."""
    folder = tmp_path_factory.mktemp("unlike")
    for number in range(10):
        run = folder / str(number)
        shutil.copytree(trained, run)
        config = yaml.safe_load((run / "config.yaml").read_text())
        kind = ("mlp-synthetic", "mlp-other", "cost-$x_{$ y")[number % 3]
        config |= {"name": f"{kind}-seed0", "logger": {"name": f"logger{number}", "tags": [number]}}
        config["optimizer"] |= {"lr": 0.01 * (number + 1), "weight_decay": number / 100}
        config["trainer"] |= {"max_steps": 100 + number, "val_check_interval": 10 + number}
        config["encoder"]["name"] = f"{'a_rather_long_name_of_an_encoder_' * 2}{number}"
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        metrics = json.loads((run / "metrics.json").read_text())
        metrics |= {"test/iou/mean": 0.5 + number / 100, **{f"test/iou/class number {i}": i / 20 for i in range(9)}}
        metrics["test/iou/lane"] = None
        (run / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def page_of_unlike(unlike: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_report([unlike], out, samples=1, cells=2, probes=1)
    return out


def test_a_report_on_unlike_runs_names_them_by_what_differs_and_never_by_loggers(page_of_unlike: Path) -> None:
    page = page_of_unlike.read_text()
    assert "logger3" not in page
    for name in ("mlp-synthetic lr=0.01", "mlp-other lr=0.02", "cost-$x_{$ y lr=0.03"):
        assert f'<td data-label="run">{name}</td>' in page


@pytest.mark.parametrize("width", [1280, 390])
def test_report_on_unlike_runs_fits_the_screen(page_of_unlike: Path, browser: Browser, width: int) -> None:
    page = browser.open(page_of_unlike, width=width)
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('thead, .plain thead, #panels') && "
        "getComputedStyle(e).position !== 'absolute' && e.getBoundingClientRect().right > "
        "document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 99))"
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_legends_and_labels_lie_within_their_figures(unlike: Path) -> None:
    drawn = overview.curves(grouped(read_runs(unlike)))
    assert drawn is not None
    figure = drawn.charts[0].figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(canvas.get_renderer()), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert figure.axes[0].get_window_extent().width > 0.7 * whole.width
    assert len(legend.get_texts()) == 10
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == 10
