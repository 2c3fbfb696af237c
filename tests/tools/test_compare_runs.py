"""Test that runs of several seeds form a row, and that the best setting on validation is kept."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from bevreshape.errors import InputError

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def compare_runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("compare_runs")


def leave(folder: Path, kind: str, seed: int, lr: float, iou: float, loss: float = 1.0, **reshaper: object) -> None:
    folder.mkdir(parents=True)
    config = {
        "name": f"{kind}-seed{seed}",
        "seed": seed,
        "optimizer": {"lr": lr},
        "reshaper": {"_target_": kind, **reshaper},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"test/iou/mean": iou, "test/iou/car": iou / 2, "test/iou/car/0-10m": 1.0, "val/loss": loss}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_seeds_are_one_row_with_mean_and_deviation(compare_runs, tmp_path: Path, capsys) -> None:
    for seed, iou in enumerate((0.1, 0.2, 0.6)):
        leave(tmp_path / f"a{seed}", "mlp", seed, 0.001, iou)
    leave(tmp_path / "b", "ipm", 0, 0.001, 0.5, heights=2)
    compare_runs.compare([tmp_path], None, True)
    assert capsys.readouterr().out.splitlines() == [
        "| run | seeds | mean | car |",
        "|---|---|---|---|",
        "| ipm | 1 | 0.500 | 0.250 |",
        "| mlp | 3 | 0.300 ± 0.265 | 0.150 ± 0.132 |",
    ]


def test_where_and_how_a_seed_ran_makes_no_row_of_its_own(compare_runs, tmp_path: Path, capsys) -> None:
    """What may change when a run resumes, and the devices, which it may not."""
    elsewhere = {
        "data": {"root": "b", "prepared": "s3://b/x", "generation_workers": 2}, "loader": {"num_workers": 2},
        "trainer": {"accelerator": "cpu", "devices": 2, "log_every_n_steps": 7, "enable_progress_bar": False},
        "logger": {"project": "x"}, "log_images": {"num_samples": 1}, "checkpoint_every_n_steps": 3,
    }  # fmt: skip
    for seed, iou in enumerate((0.1, 0.2)):
        leave(tmp_path / f"a{seed}", "mlp", seed, 0.001, iou)
    path = tmp_path / "a1" / "config.yaml"
    begun = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(begun | elsewhere))
    compare_runs.compare([tmp_path], None, True)
    assert capsys.readouterr().out.splitlines()[2:] == ["| mlp | 2 | 0.150 ± 0.071 | 0.075 ± 0.035 |"]
    path.write_text(yaml.safe_dump(begun | elsewhere | {"loader": {"batch_size": 2}}))
    compare_runs.compare([tmp_path], None, True)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_best_on_validation_is_chosen_not_the_best_on_test(compare_runs, tmp_path: Path, capsys) -> None:
    leave(tmp_path / "low", "mlp", 0, 0.001, 0.4, loss=0.7)
    leave(tmp_path / "high", "mlp", 0, 0.01, 0.5, loss=0.9)
    leave(tmp_path / "other", "ipm", 0, 0.01, 0.3, loss=2.0)
    compare_runs.compare([tmp_path], "optimizer.lr", True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run | optimizer.lr | seeds | mean | car |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| mlp", "0.001"], ["| ipm", "0.01"]]


def test_options_of_a_reshaper_distinguish_its_rows(compare_runs, tmp_path: Path, capsys) -> None:
    leave(tmp_path / "a", "mlp", 0, 0.001, 0.4, rank=8)
    leave(tmp_path / "b", "mlp", 0, 0.001, 0.5, rank=16)
    compare_runs.compare([tmp_path], None, True)
    assert "| run | reshaper.rank | seeds |" in capsys.readouterr().out


def test_one_line_errors(compare_runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished run below it"):
        compare_runs.compare([tmp_path], None, False)
    leave(tmp_path / "a", "mlp", 0, 0.001, 0.4)
    leave(tmp_path / "b", "mlp", 0, 0.001, 0.5)
    with pytest.raises(InputError, match=r"seeds \[0, 0\] occur more than once"):
        compare_runs.compare([tmp_path], None, False)
    with pytest.raises(InputError, match=r"--choose lr: mlp has no such setting"):
        compare_runs.compare([tmp_path / "a"], "lr", False)
    (tmp_path / "a" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml is missing or not a file"):
        compare_runs.compare([tmp_path / "a"], None, False)
