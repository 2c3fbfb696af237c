"""Imports: Hydra only under ``config/``, no circles, and heavy packages only when needed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT

OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

COMMANDS = ("train", "evaluate", "predict", "export", "benchmark", "diagnose", "study", "compare", "report")

HEAVY = ("torch", "lightning", "kornia", "wandb", "timm", "torchvision", "matplotlib", "scipy", "optuna")
"""Packages that ``--help`` must not wait for."""

WORK = "the work of a command, which loads torch; --help and --cfg do without"
OPTIONAL = "an extra that may not be installed"

LATE = {
    ("bevreshape/train.py", "bevreshape.training.run"): WORK,
    ("bevreshape/evaluate.py", "bevreshape.training.evaluate"): WORK,
    ("bevreshape/evaluate.py", "bevreshape.training.hardware"): WORK,
    ("bevreshape/evaluate.py", "bevreshape.training.launch"): WORK,
    ("bevreshape/evaluate.py", "bevreshape.training.sharding"): WORK,
    ("bevreshape/predict.py", "bevreshape.deployment.predict"): WORK,
    ("bevreshape/export.py", "bevreshape.deployment.export"): WORK,
    ("bevreshape/benchmark.py", "bevreshape.analysis.benchmark"): WORK,
    ("bevreshape/benchmark.py", "bevreshape.reporting.benchmark"): WORK,
    ("bevreshape/benchmark.py", "bevreshape.reporting.machine_results"): WORK,
    ("bevreshape/diagnose.py", "bevreshape.analysis.diagnose_checkpoint"): WORK,
    ("bevreshape/diagnose.py", "bevreshape.reporting.diagnosis"): WORK,
    ("bevreshape/study.py", "bevreshape.experiments.run_study"): WORK,
    ("bevreshape/compare.py", "bevreshape.comparison.run_comparison"): WORK,
    ("bevreshape/report.py", "bevreshape.reporting.report"): WORK,
    ("bevreshape/config/options.py", "fsspec"): "not needed for --help",
    ("bevreshape/storage/object_store.py", "fsspec"): "not needed for --help",
    ("bevreshape/ops/shards.py", "torch.distributed.tensor"): "slow, and needed by a sharded model only",
    ("bevreshape/config/checkpoint_data.py", "bevreshape.storage.checkpoint"): WORK,
    ("bevreshape/data/sources/nuscenes/maps.py", "cv2"): OPTIONAL,
    ("bevreshape/data/sources/nuscenes/maps.py", "shapely"): OPTIONAL,
    ("bevreshape/data/sources/nuscenes/maps.py", "shapely.geometry.polygon"): OPTIONAL,
    ("bevreshape/data/sources/nuscenes/source.py", "cv2"): OPTIONAL,
    ("bevreshape/data/sources/nuscenes/tables.py", "nuscenes.map_expansion.map_api"): OPTIONAL,
    ("bevreshape/data/sources/nuscenes/tables.py", "nuscenes.nuscenes"): OPTIONAL,
    ("bevreshape/data/video.py", "av"): OPTIONAL,
    ("bevreshape/data/sources/nuscenes/tables.py", "nuscenes.utils.splits"): OPTIONAL,
    ("bevreshape/ops/internals.py", "torch.utils._python_dispatch"): "private; probed where it is used",
    ("bevreshape/storage/lock.py", "fcntl"): "not on Windows",
    ("bevreshape/training/mlflow_run.py", "mlflow"): OPTIONAL,
    ("bevreshape/training/mlflow_run.py", "mlflow.exceptions"): OPTIONAL,
    ("bevreshape/training/mlflow_run.py", "sqlalchemy.exc"): OPTIONAL,
}
"""Imports inside functions, and why they are not at the top."""


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in (ROOT / "bevreshape").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, and whether that is inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module), id(node) in inside


def test_hydra_and_omegaconf_are_imported_under_config_alone() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in MODULES.values()
        for name, _ in imports(path)
        if name.partition(".")[0] in ("hydra", "omegaconf")
    }
    assert found
    assert {name for name in found if not name.startswith("bevreshape/config/")} == set()


def test_imports_inside_functions_are_listed_with_a_reason() -> None:
    found = {
        (str(path.relative_to(ROOT)), name) for path in MODULES.values() for name, inside in imports(path) if inside
    }
    assert found == set(LATE)


def test_no_circular_imports() -> None:
    """Also not by imports inside functions."""
    graph = {
        name: {imported for imported, _ in imports(path) if imported in MODULES and imported != name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join([*way[way.index(name) :], name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def loaded(code: str, *arguments: str, cwd: Path) -> set[str]:
    """Heavy packages that are loaded where some code has run."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in "
                               f"sys.modules))", *arguments],
        cwd=cwd, env={key: value for key, value in os.environ.items() if key not in OPENMP} | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(ended.stdout.splitlines()[-1].split())


RUN = """
import runpy
name = sys.argv.pop(1)
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code
import os
assert {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys(), "OpenMP is to be told before torch is loaded"
"""


@pytest.mark.slow
def test_the_package_loads_nothing(tmp_path: Path) -> None:
    assert loaded("import bevreshape", cwd=tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_nothing_heavy(name: str, tmp_path: Path) -> None:
    assert loaded(RUN, f"bevreshape.{name}", "--help", cwd=tmp_path) == set()


@pytest.mark.slow
def test_a_composed_config_is_printed_without_anything_heavy(tmp_path: Path) -> None:
    assert loaded(RUN, "bevreshape.train", "--cfg", "job", cwd=tmp_path) == set()
