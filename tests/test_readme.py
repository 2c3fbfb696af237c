"""The commands, Python code, links and options in the READMEs are valid."""

import argparse
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import ROOT, finish, start, without

from bevreshape.analysis.costs import ring
from bevreshape.cli import COMMANDS
from bevreshape.config.arguments import Parser
from bevreshape.errors import InputError
from bevreshape.model import BEVModel
from bevreshape.reshapers import FeatureShape

CONF = ROOT / "conf"
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for top in ("README.md", "data/README.md", "conf/CLUSTERS.md", "bevreshape", "conf", "tests", "tools")
    for page in ([ROOT / top] if top.endswith(".md") else sorted((ROOT / top).rglob("README.md")))
    if "results" not in page.parts  # the study writes that one
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
PROGRAM = r"(?:python|pytest) (?:-m [\w.]+|tools/\w+\.py|tests/[\w/.]+)[^`]*"
OWN = r"[=,](mine|archive)\."
"""The reader's own modules, which commands name."""
ADDED = ("data.classes.", "data.splits.", "data.visibility", "hydra.", "reshaper.gain", "trainer.num_nodes")
"""Keys that no YAML has: names of the user's, those added with ``+``, Hydra's."""


def blocks(page: str, *languages: str) -> list[str]:
    """The code blocks of these languages, without their indentation in lists."""
    found = FENCE.findall(PAGES[page])
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, kind, code in found if kind in languages]


def block(page: str, language: str, part: str) -> str:
    """The one block that holds ``part``."""
    (found,) = (code for code in blocks(page, language) if part in code)
    return found


def prose(page: str) -> str:
    """A page without its blocks of code, comments and what the study writes."""
    return re.sub(r"<!-- study: begin.*?study: end -->", "", FENCE.sub("", PAGES[page]), flags=re.DOTALL)


def inline(page: str) -> list[str]:
    """Code within paragraphs and tables, which may be broken between lines."""
    return re.findall(r"`([^`]+)`", " ".join(prose(page).split()))


def commands() -> Iterator[tuple[str, str]]:
    """Every command of every page, as (page, command)."""
    for page in PAGES:
        shell = "\n".join(blocks(page, "bash", "")).replace("\\\n", " ")
        lines = [re.sub(r" +#.*", "", line) for line in shell.splitlines()]
        for text in [*lines, *inline(page)]:
            text = re.sub(rf"^bevreshape ({'|'.join(COMMANDS)})", r"python -m bevreshape.\1", text)
            if found := re.search(PROGRAM, text):
                yield page, " ".join(found[0].split())


LINES = sorted(set(commands()))


class ParsedError(Exception):
    """A command line was understood; the script is not begun."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts stop after their arguments."""
    for name in ("parse_args", "parse_intermixed_args"):

        def parsed(self: Parser, original: str = name) -> None:
            raise ParsedError(getattr(argparse.ArgumentParser, original)(self))

        monkeypatch.setattr(Parser, name, parsed, raising=False)


def lines_of(pattern: str) -> list[str]:
    """Commands that begin so."""
    return sorted({line for _, line in LINES if re.match(pattern, line)})


@pytest.mark.parametrize("line", lines_of(r"pytest "))
def test_named_tests_exist(line: str) -> None:
    (path,) = re.findall(r"tests/[\w/.]+", line)
    words = re.findall(r'-k "?([\w ]+)"?', line)
    names = re.findall(r"def test_(\w+)", (ROOT / path).read_text()) if words else []
    assert (ROOT / path).exists()
    assert all(any(word in name for name in names) for word in words for word in word.split(" or "))


