"""Private functions of libraries exist, their fallbacks have the same result, and only ``ops`` uses them."""

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import bevreshape
from bevreshape.ops import flops, internals, memory
from bevreshape.ops.flops import count_flops
from bevreshape.ops.internals import archive_offsets, drop_wandb_setting, lerp_all_, operations_are_watched
from bevreshape.ops.memory import peak_bytes
from bevreshape.ops.probe import probed


def test_a_probe_runs_once_and_outside_the_callers_modes() -> None:
    made = []

    def attempt() -> bool:
        made.append(torch.is_grad_enabled())
        return bool((torch.ones(4, 4) @ torch.ones(4, 4)).sum() == 64)

    probe = probed(attempt)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert probe()
        assert probe()
    assert made == [True]
    assert counter.get_total_flops() == 0


def test_probe_of_a_removed_function_is_none() -> None:
    assert probed(lambda: torch.ops.aten.no_such_kernel(1))() is None
    with pytest.raises(ZeroDivisionError):  # not an error of an older torch
        probed(lambda: 1 / 0)()


def test_watched_operations_are_recognised() -> None:
    assert internals._watchers() is not None
    assert not operations_are_watched()
    with FlopCounterMode(display=False):
        assert operations_are_watched()
    with torch.autograd.forward_ad.dual_level():
        assert operations_are_watched()
    seen = []
    vmap(lambda x: seen.append(operations_are_watched()) or x)(torch.ones(2))
    assert seen == [True]
    assert not operations_are_watched()


def test_operations_are_watched_without_the_private_functions(monkeypatch) -> None:
    monkeypatch.setattr(internals, "_watchers", lambda: None)
    assert operations_are_watched()


def test_lerp_all_equals_lerp_of_each(monkeypatch) -> None:
    assert internals._foreach_lerp() is not None
    torch.manual_seed(0)
    start, targets = ([torch.randn(size) for size in ((3, 4), (700,), (1,))] for _ in range(2))
    many, each = ([x.clone() for x in start] for _ in range(2))
    for share in (1.0, 0.3, 1e-3):
        lerp_all_(many, targets, share)
        with monkeypatch.context() as patch:
            patch.setattr(internals, "_foreach_lerp", lambda: None)
            lerp_all_(each, targets, share)
        assert all(torch.equal(x, y) for x, y in zip(many, each, strict=True))


def test_archive_offsets_equal_zipfile(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "two.ckpt"
    torch.save({"a": torch.ones(5), "b": torch.zeros(70)}, path)
    with path.open("rb") as file:
        offsets = archive_offsets(file)
        assert offsets is not None
        content = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            assert {f"two/{name}" for name in offsets} == set(archive.namelist())
            for name, start in offsets.items():
                data = archive.read(f"two/{name}")
                assert content[start : start + len(data)] == data
        monkeypatch.delattr(torch._C, "PyTorchFileReader")
        assert archive_offsets(file) is None


def test_deprecated_wandb_setting_is_dropped() -> None:
    lightning = pytest.importorskip("lightning.pytorch.loggers")
    pytest.importorskip("wandb")
    logger = lightning.WandbLogger(offline=True, project="mine")
    drop_wandb_setting(logger, "anonymous")
    assert "anonymous" not in logger._wandb_init
    assert logger._wandb_init["project"] == "mine"
    drop_wandb_setting(object(), "anonymous")


@pytest.mark.parametrize("name", flops.FORMULAS)
def test_counted_kernels_exist_in_torch(name: str) -> None:
    assert hasattr(torch.ops.aten, name)


def test_missing_kernels_are_not_counted(monkeypatch) -> None:
    monkeypatch.setitem(flops.FORMULAS, "no_such_kernel", lambda *_, **__: 1)
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_peak_bytes_of_known_tensors(monkeypatch) -> None:
    assert memory.trace_is_readable()

    def call() -> None:
        kept = torch.ones(1000, dtype=torch.float64)
        torch.ones(4000)
        F.relu(kept)

    assert peak_bytes(call, torch.device("cpu")) == 8000 + 16000
    monkeypatch.setattr(memory, "trace_is_readable", lambda: None)
    assert peak_bytes(call, torch.device("cpu")) != peak_bytes(call, torch.device("cpu"))  # NaN


ALLOWED = {
    "os._exit": "is documented: it ends a process without cleanup",
}
"""Public names that begin with an underscore."""

NAMED_TUPLE = {"_replace", "_fields", "_asdict"}
"""Documented methods of named tuples; they begin with an underscore to avoid the names of fields."""


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every access to a private attribute or module, except through ``self``."""
    defined = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and node.attr not in defined | NAMED_TUPLE:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops":
            yield node.lineno, "torch.ops"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for name in (*(node.module or "").split("."), *(alias.name for alias in node.names)):
                if _is_private(name):
                    yield node.lineno, f"{node.module}.{name}"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if any(map(_is_private, a.name.split("."))))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(name, str) and _is_private(name):
                yield node.lineno, f"getattr {name}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_private_names_are_used_in_ops_only() -> None:
    package = Path(bevreshape.__file__).parent
    found = [
        f"{path.relative_to(package)}:{line}: {name}"
        for path in sorted(package.rglob("*.py"))
        if path.parent.name != "ops"
        for line, name in private_names(ast.parse(path.read_text(encoding="utf-8")))
        if name not in ALLOWED
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["import torch._dynamo", "from torch._C import x", "from torch.x import _y", "torch._C.f()", "torch.ops.aten.x",
     "getattr(logger, '_x', 1)", "self.schedule._step = 1\nx._other"],
)  # fmt: skip
def test_private_names_are_found(text: str) -> None:
    assert list(private_names(ast.parse(text)))
