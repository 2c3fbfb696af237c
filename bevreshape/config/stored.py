"""What checkpoints and run folders hold, read as plain values that nothing interprets.

Such a file may come from anywhere. Its values are compared with what bevreshape writes: mappings, lists, texts and numbers, no
text that Hydra or OmegaConf would resolve, and no class but those of an allow-list, each in its place.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from inspect import isclass
from pathlib import Path
from typing import Any

import yaml

from bevreshape.config.construct import TARGET, locate
from bevreshape.errors import InputError
from bevreshape.storage.files import parsed_mb

RESHAPERS = "bevreshape.reshapers"
"""Entry-point group in which other packages announce their reshapers."""

MOST_VALUES, MOST_DEPTH, MOST_CHARACTERS, MOST_BYTES = 100_000, 32, 100_000, 64 << 20
"""Of one stored config, text or file: far more than any that bevreshape writes, little enough to be read at once."""

MOST_YAML_BYTES, MOST_JSON_MB = 4 << 20, 100
"""Of a text in YAML, a megabyte of which is read in about a second, and of the memory that one in JSON takes when read."""

OBJECTIVES = tuple(f"bevreshape.objectives.{name}" for name in ("BCE", "CentersLoss", "Dice", "Focal", "WeightedSum"))

PLACES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("data",): (
        "bevreshape.data.sources.folder.FolderSource",
        "bevreshape.data.sources.kitti.KITTIObjectSource",
        "bevreshape.data.sources.kitti.KITTIRoadSource",
        "bevreshape.data.sources.nuscenes.NuScenesSource",
        "bevreshape.data.sources.synthetic.SyntheticSource",
    ),
    ("data", "grid"): ("bevreshape.geometry.BEVGrid",),
    ("augment",): ("bevreshape.data.augment.Augment",),
    ("encoder",): ("bevreshape.encoders.TimmEncoder",),
    ("reshaper",): tuple(
        f"bevreshape.reshapers.{name}"
        for name in (
            "IPM", "MLP", "Bilinear", "ColumnAttention", "ColumnMLP", "CrossAttention", "CrossViewAttention",
            "DeformableAttention", "KernelAttention", "LatentAttention", "LiftSplat", "MLPAttention", "Pool",
            "SelfAttention", "StridedConv",
        )
    ),
    ("head", "*"): ("bevreshape.heads.ConvHead", "bevreshape.heads.PyramidHead"),
    ("objective", "*"): OBJECTIVES,
    ("objective", "*", "terms", "*"): OBJECTIVES,
    ("metric", "*"): tuple(f"bevreshape.metrics.{name}" for name in ("BEVIoU", "ConditionIoU", "RoadMetric")),
    ("optimizer",): tuple(f"bevreshape.training.optimizer.{name}" for name in ("AdamWOneCycle", "TorchOptimizer")),
    ("optimizer", "optimizer"): tuple(
        f"torch.optim.{name}"
        for name in ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "ASGD")
    ),
    ("optimizer", "scheduler"): tuple(
        f"torch.optim.lr_scheduler.{name}"
        for name in (
            "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR",
            "MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR",
        )
    ),
    ("logger",): tuple(f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger", "WandbLogger")),
}  # fmt: skip
"""The classes that a stored config may name without being trusted, by their place in it; * is any name."""

GROUPS = tuple(dict.fromkeys(place[0] for place in PLACES))

LOGGER_OPTIONS = (
    "entity", "experiment", "flush_logs_every_n_steps", "group", "job_type", "log_model", "mode", "name", "notes", "prefix",
    "project", "sub_dir", "tags", "version",
)  # fmt: skip
"""Of a stored logger; others would let it write elsewhere, or send the user's key to another host."""


def read_trust(given: object) -> tuple[str, ...]:
    """The packages of ``trust=[a,b]`` or ``trust=a``.

    Raises:
        InputError: when it is neither a list nor one name of a package.
    """
    names = [given] if isinstance(given, str) else given
    if isinstance(names, list | tuple) and all(isinstance(name, str) and name.isidentifier() for name in names):
        return tuple(names)
    raise InputError(f"trust={given!r} must be a list of packages without dots, such as trust=[their_package]")


def typed_trust(arguments: Sequence[str]) -> tuple[str, ...]:
    """The packages of ``trust=…`` among the arguments of a command, before Hydra has read them."""
    typed = [argument.partition("=")[2] for argument in arguments if argument.lstrip("+").startswith("trust=")]
    try:
        return read_trust(yaml.safe_load(typed[-1]) or []) if typed else ()
    except yaml.YAMLError:
        raise InputError(f"trust={typed[-1]} is not understood; write trust=[their_package]") from None


def entry_point_reshapers() -> dict[str, str]:
    """Reshapers of other installed packages: name to ``package.module.Class``."""
    found: dict[str, str] = {}
    for point in entry_points(group=RESHAPERS):
        target = point.value.replace(":", ".")
        if found.setdefault(point.name, target) != target:
            raise InputError(
                f"two installed packages announce a reshaper '{point.name}' ({found[point.name]} and {target}); uninstall one, "
                "or name it by reshaper._target_"
            )
    return found