@pytest.mark.parametrize("line", lines_of(r"python tools/"))
def test_scripts_understand_their_arguments(line: str, parse_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, script, *arguments = shlex.split(line)
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("line", lines_of(r"python -m bevreshape\.\w+\."))
def test_modules_understand_their_arguments(line: str, parse_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, module, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(ParsedError):
        import_module(f"{module}.__main__").main()


@pytest.mark.parametrize("line", lines_of(r"python -m bevreshape\.report "))
def test_the_report_is_written(line: str, trained: Path, tmp_path: Path) -> None:
    arguments = [part for part in shlex.split(line)[3:] if not part.startswith(("runs/", "sweeps/", "comparisons/"))]
    ended = finish(start("report", str(trained), *arguments, cwd=tmp_path))
    assert ended.code == 0, ended.err
    assert (tmp_path / "report.html").exists()


def filled(arguments: list[str], trained: Path) -> list[str]:
    """Arguments with their placeholders replaced, and of several values of a sweep the first."""
    several = "-m" in arguments
    found = []
    for part in arguments:
        if part in ("…", "-m"):
            continue
        if part.startswith("checkpoint="):
            part = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
        elif part.startswith("resume="):
            part = f"resume={trained}"
        elif several:
            part = re.sub(r"^([\w.]+=[^\[{,]*),.*$", r"\1", part)
        found.append(part.replace("reshaper=…", "reshaper=mlp"))
    return found


@pytest.mark.parametrize("line", lines_of(rf"python -m bevreshape\.(?!report)\w+( |$)(?!.*{OWN})"))
def test_commands_compose(command, trained: Path, line: str) -> None:
    if (plugin := re.search(r"hydra/(?:launcher|sweeper)=([a-z]+)", line)) and not any(
        plugin[1] in entry.name for entry in distributions() if (entry.name or "").startswith("hydra-")
    ):
        pytest.skip(f"Hydra's plugin for {plugin[1]} is not installed")
    module, *arguments = shlex.split(line)[2:]
    arguments = filled(arguments, trained)
    shows = [] if {"--help", "--cfg"} & {*arguments} else ["--cfg", "job"]
    ended = command(module.removeprefix("bevreshape."), *shows, *arguments)
    assert ended.code == 0, ended.err
    for key in re.findall(r"^\+?([a-z_.]+)(?==)", "\n".join(arguments), re.MULTILINE):
        assert key.split(".")[-1] in ended.out or key.startswith(("experiment", "hydra."))


def keys() -> set[str]:
    """Every key of every command and group."""

    def flat(prefix: str, node: object) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from flat(f"{prefix}{key}.", value)

    found: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        group = path.relative_to(CONF).parent.as_posix()
        if not group.startswith("experiment"):
            found |= {*flat("" if group == "." else f"{group}.", yaml.safe_load(path.read_text()))}
    return found | {path.name for path in CONF.iterdir() if path.is_dir()}


@pytest.mark.parametrize("page", PAGES)
def test_named_options_exist(page: str) -> None:
    known = keys()
    groups = {key.partition(".")[0] for key in known if "." in key}
    named = set()
    for code in inline(page):
        named |= {*re.findall(r"(?:^|[ ~+])([a-z_]+(?:\.[a-z_]+)+)=", code)}
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", code) and code.split(".")[0] in groups:
            named.add(code)
    named = {re.sub(r"^reshapers\.[a-z_]+\.", "reshaper.", key) for key in named}
    assert not {key for key in named - known if not key.startswith(ADDED)}


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, "bevreshape/experiments/results/full/README.md"])
def test_links_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    shown = {"mine.py", "archive.py", "segmentation.py", "main.py"}  # the reader's own
    written = {"config.yaml", "mine.yaml"}
    for name in {code for code in inline(page) if re.fullmatch(r"[\w/]+\.(py|yaml|toml)", code)} - shown - written:
        assert ((ROOT / page).parent / name).exists() or (ROOT / name).exists(), name


def test_the_first_page_is_one_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_prose_are_short(page: str) -> None:
    assert [line for line in prose(page).splitlines() if len(line) > 140 and not line.startswith("|")] == []


def test_the_table_has_every_built_in_reshaper_and_no_other() -> None:
    table = PAGES["README.md"].split("| `reshaper=` |")[1].split("\n\n")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert named == {path.stem for path in (CONF / "reshaper").glob("*.yaml")}


@pytest.mark.parametrize("group", sorted(path.name for path in CONF.iterdir() if path.is_dir()))
def test_groups_are_all_listed(group: str) -> None:
    if group in ("experiment", "plan"):
        return  # no group of the main job
    listed_elsewhere = {"reshaper": "README.md", "loader": "conf/README.md"}
    (row,) = re.findall(rf"^\| `{group}` \|(.*)$", PAGES["conf/README.md"], re.MULTILINE)
    for path in (CONF / group).glob("*.yaml"):
        assert f"`{path.stem}`" in (PAGES[listed_elsewhere[group]] if group in listed_elsewhere else row)


def test_tools_are_all_listed() -> None:
    scripts = {path.name for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text()}
    table = PAGES["tools/README.md"].partition("|---|---|\n")[2].partition("\n\n")[0]
    assert scripts == {name for row in table.splitlines() for name in re.findall(r"`(\w+\.py)`", row.split("|")[1])}


