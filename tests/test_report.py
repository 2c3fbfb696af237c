"""Finished runs as one page, by the command line and section by section."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import ROOT

from bevreshape import report
from bevreshape.errors import InputError
from bevreshape.lab.runs import grouped, read_runs


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
    report.main([sweep], out, samples=1, cells=3, probes=1)
    page = out.read_text()
    for title in ("Results", "Learning curves", "Cost against IoU", "IoU against data.jitter.yaw_deg", "Explorer"):
        assert f">{title}<" in page
    assert "0.510 ± 0.014" in page
    assert "0.310 ± 0.014" in page
    assert "https://" not in page.replace("http://www.w3.org", "")


def test_command(trained: Path, tmp_path: Path) -> None:
    arguments = [str(trained), "--out", "one.html", "--samples", "1", "--cells", "2", "--probes", "1"]
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
    drawn = report.curves(rows)
    assert drawn is not None
    axes = drawn.charts[0].figure.axes[0]
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2]  # validated twice in 8 steps
    (swept,) = report.sweeps(rows)
    axes = swept.charts[0].figure.axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.0, 2.0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.51, 0.31])


def test_sentences(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--samples 0 must be at least 1"):
        report.main([sweep], tmp_path / "x.html", samples=0, cells=2, probes=1)
    with pytest.raises(InputError, match="no finished run below it"):
        report.main([tmp_path], tmp_path / "x.html", samples=1, cells=2, probes=1)
