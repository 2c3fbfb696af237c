"""Cases: commands with changed arguments, and commands that read changed files."""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import mutations
import numpy as np
import torch
import yaml
from commands import TINY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from mutations import SMALL, TYPED
from omegaconf import OmegaConf

from bevreshape.config.build_data import build_data
from bevreshape.config.compose import plain_config
from bevreshape.config.load_model import load_model
from bevreshape.config.paths import conf_dir
from bevreshape.config.settings import OF_THE_COMMAND
from bevreshape.console import run_script
from bevreshape.data.batch import collate
from bevreshape.experiments.levels import StudyPlan
from bevreshape.pretrained import PretrainedBEVModel
from bevreshape.reporting.runs import read_runs
from bevreshape.training.validate_config import validate_config

FREE = (
    "data.classes",
    "data.splits",
    "data.targets",
    "reshapers",
    "objective.segmentation.terms",
    "trainer",
    "logger",
    "hydra",
)
"""Groups in which names that are not in the config may mean something."""

COSTLY = (
    "max_steps",
    "max_epochs",
    "scenes",
    "generation_workers",
    "repeats",
    "threads",
    "devices",
    "num_nodes",
    "hydra",
    "samples",
)
"""Keys that only ask for more work, in runs that really take place."""

GROUPS = {
    "reshaper": [path.stem for path in sorted((conf_dir() / "reshaper").glob("*.yaml"))],
    "head": ["conv", "pyramid"],
    "objective": ["bce", "bce_dice", "bce_focal", "dice", "focal"],
    "augment": ["none", "photometric", "full"],
    "logger": ["none", "csv"],
}


class InsaneResult(Exception):
    """A command ended well but left nonsense."""


@dataclass(frozen=True)
class Box:
    """What all cases read and none may change.

    Attributes:
        base: the folder of everything.
    """

    base: Path

    @property
    def run(self) -> Path:
        """A finished run."""
        return self.base / "run"

    @property
    def checkpoint(self) -> Path:
        """Its best checkpoint."""
        return self.run / "checkpoints" / "best.ckpt"

    @property
    def frames(self) -> Path:
        """A camera folder with labels, BEV labels and boxes."""
        return self.base / "frames"

    @property
    def worlds(self) -> Path:
        """The cache of generated scenes."""
        return self.base / "worlds"


@dataclass
class Attempt:
    """One thing to try.

    Attributes:
        changes: what was changed, in words.
        call: does it with those changes whose numbers are given, in the current folder; a text is a refusal.
        must_refuse: whether ending well is a failure.
    """

    changes: list[str]
    call: Callable[[Sequence[int]], str | None]
    must_refuse: bool = False
    notes: list[str] = field(default_factory=list)


def command(name: str, arguments: Sequence[str], main: Callable[..., Any] | None = None) -> str | None:
    """Run ``python -m bevreshape.NAME`` in this process; the refusal, or ``None`` where it ended well.

    Args:
        name: the command.
        arguments: of its command line.
        main: replaces the function of the command.

    Raises:
        RuntimeError: for a traceback, or an exit code that stands for neither.
    """
    module = import_module(f"bevreshape.{name}")
    sys.argv = [f"bevreshape.{name}", *arguments]
    GlobalHydra.instance().clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            module.command(*(() if main is None else (main,)))
        except SystemExit as end:
            code = int(end.code or 0)
    said = err.getvalue()
    if "Traceback" in said or code not in (0, 1, 2, 3) or (code and not said.strip()):
        raise RuntimeError(f"exit code {code}\n{said[-4000:]}")
    return said.strip() if code else None


def script(name: str, arguments: Sequence[str]) -> str | None:
    """Run ``python tools/NAME.py`` likewise."""
    module = import_module(name)
    sys.argv = [f"{name}.py", *arguments]
    GlobalHydra.instance().clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run_script(module.main)
        except SystemExit as end:
            code = int(end.code or 0)
    if code and not err.getvalue().strip():
        raise RuntimeError(f"exit code {code} without a word")
    return err.getvalue().strip() if code else None


def written(value: Any) -> str:
    """A value as Hydra's command line takes it; some texts are left unquoted, as people type them."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{written(str(k))}:{written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


def leaves_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every key of a config, groups too, with its value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        found[path] = value
        if isinstance(value, dict):
            found |= leaves_of(value, f"{path}.")
    return found


def composed(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The keys of a command's config."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose(name, list(arguments)), resolve=False)
    return leaves_of(config)


def own_keys(name: str) -> dict[str, Any]:
    """The keys that a command's own file has, where its groups are made when it starts."""
    config = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{name}.yaml"), resolve=False)
    return {key: value for key, value in leaves_of(config).items() if not key.startswith(("hydra", "defaults"))}


