"""The benchmark by its command line: cases, scaling, full models, and refused options."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import ROOT, finish, start
from PIL import Image

from bevreshape.reshapers import MLP

pytestmark = pytest.mark.slow

SMALL = ("features=[4,6]", "cells=[8,8]", "channels=8", "repeats=1", "hydra.run.dir=out")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "benchmark.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_listed_reshaper_on_every_listed_case(command, tmp_path: Path) -> None:
    ended = command("benchmark", "reshaper=mlp,ipm", "cameras=[1,6]", "precision=[32-true,bf16-mixed]", *SMALL)
    assert ended.code == 0, ended.err
    found = rows(tmp_path)
    assert [(r["reshaper"], r["cameras"], r["precision"]) for r in found] == [
        (name, cameras, precision)
        for cameras in "16"
        for precision in ("32-true", "bf16-mixed")
        for name in ("mlp", "ipm")
    ]
    assert [int(r["parameters"]) for r in found] == [24 * 64 + 64, 0] * 2 + [6 * (24 * 64 + 64), 0] * 2
    assert int(found[0]["flops"]) == 2 * 8 * 24 * 64
    with Image.open(tmp_path / "out" / "benchmark.png") as image:
        assert image.size[0] > 1000
    assert "mlp" in ended.out
    assert "GFLOP/s" in ended.out
    for cameras in "16":  # one page for every shape
        page = ended.out.split(f"1×{cameras}×8×4×6 → 8×8; ms forward")[1]
        assert "GB/s in copies" in page
        line = next(line for line in page.splitlines() if " mlp " in line)
        assert len(re.findall(r"\d+%", line)) == 2  # of the floor, in both precisions


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled(tmp_path: Path) -> None:
    """In a process of its own: torch cannot compile the checks of shapes."""
    arguments = ("reshaper=pool", "device=cpu", "compile=[false,true]", "backward=false", *SMALL)
    ended = finish(start("benchmark", *arguments, cwd=tmp_path))
    assert ended.code == 0, ended.err
    eager, compiled = rows(tmp_path)
    assert (eager["form"], compiled["form"]) == ("eager", "compiled")
    assert eager["flops"] == compiled["flops"]
    assert "compiled" in ended.out.split("ms forward")[1]


def test_all_reshapers(command, tmp_path: Path) -> None:
    ended = command("benchmark", "cells=[4,4]", *(a for a in SMALL if not a.startswith("cells")))
    assert ended.code == 0, ended.err
    names = {path.stem for path in (ROOT / "conf" / "reshaper").glob("*.yaml")}
    assert {r["reshaper"] for r in rows(tmp_path)} == names
    assert all(float(r["forward_s"]) > 0 and float(r["step_s"]) > 0 for r in rows(tmp_path))


def test_scaling_fits_an_exponent(command, tmp_path: Path) -> None:
    ended = command("benchmark", "reshaper=mlp,pool", "scaling=tokens", "factors=[1,4,16]", "backward=false", *SMALL)
    assert ended.code == 0, ended.err
    assert [int(r["width"]) for r in rows(tmp_path) if r["reshaper"] == "mlp"] == [6, 24, 96]
    assert "scaling with tokens" in ended.out
    line = next(line for line in ended.out.split("scaling with tokens")[1].splitlines() if " mlp " in line)
    exponents = [float(number) for number in re.findall(r"-?\d+\.\d+", line)]
    assert len(exponents) == 2  # time and memory, forward alone
    assert exponents[1] < 0.5  # what it writes is cells, which stay


def test_scaling_of_cells_keeps_the_area(command, tmp_path: Path) -> None:
    ended = command("benchmark", "reshaper=ipm", "scaling=cells", "factors=[1,2]", "backward=false", *SMALL)
    assert ended.code == 0, ended.err
    found = [(int(r["rows"]), int(r["cols"]), float(r["cell_m"])) for r in rows(tmp_path)]
    assert [found[0][0] * 2, found[0][1] * 2, found[0][2] / 2] == list(found[1])


def test_static_rig(command, tmp_path: Path) -> None:
    ended = command("benchmark", "reshaper=ipm,mlp", "static_rig=true", "backward=false", *SMALL)
    assert ended.code == 0, ended.err
    assert [r["reshaper"] for r in rows(tmp_path)] == ["ipm", "mlp"]


def test_options_of_a_reshaper_and_whole_models(command, tmp_path: Path) -> None:
    ended = command(
        "benchmark", "reshaper=cross_attention", "reshapers.cross_attention.dim=16", "full_model=true",
        "backward=false",
        "encoder.channels=8", "head.segmentation.channels=8", *SMALL,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "frames/s" in ended.out
    assert rows(tmp_path)[0]["step_s"] == "nan"


def test_unavailable_reshaper_is_left_out_with_its_reason(command, tmp_path: Path) -> None:
    ended = command("benchmark", "reshaper=mlp,cross_attention", "reshapers.cross_attention.dim=30", *SMALL)
    assert ended.code == 0, ended.err
    assert re.search(r"left out: .*choose a multiple of 4", " ".join(ended.out.split()))
    assert [r["reshaper"] for r in rows(tmp_path)] == ["mlp"]
    ended = command("benchmark", "reshaper=cross_attention", "reshapers.cross_attention.dim=30", *SMALL)
    assert ended.code == 1
    assert "no reshaper can be measured" in ended.err


def test_reshaper_out_of_memory_is_left_out(command, tmp_path: Path, monkeypatch) -> None:
    def full(self: MLP, features: object, cameras: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MLP, "reshape", full)
    ended = command("benchmark", "reshaper=mlp,pool", *SMALL)
    assert ended.code == 0, ended.err
    assert "left out: mlp: out of memory" in ended.out
    assert [r["reshaper"] for r in rows(tmp_path)] == ["pool"]


def test_full_models_are_labelled_by_their_features(command, tmp_path: Path) -> None:
    ended = command(
        "benchmark", "reshaper=pool", "full_model=true", "backward=false", "encoder.channels=5", "encoder.strides=[16]",
        "features=[8,16]", "cells=[8,8]", "repeats=1", "hydra.run.dir=out",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (row,) = rows(tmp_path)
    assert [row[key] for key in ("channels", "height", "width", "stride")] == ["5", "4", "8", "16"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reshaper=mpl",), ("mpl", "mlp")),
        (("cameras=0",), ("cameras=0", "integer from 1")),
        (("cells=[8]",), ("cells", "list of 2 integers")),
        (("precision=16-mixed",), ("16-mixed", "bf16-mixed")),
        (("scaling=time",), ("scaling='time'", "tokens")),
        (("scaling=cells", "cameras=[1,6]"), ("starts from one case",)),
        (("device=tpu",), ("device=tpu", "cpu")),
        (("device=cpu", "compile=cuda_graphs"), ("compile=cuda_graphs", "device=cpu", "compile=true")),
        (("compile=fast",), ("compile='fast'", "cuda_graphs")),
        (("scaling=tokens", "factors=4"), ("two different", "factors")),
        (("static_rig=true",), ("static_rig=true", "backward=false")),
        (("cell_m=abc",), ("cell_m='abc'", "a number from 0.001")),
        (("cameras=[]",), ("a list is empty", "cameras")),
    ],
)
def test_error_message(command, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    chosen = () if arguments[0].startswith("reshaper") else ("reshaper=pool",)
    ended = command("benchmark", *chosen, *arguments)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def test_options_of_a_reshaper_are_a_mapping(command) -> None:
    ended = command("benchmark", "reshaper=mlp", "++reshapers.x=1")
    assert (ended.code, "Traceback" in ended.err) == (1, False), ended.err
    assert "reshapers.x=1 must be a mapping" in ended.err
