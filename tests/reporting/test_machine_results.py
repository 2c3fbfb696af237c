"""Costs by machine: rows of the benchmark and of a comparison, kept between runs, and two machines compared."""

import csv
import re
from pathlib import Path
from typing import Any

import compare_machines
import pytest
import torch
from commands import Command

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.compose import compose_training
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reporting.machine_results import (
    CASE,
    MEASURED,
    add_results,
    compared,
    comparison_rows,
    mean_ratio,
    read_results,
    results_path,
)

CPU = torch.device("cpu")


def row(**values: Any) -> dict[str, Any]:
    """Return a row of the file; what is not given is empty."""
    return {**dict.fromkeys((*CASE, *MEASURED), ""), **values}


def test_the_benchmark_keeps_a_row_for_every_case(command: Command, tmp_path: Path) -> None:
    arguments = ["features=[4,6]", "cells=[8,8]", "channels=8", "repeats=1", "backward=false", "results=kept"]
    rate = "reshapers.cross_attention.kernel=linear"
    first = command("benchmark", "reshaper=mlp,cross_attention", rate, *arguments, "threads=1", "hydra.run.dir=a")
    second = command("benchmark", "reshaper=mlp", "batch=[1,2]", *arguments, "threads=1", "hydra.run.dir=b")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    (path,) = (tmp_path / "kept").glob("*.csv")
    assert re.fullmatch(r"benchmark-[a-z0-9-]+-\d+cores-float32\.csv", path.name)
    assert path.name in second.out
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(one["reshaper"], one["batch"]) for one in found] == [("mlp", "1"), ("cross_attention", "1"), ("mlp", "2")]
    assert "kernel=linear" in found[1]["options"].split()
    mlp = found[2]
    shapes = {"image_size": "32x48", "features": "8x4x6", "grid": "8x8", "subject": "reshaper", "form": "eager"}
    assert shapes.items() <= mlp.items()
    assert (int(mlp["parameters"]), int(mlp["flops"])) == (24 * 64 + 64, 2 * 2 * 8 * 24 * 64)
    assert float(mlp["samples_per_s"]) == pytest.approx(2 / (float(mlp["forward_ms"]) / 1e3), rel=2e-3)
    assert (mlp["step_ms"], mlp["threads"], mlp["torch"]) == ("", "1", torch.__version__)


def test_a_comparison_has_a_row_for_every_form_of_a_model() -> None:
    config = compose_training(["reshaper=pool", "encoder.channels=8", "logger=none"])
    cost = {"parameters": 7, "flops": 9, "latency_ms": {"eager": 4.0, "exported": 2.0}, "memory_mb": 1.5}
    spec = BEVSpec(BEVGrid((0, 48), (-24, 24), 2.0), ("a",), ("left", "right"), (32, 64))
    eager, exported = comparison_rows({"costs": {"pool": cost}, "load": 1.5}, {"pool": config}, spec, CPU)
    assert (eager["form"], exported["form"]) == ("eager", "exported")
    assert (exported["forward_ms"], exported["samples_per_s"], exported["memory_mb"]) == (2.0, 500.0, None)
    assert (eager["image_size"], eager["cameras"], eager["grid"], eager["load"]) == ("32x64", 2, "24x24", 1.5)
    assert "channels=8" in eager["encoder"]
    assert eager["subject"] == "model"


def test_another_precision_is_another_file(tmp_path: Path) -> None:
    names = {results_path(tmp_path, CPU, precision).name for precision in ("32-true", "bf16-mixed")}
    assert {name.rpartition("-")[2] for name in names} == {"float32.csv", "bfloat16.csv"}


def test_two_machines_share_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    add_results(first, [row(reshaper=name, threads=2, forward_ms=time) for name, time in (("mlp", 4.0), ("ipm", 1.0))])
    rows = [row(reshaper="mlp", threads=threads, forward_ms=time) for threads, time in ((1, 3.0), (8, 2.0))]
    rows += [row(reshaper=name, forward_ms=time, memory_mb=3.0) for name, time in (("ipm", 2.0), ("pool", 1.0))]
    add_results(second, rows)
    pairs = compared(read_results(first), read_results(second))
    assert [(ours["reshaper"], ratio) for ours, _, ratio in pairs] == [("mlp", 0.5), ("ipm", 2.0)]
    assert mean_ratio(pairs) == pytest.approx(1.0)
    compare_machines.compare(first, second, markdown=True)
    printed = capsys.readouterr().out
    assert "pool" not in printed
    assert "geometric mean of 2 ratios: 1.00" in printed


def test_files_without_a_common_case(tmp_path: Path) -> None:
    add_results(tmp_path / "a.csv", [row(reshaper="mlp", forward_ms=1.0)])
    add_results(tmp_path / "b.csv", [row(reshaper="ipm", forward_ms=1.0)])
    with pytest.raises(InputError, match="no case in common"):
        compare_machines.compare(tmp_path / "a.csv", tmp_path / "b.csv", markdown=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("forward_ms", "ms"), "no column forward_ms"),
        (lambda text: text + "mlp,1\n", "line 3 is no row"),
        (lambda text: text.replace("1.25", "-1"), "line 2 is no row"),
        (lambda text: text.replace("mlp", '"mlp'), "no CSV"),
    ],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, change: Any, words: str) -> None:
    path = tmp_path / "a.csv"
    add_results(path, [row(reshaper="mlp", forward_ms=1.25)])
    path.write_text(change(path.read_text()))
    before = path.read_text()
    with pytest.raises(InputError, match=words):
        add_results(path, [row(reshaper="ipm", forward_ms=1.0)])
    assert path.read_text() == before