def override(random: Random, keys: dict[str, Any], pool: tuple[Any, ...]) -> tuple[str, bool]:
    """An argument of the command line, and whether it must be refused."""
    usable = [key for key in keys if pool is not SMALL or not any(word in key for word in COSTLY)]
    key = random.choice(usable)
    free = key.startswith(FREE) or any(key == group for group in FREE)
    kind = random.random()
    if kind < 0.7:
        given = keys[key]
        changed = mutations.value(random, given, pool)
        if isinstance(changed, str) and changed and random.random() < 0.3:
            return f"{key}={changed}", False
        return f"{key}={written(changed)}", False
    if kind < 0.85:
        parent, _, last = key.rpartition(".")
        missed = ".".join(part for part in (parent, mutations.near_miss(random, last)) if part)
        sign = random.choice(["", "+", "++"])
        known = missed in keys or missed in GROUPS or missed in ("experiment", "data", "resume")
        return f"{sign}{missed}={written(keys[key])}", not free and not known
    if kind < 0.9:
        return f"~{key}", False
    if kind < 0.95:
        return f"{random.choice(['', '+', '++'])}{key}.{random.choice(['x', '0', '_target_'])}=1", False
    group = random.choice(list(GROUPS))
    return f"{group}={mutations.near_miss(random, random.choice(GROUPS[group]))}", False


def arguments(random: Random, keys: dict[str, Any], pool: tuple[Any, ...]) -> tuple[list[str], bool]:
    """One to three overrides."""
    drawn = [override(random, keys, pool) for _ in range(random.choice([1, 1, 2, 3]))]
    return [argument for argument, _ in drawn], any(refused for _, refused in drawn)