def check_plain(node: Any, where: str) -> None:
    """Refuse what a config of bevreshape never holds: other kinds of values, interpolations, and amounts beyond reason.

    Args:
        node: of a file, or of a config that will be stored.
        where: the file or key, for messages.

    Raises:
        InputError: naming the key.
    """
    left = MOST_VALUES

    def visit(value: Any, key: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if depth > MOST_DEPTH or left < 0:
            raise _too_much(where)
        if type(value) is dict:
            for name, inner in value.items():
                if type(name) not in (str, int, float, bool):
                    raise InputError(
                        f"{where}: {key or 'its top'} has a key that is a {type(name).__name__}, not a text"
                    )
                visit(name, key, depth + 1)
                visit(inner, f"{key}.{_short(name)}".lstrip("."), depth + 1)
        elif type(value) in (list, tuple):
            for number, inner in enumerate(value):
                visit(inner, f"{key}[{number}]", depth + 1)
        elif type(value) is str:
            _check_text(value, f"{where}: {key}")
        elif type(value) is int and not -(2**63) <= value < 2**63:
            raise InputError(f"{where}: {key} is an integer of {value.bit_length()} bits, which no option takes")
        elif value is not None and type(value) not in (bool, int, float):
            raise InputError(f"{where}: {key} is a {type(value).__name__}, not a plain value")

    visit(node, "", 0)


def _too_much(where: str) -> InputError:
    return InputError(
        f"{where} is nested deeper than {MOST_DEPTH} or has more than {MOST_VALUES} values, which no config has; use another file"
    )


def _check_text(text: str, where: str) -> None:
    if "${" in text:
        raise InputError(
            f"{where} holds {_short(text)!r}, which is written like an interpolation; what is stored is never resolved, so write "
            "its value"
        )
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{where} is a text of {len(text)} characters, which no option takes")
    if any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" for sign in text):
        raise InputError(f"{where} holds {_short(text)!r} with control characters, which no option takes")


def check_targets(node: Any, part: str, where: str, trust: Sequence[str] = ()) -> None:
    """Refuse a stored part of a config that names anything but the classes that belong there.

    Args:
        node: the plain values of the part.
        part: such as ``reshaper``.
        where: the file, for messages.
        trust: packages of which any class may be named, anywhere.

    Raises:
        InputError: naming the target.
    """
    _check_targets(node, (part,), where, trust)


def _check_targets(node: Any, place: tuple[str, ...], where: str, trust: Sequence[str]) -> None:
    if isinstance(node, Mapping):
        if TARGET in node:
            _check_target(node[TARGET], place, where, trust)
            if place == ("logger",) and node[TARGET] in PLACES[place]:
                _check_logger(node, where)
        for key, value in node.items():
            _check_targets(value, (*place, str(key)), where, trust)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            _check_targets(value, (*place, str(number)), where, trust)


def _check_target(target: Any, place: tuple[str, ...], where: str, trust: Sequence[str]) -> None:
    own = any(
        target in names
        for known, names in PLACES.items()
        if len(known) == len(place) and all(one in ("*", other) for one, other in zip(known, place, strict=True))
    )
    if own or (place == ("reshaper",) and target in entry_point_reshapers().values()):
        return
    said = f"{where}: {_short('.'.join(place))} wants to call {_short(str(target))}, which is"
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise InputError(f"{said} no dotted name of a class; use a file that bevreshape wrote")
    package = target.partition(".")[0]
    if package == "bevreshape":
        raise InputError(f"{said} no class of bevreshape that belongs there; use a file that bevreshape wrote")
    if package not in trust:
        raise InputError(
            f"{said} neither a class of bevreshape nor an installed entry point of {RESHAPERS}; if you know this file and "
            f"that code, set trust=[{package}]"
        )
    found = locate(target)
    if not isclass(found) or found.__module__.partition(".")[0] not in trust:
        raise InputError(f"{said} no class that the trusted {package} defines; name such a class")


def _check_logger(node: Mapping[Any, Any], where: str) -> None:
    package = str(node[TARGET]).partition(".")[0]
    for key, value in node.items():
        if key not in (TARGET, *LOGGER_OPTIONS):
            raise InputError(
                f"{where}: logger.{_short(key)} is not taken from a file; if you know it, set trust=[{package}]"
            )
        if key in ("name", "version", "sub_dir") and re.search(r"[/\\]|\.\.", str(value)):
            raise InputError(
                f"{where}: logger.{key}={_short(value)!r} is a path that would leave the run folder; name a folder in it"
            )


def check_cache(data: Mapping[str, Any], where: str) -> None:
    """Refuse that a stored config says where scenes are generated, unless that is below the current folder or a cache already.

    All other sources only read.

    Args:
        data: the stored ``data`` group.
        where: the file, for messages.

    Raises:
        InputError: naming the folder.
    """
    if data.get(TARGET) not in ("bevreshape.data.sources.synthetic.SyntheticSource",) or "root" not in data:
        return
    root = Path(str(data["root"]))
    inside = not root.is_absolute() and ".." not in root.parts and not str(root).startswith("~")
    if not inside and not _is_cache(root):
        raise InputError(
            f"{where}: its scenes would be generated in {root}, which holds none yet; say where by data.root=FOLDER"
        )


def _is_cache(root: Path) -> bool:
    try:
        return any(root.expanduser().glob("*/meta.json"))
    except (OSError, RuntimeError):  # no folder, or the home of an unknown user
        return False


class _TooMuch(Exception):
    """A text has more values than are read."""


class _Loader(yaml.SafeLoader):
    """Plain values alone, each written out: a few references to references stand for any amount of them.

    They are counted as they are read, as :func:`check_plain` counts them.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.left, self.depth = MOST_VALUES, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "a reference, which no run writes", event.start_mark)
        self.left -= 1
        if self.depth > MOST_DEPTH or self.left < 0:
            raise _TooMuch
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_config(path: Path, trust: Sequence[str] = (), needed: Sequence[str] = ()) -> dict[str, Any]:
    """A run folder's ``config.yaml``, all of whose classes are allowed.

    Args:
        path: of the file.
        trust: packages of which any class may be named.
        needed: keys that it must have.

    Raises:
        InputError: naming the file and the key.
    """
    config = read_yaml(path)
    if "hydra" in config or "defaults" in config:
        raise InputError(
            f"{path} holds settings of Hydra itself, which could run anything; no run writes them, so remove them"
        )
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise InputError(f"{path} has no {missing[0]}; it is damaged, so restore it")
    for part in (*GROUPS, "loader", "trainer", "log_images"):
        if not isinstance(config.get(part), dict | None):
            raise InputError(
                f"{path}: {part}={_short(config[part])!r} must be a mapping of options; it is damaged, so restore it"
            )
    for part, node in config.items():
        check_targets(node, str(part), str(path), trust)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values, for instance of a run's ``config.yaml``.

    Raises:
        InputError: naming the file.
    """
    text = _read_text(path, MOST_YAML_BYTES)
    try:
        found = yaml.load(text, _Loader)
    except _TooMuch:
        raise _too_much(str(path)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or no YAML ({_reason(error)}); restore it, or name another folder"
        ) from None
    return _checked_mapping(found, path)


def read_json(path: Path) -> dict[str, Any]:
    """A mapping of plain values, for instance of a run's ``metrics.json``.

    Raises:
        InputError: naming the file.
    """
    text = _read_text(path)
    if parsed_mb(text) > MOST_JSON_MB:
        raise _too_much(str(path))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or no JSON ({_reason(error)}); restore it, or name another folder"
        ) from None
    return _checked_mapping(found, path)


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a run's ``history.csv``, one a validation, figures as texts.

    Raises:
        InputError: naming the file and the line.
    """
    remedy = "restore it, or rename it if its rows may be lost"
    try:
        text = _read_text(path)
        if "\0" in text:
            raise InputError(f"{path} is damaged: it holds bytes of 0; {remedy}")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        columns = next(lines, [])
        if "step" not in columns or len(set(columns)) < len(columns):
            raise InputError(f"{path} is damaged: its first line is no list of columns with step; {remedy}")
        rows = []
        for values in lines:
            row = dict(zip(columns, values, strict=False))
            if len(values) != len(columns) or not row["step"].isdecimal() or not all(map(_is_figure, values)):
                raise InputError(
                    f"{path} is damaged: line {lines.line_num} is no row of {len(columns)} figures; {remedy}"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} is damaged: it is no CSV ({error}); {remedy}") from None
    return rows


def _is_figure(text: str) -> bool:
    """Whether it is a number, or empty for one that is not known."""
    try:
        return text == "" or math.isfinite(float(text)) or text in ("nan", "inf", "-inf")
    except ValueError:
        return False


def _read_text(path: Path, most: int = MOST_BYTES) -> str:
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing or not a file; name a folder that bevreshape wrote")
        if path.stat().st_size > most:
            raise InputError(f"{path} has more than {most >> 20} MB, so bevreshape did not write it; restore it")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: it is no UTF-8 text; restore it, or name another folder") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); change its permissions, or name another folder"
        ) from None


def _checked_mapping(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        kind = "empty" if found is None else f"a {type(found).__name__}, not a mapping of names"
        raise InputError(f"{path} is damaged: it is {kind}; restore it, or name another folder")
    check_plain(found, str(path))
    return found


def _short(value: Any) -> str:
    """A text of what somebody else wrote, short enough for a message."""
    text = str(value) if not isinstance(value, int) or abs(value) < 2**64 else "a large integer"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())[:120] or type(error).__name__