def installed(project: Path, modules: dict[str, str], entry_points: str = "") -> Path:
    """Install a package of these modules and entry points with pip; the folder to be put on ``PYTHONPATH``."""
    project.mkdir()
    for name, code in modules.items():
        (project / name).write_text(code)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n'
        '[project]\nname = "mine"\nversion = "1"\n\n'
        f"[tool.hatch.build.targets.wheel]\ninclude = {[*modules]}\n\n{entry_points}"
    )
    site = project / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(project)], check=True)
    return site


@pytest.mark.slow
def test_your_own_reshaper_trains_as_described(worlds: Path, tmp_path: Path) -> None:
    code = block("README.md", "python", "(Reshaper)")
    assert len(code.strip().splitlines()) <= 15
    site = installed(tmp_path / "mine", {"mine.py": code}, block("conf/README.md", "toml", "bevreshape.reshapers"))
    (path,) = (line for page, line in LINES if page == "README.md" and "mine.ColumnMean" in line)
    by_path = shlex.split(path)[3:]
    assert "`reshaper=column_mean reshaper.gain=2`" in PAGES["conf/README.md"]
    by_name = ["reshaper=column_mean", "reshaper.gain=2"]
    environment = {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    for arguments in (by_path, by_name):
        tiny = [*without("trainer.max_steps"), "trainer.max_steps=1", f"data.root={worlds}"]
        ended = finish(start("train", *tiny, *arguments, cwd=tmp_path, environment=environment))
        assert ended.code == 0, ended.err


def write_archive(root: Path) -> None:
    """Four frames a split, as the own data set of the README stores them."""
    rig = ring(1, (64, 128), 2, torch.device("cpu"))
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        for number in range(4):
            images = torch.full((1, 3, 64, 128), 50 * number, dtype=torch.uint8)
            road = (torch.arange(32) < 8 * number).expand(1, 32, -1).clone()
            frame = {
                "images": images,
                "intrinsics": rig.intrinsics[0],
                "ego_from_cam": rig.ego_from_cam[0],
                "road": road,
            }
            torch.save(frame, root / split / f"{number:06d}.pt")


@pytest.mark.slow
def test_your_own_data_set_trains_as_described(tmp_path: Path) -> None:
    code = block("data/README.md", "python", "class Archive")
    assert len(code.strip().splitlines()) <= 30
    site = installed(tmp_path / "mine", {"archive.py": code})
    write_archive(tmp_path / "data/archive")
    (line,) = (line for page, line in LINES if page == "data/README.md" and "archive.Archive" in line)
    tiny = [argument for argument in without("trainer.max_steps") if not argument.startswith("data.")]
    tiny += ["trainer.max_steps=2", "trainer.val_check_interval=2", "loader.batch_size=2"]
    environment = {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    run = [*shlex.split(line)[3:], *tiny, "hydra.run.dir=run"]
    ended = finish(start("train", *run, cwd=tmp_path, environment=environment))
    assert ended.code == 0, ended.err
    assert "test/iou/road" in json.loads((tmp_path / "run/metrics.json").read_text())


def test_inference_in_plain_torch(trained: Path) -> None:
    code = block("bevreshape/README.md", "python", "load_model")
    rig = ring(1, (32, 64), 2, torch.device("cpu"))
    names = {"images": torch.rand(2, 1, 3, 32, 64), "intrinsics": rig.intrinsics, "ego_from_cam": rig.ego_from_cam}
    exec(code.replace("best.ckpt", str(trained / "checkpoints" / "best.ckpt")), names)
    assert names["probabilities"].shape == (2, 4, 16, 16)


def test_a_model_as_a_folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.ckpt").write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("bevreshape/README.md", "python", "from_pretrained"), names)
    assert len(names["model"].spec.classes) == 4
    assert {path.name for path in (tmp_path / "mlp_front").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def run_script(folder: Path, *arguments: str) -> None:
    """Run ``python NAME.py …`` there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_lightning_without_hydra(tmp_path: Path) -> None:
    code = block("bevreshape/README.md", "python", "Segmentation(LightningModule)")
    tiny = {
        "SyntheticSource()": 'SyntheticSource(scenes={"train": 8, "val": 4, "test": 4}, image_size=(32, 64))',
        "batch_size=16, num_workers=2": "batch_size=4",
        "max_steps=1000, val_check_interval=100": 'max_steps=2, val_check_interval=1, accelerator="cpu", logger=False',
    }
    for given, small in tiny.items():
        assert given in code
        code = code.replace(given, small)
    (tmp_path / "segmentation.py").write_text(code + '    assert 0 <= trainer.callback_metrics["val/iou/mean"] <= 1\n')
    run_script(tmp_path, "segmentation.py")
    imports = "\n".join(re.findall(r"^(?:from|import) bevreshape.*$", code, re.MULTILINE))
    run_script(tmp_path, "-c", f"{imports}\nimport sys\nassert not {{'hydra', 'omegaconf'}} & {{*sys.modules}}")


SMALL_WORLD = 'SyntheticSource(scenes={"train": 12, "val": 4, "test": 4}, image_size=(32, 64))'


@pytest.mark.slow
def test_resuming_in_plain_lightning(tmp_path: Path) -> None:
    """Eight steps at once, or three (in mid-epoch) and then the others, give the same weights."""
    code = block("bevreshape/README.md", "python", "ckpt_path=")
    assert "num_workers=2" in code
    assert "every_n_train_steps=100" in code
    small = 'accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=0, '
    code = (
        code.replace("SyntheticSource()", SMALL_WORLD)
        .replace("batch_size=16, num_workers=2", "batch_size=2")
        .replace("every_n_train_steps=100", "every_n_train_steps=1")
        .replace("max_steps=1000, ", f"max_steps=int(sys.argv[1]), {small}")
        .replace("trainer.fit(Segmentation(source)", "torch.manual_seed(0)\ntrainer.fit(Segmentation(source)")
    )
    segmentation = block("bevreshape/README.md", "python", "Segmentation(LightningModule)")
    for name, steps in (("whole", ("8",)), ("resumed", ("3", "8"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "segmentation.py").write_text(segmentation)
        (tmp_path / name / "resume.py").write_text(f"import sys\nimport torch\n{code}")
        for count in steps:
            run_script(tmp_path / name, "resume.py", count)
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=False) for name in ("whole", "resumed")
    )
    assert whole["global_step"] == resumed["global_step"] == 8
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key


def test_a_reshaper_brings_a_loss_of_its_own() -> None:
    names: dict[str, Any] = {}
    exec(block("bevreshape/README.md", "python", "forward_with_auxiliary"), names)
    reshaper = names["Sparse"](FeatureShape(3, 4, 8), (5, 6), weight=2.0)
    features = torch.randn(2, 1, 3, 4, 8)
    model = BEVModel(torch.nn.Identity(), reshaper, {"segmentation": torch.nn.Conv2d(3, 1, 1)})
    trained = model.train()(features)
    w, bias = reshaper.gate.weight.flatten().tolist(), reshaper.gate.bias.item()
    gates = [
        1 / (1 + math.exp(-(bias + sum(w[c] * features[b, 0, c, row, col].item() for c in range(3)))))
        for b in range(2)
        for row in range(4)
        for col in range(8)
    ]
    assert trained.auxiliary["sparsity"].item() == pytest.approx(2.0 * sum(gates) / len(gates), rel=1e-5)
    assert torch.equal(model.eval()(features).bev, trained.bev)
    assert model(features).auxiliary == {}
    with pytest.raises(InputError, match="features are 1 cameras × 3 channels × 4×4"):
        reshaper.train().forward_with_auxiliary(features[..., :4])


@pytest.mark.slow
def test_lightning_cli(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse", reason="LightningCLI needs pip install 'jsonargparse[signatures]'")
    for name, part in (("segmentation.py", "Segmentation(LightningModule)"), ("main.py", "LightningCLI")):
        (tmp_path / name).write_text(block("bevreshape/README.md", "python", part))
    (tmp_path / "mine.yaml").write_text(block("bevreshape/README.md", "yaml", "class_path"))
    (line,) = re.findall(r"`python (main.py [^`]*)`", PAGES["bevreshape/README.md"])
    world = ["--data.source.scenes={train: 8, val: 4, test: 4}", "--data.source.image_size=[32,64]"]
    tiny = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false", "--data.batch_size=4"]
    run_script(tmp_path, *shlex.split(line), *tiny, *world)
    assert "KernelAttention" in (tmp_path / "config.yaml").read_text()


def test_adapter_in_two_lines() -> None:
    names: dict[str, torch.Tensor] = {}
    exec(block("bevreshape/README.md", "python", "FeatureShape(64"), names)
    assert names["bev"].shape == (2, 64, 20, 20)