def picked(items: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Some of them."""
    return [items[number] for number in numbers]


def train_checks(random: Random, box: Box) -> Attempt:
    """All that a training checks before it begins."""
    choices = [f"{group}={random.choice(names)}" for group, names in GROUPS.items() if random.random() < 0.5]
    tiny = [argument for argument in TINY[:-1] if not ("head=pyramid" in choices and argument.startswith("head."))]
    base = [*tiny, *choices, f"data.root={box.worlds}", "hydra.run.dir=run"]
    if random.random() < 0.3:
        choices.append("data=folder")
        base = [argument for argument in base if not argument.startswith(("data.scenes", "data.generation_workers"))]
        base += ["data=folder", f"data.root={box.frames}", "data.grid.forward_m=[0,16]", "data.grid.left_m=[-8,8]"]
    changes, must_refuse = arguments(random, composed("train", base), TYPED)

    def checked(settings: dict[str, Any], folder: Path) -> None:
        validate_config({key: value for key, value in settings.items() if key not in OF_THE_COMMAND})

    def call(numbers: Sequence[int]) -> str | None:
        return command("train", [*base, *picked(changes, numbers)], checked)

    return Attempt(changes, call, must_refuse, choices)


def measured(name: str, base: list[str], changes: list[str], must_refuse: bool) -> Attempt:
    """A command that leaves metrics in ``run``."""

    def call(numbers: Sequence[int]) -> str | None:
        refusal = command(name, [*base, *picked(changes, numbers)])
        if refusal is None:
            check_metrics(Path("run/metrics.json"))
        return refusal

    return Attempt(changes, call, must_refuse)


def train_runs(random: Random, box: Box) -> Attempt:
    """A training of two steps, with its validation and test."""
    base = [
        *TINY,
        f"data.root={box.worlds}",
        "hydra.run.dir=run",
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
    ]
    changes, must_refuse = arguments(random, composed("train", base), SMALL)

    return measured("train", base, changes, must_refuse)


def evaluations(random: Random, box: Box) -> Attempt:
    """The checkpoint on its own data, or on the camera folder."""
    base = [f"checkpoint={box.checkpoint}", "trainer.accelerator=cpu", "hydra.run.dir=run"]
    config = yaml.safe_load((box.run / "config.yaml").read_text())
    stored = {f"data.{key}": value for key, value in leaves_of(config["data"]).items()}
    keys = {"split": "test", "drop_each_camera": False, "seed": 0, "checkpoint": str(box.checkpoint), **stored}
    changes, must_refuse = arguments(random, keys, SMALL)

    return measured("evaluate", base, changes, must_refuse)


def predictions(random: Random, box: Box) -> Attempt:
    """The checkpoint on the camera folder."""
    base = [f"checkpoint={box.checkpoint}", f"input={box.frames}", "device=cpu", "num_workers=0"]
    changes, must_refuse = arguments(random, composed("predict", base), SMALL)

    def call(numbers: Sequence[int]) -> str | None:
        refusal = command("predict", [*base, *picked(changes, numbers)])
        if refusal is None:
            check_predictions(Path())
        return refusal

    return Attempt(changes, call, must_refuse)


def exports(random: Random, box: Box) -> Attempt:
    """An export that is refused, or written and compared by the command itself."""
    base = [f"checkpoint={box.checkpoint}", "out=model.pt2", "format=pt2"]
    changes, must_refuse = arguments(random, composed("export", base), SMALL)
    return Attempt(changes, lambda numbers: command("export", [*base, *picked(changes, numbers)]), must_refuse)


def diagnoses(random: Random, box: Box) -> Attempt:
    """The smallest diagnosis."""
    base = [
        f"checkpoint={box.checkpoint}", "logger=none", "samples=2", "cells=1", "probes=1", "hydra.run.dir=run",
        "device=cpu",
        *(f"{group}={{}}" for group in ("errors", "rigs", "corruptions")),
    ]  # fmt: skip
    changes, must_refuse = arguments(random, own_keys("diagnose"), SMALL)
    return Attempt(changes, lambda numbers: command("diagnose", [*base, *picked(changes, numbers)]), must_refuse)


def benchmarks(random: Random, box: Box) -> Attempt:
    """Two cheap reshapers at one small size."""
    base = [
        "reshaper=[pool,mlp]", "features=[2,4]", "channels=4", "cells=[4,4]", "repeats=1", "batch=1", "device=cpu",
        "backward=false", "hydra.run.dir=run",
    ]  # fmt: skip
    changes, must_refuse = arguments(random, own_keys("benchmark"), SMALL)
    return Attempt(changes, lambda numbers: command("benchmark", [*base, *picked(changes, numbers)]), must_refuse)


def studies(random: Random, box: Box) -> Attempt:
    """What a study reads before it begins."""
    keys = {key: value for key, value in composed("study", []).items() if not key.startswith("hydra")}
    changes, must_refuse = arguments(random, keys, TYPED)

    def checked(settings: dict[str, Any], folder: Path) -> None:
        StudyPlan.read(settings["plan"])

    def call(numbers: Sequence[int]) -> str | None:
        return command("study", ["hydra.run.dir=run", *picked(changes, numbers)], checked)

    return Attempt(changes, call, must_refuse)


MARKS = ("302,608,6,1.75", "978,609,6,-1.75", "527,443,18,1.75", "753,443,18,-1.75", "640,500,10,0", "400,520,9.5,2")
"""Of calibrate_plane."""

ODD = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e308",
    "1e-308",
    "abc",
    "",
    "²",
    "--",
    "-h",
    "1,2",
    "1;2",
    "'",
    "99999999999999999999",
]
"""Values that command lines of tools may have instead of a number or a name."""


def _marked_points(random: Random, box: Box) -> list[str]:
    given = [
        ",".join(random.choice([part, part, part, random.choice(ODD)]) for part in mark.split(",")) for mark in MARKS
    ]
    random.shuffle(given)
    changed = ["--points", *given[: random.randrange(1, 7)]]
    intrinsics = [random.choice(["1158", "1158", random.choice(ODD)]) for _ in range(4)]
    return ["--intrinsics", *intrinsics, "--size", "720", "1280", "--out", "calibration.json", *changed]


def _marked_lines(random: Random, box: Box) -> list[str]:
    pixels = [",".join(mark.split(",")[:2]) for mark in MARKS]
    lines = [["--line", *random.sample(pixels, random.randrange(1, 4))] for _ in range(random.randrange(1, 4))]
    spacing = random.choice(["3.5", "3.5", random.choice(ODD)])
    given = ["--intrinsics", "1158", "1158", "640", "360", "--size", "720", "1280", "--out", "calibration.json"]
    return [*given, *(part for each in lines for part in each), "--spacing", spacing]


def _check_data(random: Random, box: Box) -> list[str]:
    grid = [random.choice([number, number, random.choice(ODD)]) for number in ("0", "20", "-10", "10", "0.5")]
    line = [str(box.frames), "--forward", *grid[:2], "--left", *grid[2:4], "--cell", grid[4]]
    more = [[], ["--frame", random.choice(["a", "c", *ODD])], ["--out", random.choice(["o.png", "no/o.png"])]]
    return line + random.choice(more)


def _view_batch(random: Random, box: Box) -> list[str]:
    samples, split = random.choice(["1", *ODD]), random.choice(["val", "train", "x"])
    data = ["data=folder", f"data.root={box.frames}", "data.classes=null", "data.grid.forward_m=[0,16]"]
    return [*data, "data.grid.left_m=[-8,8]", "--samples", samples, "--split", split]


def _compare_runs(random: Random, box: Box) -> list[str]:
    key = random.choice(["optimizer.lr", "nope", *ODD])
    return [str(box.run), *random.choice([[], ["--markdown"], ["--choose", key]])]


def _constant_map(random: Random, box: Box) -> list[str]:
    changes = arguments(random, composed("train", TINY), SMALL)[0]
    return [*TINY, f"data.root={box.worlds}", *changes]


TOOLS: dict[str, tuple[str, Callable[[Random, Box], list[str]]]] = {
    "points": ("calibrate_plane", _marked_points),
    "lines": ("calibrate_plane", _marked_lines),
    "check_data": ("check_data", _check_data),
    "view_batch": ("view_batch", _view_batch),
    "compare_runs": ("compare_runs", _compare_runs),
    "constant_map": ("constant_map", _constant_map),
}


def tool_arguments(random: Random, box: Box) -> Attempt:
    """Numbers and names on the command lines of tools."""
    name, make = TOOLS[random.choice(list(TOOLS))]
    line = make(random, box)

    def call(numbers: Sequence[int]) -> str | None:
        refusal = script(name, line)
        if name == "calibrate_plane":
            written_file = Path("calibration.json").exists()
            if written_file != (refusal is None) and "-h" not in line:
                raise InsaneResult(f"a file was {'' if written_file else 'not '}written, and it said {refusal}")
        return refusal

    return Attempt([f"tools/{name}.py {' '.join(line)}"], call)


def checkpoints(random: Random, box: Box) -> Attempt:
    """A damaged or hostile checkpoint, loaded alone or by a command."""
    given = box.checkpoint.read_bytes()
    kind = random.choice(["data", "archive", "tree", "tree", "tree", "tensor", "pickle"])
    target = Path("changed.ckpt")
    original = load_model(str(box.checkpoint))[0].state_dict()
    if kind == "data":
        content, description = mutations.data(random, given)
    elif kind == "archive":
        content, description = mutations.archive(random, given)
    else:
        content, description = changed_checkpoint(random, box.checkpoint, kind)
    reader = random.choice(["load_model", "load_model", "load_model", "predict", "evaluate", "export", "diagnose"])

    def call(numbers: Sequence[int]) -> str | None:
        target.write_bytes(content)
        if reader == "predict":
            return command("predict", [f"checkpoint={target}", f"input={box.frames}", "device=cpu", "num_workers=0"])
        if reader in ("evaluate", "diagnose", "export"):
            extra = {
                "evaluate": ["trainer.accelerator=cpu"],
                "export": ["format=pt2", "out=m.pt2"],
                "diagnose": ["logger=none"],
            }
            return command(reader, [f"checkpoint={target}", *extra[reader]], None if reader == "evaluate" else no_work)
        model = load_model(str(target))[0]
        if kind == "data":  # the archive's own check sums find every changed byte of a tensor
            loaded = model.state_dict()
            changed = [name for name, tensor in original.items() if not torch.equal(tensor, loaded[name])]
            if changed:
                raise InsaneResult(f"{changed[0]} was loaded with other values")
        if not all(torch.isfinite(one).all() for one in model.state_dict().values() if one.is_floating_point()):
            raise InsaneResult("weights that are not finite were loaded")
        return None

    return Attempt([f"{kind}: {description}, read by {reader}"], call, kind == "pickle")


def hub_folders(random: Random, box: Box) -> Attempt:
    """A damaged or hostile folder of ``format=hub``; the checksum of its weights is always right."""
    kind, seed = random.choice(["tree", "tree", "text", "weights"]), random.randrange(2**32)

    def call(numbers: Sequence[int]) -> str | None:
        PretrainedBEVModel.from_pretrained(box.checkpoint).save_pretrained("hub")
        config, weights, own = Path("hub", "config.json"), Path("hub", "model.safetensors"), Random(seed)
        stored = json.loads(config.read_text())
        if kind == "weights":
            weights.write_bytes(mutations.data(own, weights.read_bytes())[0])
            stored["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        elif kind == "tree":
            stored["bevreshape"], _ = mutations.tree(own, stored["bevreshape"])
        text = json.dumps(stored).encode()
        config.write_bytes(mutations.text(own, text)[0] if kind == "text" else text)
        model = load_model("hub")[0]
        if not all(torch.isfinite(one).all() for one in model.state_dict().values() if one.is_floating_point()):
            raise InsaneResult("weights that are not finite were loaded")
        return None

    return Attempt([f"{kind} of a folder for the hub, changed with seed {seed}"], call)


def no_work(settings: dict[str, Any], folder: Path) -> None:
    """Loads the checkpoint of a command and does nothing with it."""
    load_model(settings["checkpoint"], settings["trust"])


class Hostile:
    """An object whose unpickling makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def changed_checkpoint(random: Random, path: Path, kind: str) -> tuple[bytes, str]:
    """A checkpoint that torch itself has written, with something else in it."""
    content = torch.load(path, weights_only=True, map_location="cpu")
    if kind == "tree":
        content["bevreshape"], description = mutations.tree(random, content["bevreshape"])
    elif kind == "pickle":
        places = [("bevreshape",), ("bevreshape", "config"), ("bevreshape", "config", "encoder"), ("state_dict",), ()]
        parent = mutations.at(content, random.choice(places))
        key = random.choice(list(parent))
        parent[key], description = Hostile(), f"an object that calls os.mkdir at {key}"
    else:
        weights = content["state_dict"]
        name = random.choice(list(weights))
        one = weights[name]
        weights[name] = random.choice(
            [one.int(), one.double(), one.to(torch.complex64), one[None], one.flatten()[:0], one.expand(2, *one.shape),
            None, 3, "x", one.to_sparse()]
        )  # fmt: skip
        description = f"{name}: {str(weights[name])[:60]!r}"
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue(), description


def run_folders(random: Random, box: Box) -> Attempt:
    """A run folder with one of its files changed, read for tables or resumed."""
    name = random.choice(["config.yaml", "config.yaml", "metrics.json", "history.csv", "checkpoints/last.ckpt"])
    given = (box.run / name).read_bytes()
    if name == "config.yaml" and random.random() < 0.7:
        tree, description = mutations.tree(random, yaml.safe_load(given))
        content = yaml.safe_dump(tree, allow_unicode=True).encode()
    elif name == "metrics.json" and random.random() < 0.5:
        tree, description = mutations.tree(random, json.loads(given))
        content = json.dumps(tree).encode()
    elif name.endswith(".ckpt"):
        content, description = mutations.data(random, given)
    else:
        content, description = mutations.text(random, given)
    resumed = random.random() < 0.4

    def call(numbers: Sequence[int]) -> str | None:
        shutil.copytree(box.run, "copy")
        Path("copy", name).write_bytes(content)
        if resumed:
            return command("train", ["resume=copy"])
        read_runs(Path("copy"))
        return script("compare_runs", ["copy"])

    return Attempt([f"{name}: {description}, {'resumed' if resumed else 'read'}"], call)


def camera_folders(random: Random, box: Box) -> Attempt:
    """A camera folder with one of its files changed, read as training does or by a tool or command."""
    names = ["calibration.json", "calibration.json", "calibration.json", "images/a.png", "images/b.png", "labels/a.png"]
    name = random.choice([*names, "labels/b.png", "bev/a.png", "boxes/a.json", "splits/train.txt"])
    given = (box.frames / name).read_bytes()
    if name.endswith(".json") and random.random() < 0.75:
        tree, description = mutations.tree(random, json.loads(given))
        content = json.dumps(tree).encode()
    elif name.endswith((".json", ".txt")):
        content, description = mutations.text(random, given)
    else:
        content, description = mutations.image(random, given)
    place = random.choice(["", "", "", "", "", "", "fifo", "folder", "loop", "missing", "hidden"])
    reader = random.choice(["source", "source", "check_data", "predict"])

    def call(numbers: Sequence[int]) -> str | None:
        folder = Path("frames")
        shutil.copytree(box.frames, folder)
        path = folder / name
        if place:
            path.unlink() if place != "hidden" else None
        if place == "fifo":
            os.mkfifo(path)
        elif place == "folder":
            path.mkdir()
        elif place == "loop":
            path.symlink_to(path.name)
        elif place == "hidden":
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        elif not place:
            path.write_bytes(content)
        if reader == "check_data":
            return script("check_data", ["frames", "--out", "overlay.png"])
        if reader == "predict":
            arguments = [f"checkpoint={box.checkpoint}", "input=frames", "device=cpu", "num_workers=0"]
            refusal = command("predict", arguments)
            if refusal is None:
                check_predictions(Path())
            return refusal
        read_samples(folder)
        return None

    return Attempt([f"{name}: {place or description}, read by {reader}"], call)


def read_samples(folder: Path) -> None:
    """Every sample of a camera folder, with its target."""
    base = ["data=folder", f"data.root={folder}", "data.image_size=[32,64]", "loader.num_workers=0", "logger=none"]
    base += [
        "data.grid.forward_m=[0,16]",
        "data.grid.left_m=[-8,8]",
        "name=samples",
    ]  # its default asks a running Hydra
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        data = build_data(plain_config(compose("train", base)))
    data.source.prepare()
    for split in ("train", "val", "test"):
        for sample in data.source.split(split):  # type: ignore[attr-defined]
            batch = collate([sample])
            batch = data.source.make_targets(replace(batch, images=batch.images.float() / 255))
            segmentation = batch.targets["segmentation"]
            image, target, valid = batch.images, segmentation.value, segmentation.valid
            if image.shape[-2:] != (32, 64) or not ((image >= 0) & (image <= 1)).all():
                raise InsaneResult(f"an image of shape {tuple(image.shape)}, {image.min()} to {image.max()}")
            if target.dtype != torch.bool or target.shape != valid.shape or target.shape[-2:] != data.source.grid.shape:
                raise InsaneResult(f"a target of shape {tuple(target.shape)} and {target.dtype}")


def check_metrics(path: Path) -> None:
    """IoU are shares, and no figure is NaN or infinite."""
    text = path.read_text()
    if "NaN" in text or "Infinity" in text:
        raise InsaneResult(f"{path} holds NaN or infinity")
    metrics = json.loads(text)
    bad = [key for key, value in metrics.items() if "iou" in key and value is not None and not 0 <= value <= 1]
    if bad or not any("iou/mean" in key for key in metrics):
        raise InsaneResult(f"{path}: {bad or 'no mean IoU'}")


def check_predictions(folder: Path) -> None:
    """Probabilities are in 0..1, and every frame has its files, or there is a video."""
    found = list(folder.rglob("*.npz"))
    if not found and not list(folder.rglob("*_bev.mp4")):
        raise InsaneResult("nothing was predicted")
    for path in found:
        with np.load(path) as arrays:
            probabilities = arrays["probabilities"]
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise InsaneResult(f"{path} holds probabilities outside 0..1")
        for suffix in ("bev", "overlay"):
            if not path.with_name(f"{path.stem}_{suffix}.png").is_file():
                raise InsaneResult(f"{path.stem}_{suffix}.png is missing")


KINDS: dict[Callable[[Random, Box], Attempt], int] = {
    train_checks: 30, checkpoints: 15, camera_folders: 15, run_folders: 8, tool_arguments: 8, studies: 4,
    evaluations: 4, hub_folders: 6,
    predictions: 6, benchmarks: 4, train_runs: 3, exports: 2, diagnoses: 1,
}  # fmt: skip
"""What is tried, and how often among a hundred."""


UNCHANGED = (train_checks, train_runs, evaluations, predictions, exports, diagnoses, benchmarks, studies)
"""Whose commands end well where nothing is changed."""


def unchanged(number: int, box: Box) -> tuple[str, Attempt]:
    """A command as it stands, which must end well."""
    kind = UNCHANGED[number]
    attempt = kind(Random(number), box)

    def call(numbers: Sequence[int]) -> str | None:
        refusal = attempt.call([])
        if refusal is not None:
            raise InsaneResult(f"it was refused: {refusal}")
        return None

    return kind.__name__, Attempt(["nothing"], call, notes=attempt.notes)


def draw(random: Random, box: Box) -> tuple[str, Attempt]:
    """A case and its name."""
    (kind,) = random.choices(list(KINDS), list(KINDS.values()))
    return kind.__name__, kind(random, box)
